#include "model/tokenizer/jinja/expression_parser.hpp"
#include <charconv>

namespace troupe::jinja {
namespace {

constexpr int max_expression_depth = 200;

} // namespace

expression_ptr make_expression(expression_kind what, int line, std::string name) {
  auto e = std::make_unique<expression>();
  e->what = what;
  e->line = line;
  e->name = std::move(name);
  return e;
}

expression_parser::nesting::nesting(const token_cursor& at, int& depth) : depth_(depth) {
  if (++depth_ > max_expression_depth)
    at.fail("an expression deeper than " + std::to_string(max_expression_depth), errc::unsupported);
}

expression_ptr expression_parser::finish(expression_ptr e) const {
  int deepest = 0;
  for (const auto& item : e->items)
    if (item)
      deepest = std::max(deepest, item->depth);
  for (const auto& [key, item] : e->named)
    deepest = std::max(deepest, item->depth);
  e->depth = deepest + 1;
  if (e->depth > max_expression_depth)
    fail("an expression deeper than " + std::to_string(max_expression_depth), errc::unsupported);
  return e;
}

expression_ptr expression_parser::combine(expression_kind what, int line, std::string name, expression_ptr a, expression_ptr b,
                                          expression_ptr c) const {
  auto e = make_expression(what, line, std::move(name));
  e->items.push_back(std::move(a));
  if (b || c)
    e->items.push_back(std::move(b));
  if (c)
    e->items.push_back(std::move(c));
  return finish(std::move(e));
}

expression_ptr expression_parser::parse_expression(bool with_condition) {
  const nesting guard(*this, expression_depth_);
  auto left = parse_or();
  while (with_condition && is_name("if")) {
    const int line = now().line;
    advance();
    auto e = make_expression(expression_kind::condition, line);
    e->items.push_back(std::move(left));
    e->items.push_back(parse_or());
    e->items.push_back(take_name("else") ? parse_expression() : nullptr);
    left = finish(std::move(e));
  }
  return left;
}

expression_ptr expression_parser::parse_or() {
  auto left = parse_and();
  while (is_name("or")) {
    const int line = advance().line;
    left = combine(expression_kind::logical_or, line, "", std::move(left), parse_and());
  }
  return left;
}

expression_ptr expression_parser::parse_and() {
  auto left = parse_not();
  while (is_name("and")) {
    const int line = advance().line;
    left = combine(expression_kind::logical_and, line, "", std::move(left), parse_not());
  }
  return left;
}

expression_ptr expression_parser::parse_not() {
  if (!is_name("not"))
    return parse_compare();
  const nesting guard(*this, expression_depth_);
  const int line = advance().line;
  return combine(expression_kind::logical_not, line, "", parse_not());
}

std::string expression_parser::comparison() {
  for (const std::string_view op : {"==", "!=", "<=", ">=", "<", ">"})
    if (take_op(op))
      return std::string(op);
  if (take_name("in"))
    return "in";
  if (is_name("not") && ahead().what == token_kind::name && ahead().text == "in") {
    advance();
    advance();
    return "not in";
  }
  return {};
}

expression_ptr expression_parser::parse_compare() {
  const int line = now().line;
  auto left = parse_sum();
  auto e = make_expression(expression_kind::compare, line);
  for (std::string op = comparison(); !op.empty(); op = comparison()) {
    e->operators.push_back(op);
    e->items.push_back(parse_sum());
  }
  if (e->operators.empty())
    return left;
  e->items.insert(e->items.begin(), std::move(left));
  return finish(std::move(e));
}

expression_ptr expression_parser::parse_binary(std::initializer_list<std::string_view> ops,
                                               expression_ptr (expression_parser::*operand)()) {
  auto left = (this->*operand)();
  for (;;) {
    const auto it = std::find_if(ops.begin(), ops.end(), [this](auto op) { return is_op(op); });
    if (it == ops.end())
      return left;
    const int line = advance().line;
    left = combine(expression_kind::binary, line, std::string(*it), std::move(left), (this->*operand)());
  }
}

expression_ptr expression_parser::parse_concat() {
  auto first = parse_product();
  if (!is_op("~"))
    return first;
  auto e = make_expression(expression_kind::concat, now().line);
  e->items.push_back(std::move(first));
  while (take_op("~"))
    e->items.push_back(parse_product());
  return finish(std::move(e));
}

expression_ptr expression_parser::parse_signed(bool with_filters) {
  const nesting guard(*this, expression_depth_);
  expression_ptr e;
  const int line = now().line;
  if (take_op("-"))
    e = combine(expression_kind::negate, line, "", parse_signed(false));
  else if (take_op("+"))
    e = combine(expression_kind::plus, line, "", parse_signed(false));
  else
    e = parse_primary();
  e = parse_postfix(std::move(e));
  return with_filters ? parse_filters(std::move(e)) : std::move(e);
}

expression_ptr expression_parser::literal(value v) {
  auto e = make_expression(expression_kind::literal, now().line);
  e->literal = std::move(v);
  advance();
  return e;
}

expression_ptr expression_parser::parse_number() {
  const std::string& text = now().text;
  const char* end = text.data() + text.size();
  if (now().what == token_kind::floating) {
    double d = 0;
    if (std::from_chars(text.data(), end, d).ec != std::errc())
      unsupported("the number " + text);
    return literal(value::floating(d));
  }
  std::int64_t i = 0;
  if (std::from_chars(text.data(), end, i).ec != std::errc())
    unsupported("the number " + text);
  return literal(value::integer(i));
}

expression_ptr expression_parser::parse_primary() {
  switch (now().what) {
  case token_kind::name:
    if (is_name({"true", "True"}))
      return literal(value::boolean(true));
    if (is_name({"false", "False"}))
      return literal(value::boolean(false));
    if (is_name({"none", "None"}))
      return literal(value::none());
    return make_expression(expression_kind::name, now().line, advance().text);
  case token_kind::string: {
    std::string text;
    const int line = now().line;
    while (now().what == token_kind::string)
      text += advance().text;
    auto e = make_expression(expression_kind::literal, line);
    e->literal = value::string(std::move(text));
    return e;
  }
  case token_kind::integer:
  case token_kind::floating:
    return parse_number();
  default:
    break;
  }
  if (is_op("(")) {
    const int line = advance().line;
    if (take_op(")"))
      return make_expression(expression_kind::tuple, line);
    auto e = parse_tuple();
    expect_op(")");
    return e;
  }
  if (is_op("["))
    return parse_list();
  if (is_op("{"))
    return parse_dict();
  fail("expected an expression, found " + describe(now()));
}

expression_ptr expression_parser::parse_tuple(bool with_condition) {
  const int line = now().line;
  auto first = parse_expression(with_condition);
  if (!is_op(","))
    return first;
  auto e = make_expression(expression_kind::tuple, line);
  e->items.push_back(std::move(first));
  while (take_op(",")) {
    if (now().what == token_kind::block_end || now().what == token_kind::output_end || is_op(")") || is_name("recursive"))
      break;
    e->items.push_back(parse_expression(with_condition));
  }
  return finish(std::move(e));
}

expression_ptr expression_parser::parse_list() {
  auto e = make_expression(expression_kind::list, now().line);
  expect_op("[");
  while (!is_op("]")) {
    e->items.push_back(parse_expression());
    if (!is_op("]"))
      expect_op(",");
  }
  expect_op("]");
  return finish(std::move(e));
}

expression_ptr expression_parser::parse_dict() {
  auto e = make_expression(expression_kind::dict, now().line);
  expect_op("{");
  while (!is_op("}")) {
    e->items.push_back(parse_expression());
    expect_op(":");
    e->items.push_back(parse_expression());
    if (!is_op("}"))
      expect_op(",");
  }
  expect_op("}");
  return finish(std::move(e));
}

expression_ptr expression_parser::parse_postfix(expression_ptr e) {
  for (;;) {
    const int line = now().line;
    if (take_op(".")) {
      if (now().what == token_kind::integer)
        e = combine(expression_kind::subscript, line, "", std::move(e), parse_number());
      else
        e = combine(expression_kind::attribute, line, identifier(), std::move(e));
    } else if (is_op("[")) {
      e = parse_subscript(std::move(e));
    } else if (is_op("(")) {
      e = parse_call(std::move(e));
    } else {
      return e;
    }
  }
}

expression_ptr expression_parser::parse_subscript(expression_ptr base) {
  const int line = now().line;
  expect_op("[");
  expression_ptr parts[3];
  int count = 0;
  bool slice = false;
  for (;; ++count) {
    if (!is_op(":") && !is_op("]"))
      parts[count] = parse_expression();
    if (!is_op(":") || count == 2)
      break;
    slice = true;
    advance();
  }
  if (is_op(","))
    unsupported("a subscript with a comma");
  expect_op("]");
  if (!slice && !parts[0])
    fail("an empty subscript");
  if (!slice)
    return combine(expression_kind::subscript, line, "", std::move(base), std::move(parts[0]));
  auto e = make_expression(expression_kind::slice, line);
  e->items.push_back(std::move(base));
  for (auto& part : parts)
    e->items.push_back(std::move(part));
  return finish(std::move(e));
}

void expression_parser::parse_arguments(expression& e) {
  expect_op("(");
  const auto spreads = [&e](std::string_view op) {
    return std::any_of(e.named.begin(), e.named.end(), [op](const auto& a) { return a.first == op; });
  };
  while (!is_op(")")) {
    const bool many = is_op("*"), keys = is_op("**");
    if (many || keys) {
      if (spreads("**") || (many && spreads("*")))
        fail("an argument behind one with " + std::string(spreads("**") ? "**" : "*"));
      advance();
      e.named.emplace_back(many ? "*" : "**", parse_expression());
    } else if (now().what == token_kind::name && ahead().what == token_kind::op && ahead().text == "=") {
      if (spreads("**"))
        fail("an argument behind one with **");
      auto key = identifier();
      advance();
      e.named.emplace_back(std::move(key), parse_expression());
    } else if (!e.named.empty()) {
      fail("a positional argument behind a named one");
    } else {
      e.items.push_back(parse_expression());
    }
    if (!is_op(")"))
      expect_op(",");
  }
  expect_op(")");
}

expression_ptr expression_parser::parse_call(expression_ptr callee) {
  auto e = make_expression(expression_kind::call, now().line);
  e->items.push_back(std::move(callee));
  parse_arguments(*e);
  return finish(std::move(e));
}

expression_ptr expression_parser::parse_filter(expression_ptr base) {
  auto e = make_expression(expression_kind::filter, now().line, identifier());
  if (is_op("."))
    unsupported("the filter " + e->name + "...");
  e->items.push_back(std::move(base));
  if (is_op("("))
    parse_arguments(*e);
  return finish(std::move(e));
}

expression_ptr expression_parser::parse_filters(expression_ptr e) {
  for (;;) {
    if (take_op("|"))
      e = parse_filter(std::move(e));
    else if (take_name("is"))
      e = parse_test(std::move(e));
    else if (is_op("("))
      e = parse_call(std::move(e));
    else
      return e;
  }
}

expression_ptr expression_parser::parse_test(expression_ptr base) {
  const int line = now().line;
  const bool negated = take_name("not");
  auto e = make_expression(expression_kind::test, line, identifier());
  e->items.push_back(std::move(base));
  const auto what = now().what;
  const bool operand = what == token_kind::name || what == token_kind::string || what == token_kind::integer ||
                       what == token_kind::floating || is_op("[") || is_op("{");
  if (is_op("(")) {
    parse_arguments(*e);
    if (!e->named.empty())
      unsupported("a named argument of a test");
  } else if (operand && !is_name({"else", "or", "and"})) {
    if (is_name("is"))
      fail("tests cannot be chained with is");
    e->items.push_back(parse_postfix(parse_primary()));
  }
  auto test = finish(std::move(e));
  return negated ? combine(expression_kind::logical_not, line, "", std::move(test)) : std::move(test);
}

} // namespace troupe::jinja
