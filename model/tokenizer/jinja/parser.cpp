#include "core/error.hpp"
#include "model/tokenizer/jinja/ast.hpp"
#include "model/tokenizer/jinja/lexer.hpp"
#include <algorithm>
#include <charconv>
#include <initializer_list>
#include <string_view>

namespace troupe::jinja {
namespace {

constexpr int max_expression_depth = 200, max_statement_depth = 60;

expression_ptr make(expression_kind what, int line, std::string name = {}) {
  auto e = std::make_unique<expression>();
  e->what = what;
  e->line = line;
  e->name = std::move(name);
  return e;
}

class parser {
public:
  parser(std::vector<token> tokens, const std::string& name) : tokens_(std::move(tokens)), name_(name) {}

  body run() {
    body out;
    while (now().what != token_kind::end)
      statement_into(out);
    return out;
  }

private:
  // --- tokens ---
  const token& now() const { return tokens_[at_]; }
  const token& ahead() const { return tokens_[std::min(at_ + 1, tokens_.size() - 1)]; }
  bool is_op(std::string_view text) const { return now().what == token_kind::op && now().text == text; }
  bool is_name(std::string_view text) const { return now().what == token_kind::name && now().text == text; }
  bool is_name(std::initializer_list<std::string_view> names) const {
    return std::any_of(names.begin(), names.end(), [this](auto n) { return is_name(n); });
  }
  bool take_op(std::string_view text) { return is_op(text) && ++at_ > 0; }
  bool take_name(std::string_view text) { return is_name(text) && ++at_ > 0; }

  [[noreturn]] void fail(const std::string& what, errc code = errc::bad_input) const {
    throw error(code, name_ + ":" + std::to_string(now().line) + ": " + what);
  }
  [[noreturn]] void unsupported(const std::string& what) const { fail(what + " is not supported in chat templates", errc::unsupported); }

  static std::string describe(const token& t) {
    switch (t.what) {
    case token_kind::text:
      return "text";
    case token_kind::block_begin:
      return "{%";
    case token_kind::block_end:
      return "%}";
    case token_kind::output_begin:
      return "{{";
    case token_kind::output_end:
      return "}}";
    case token_kind::end:
      return "the template's end";
    default:
      return "\"" + (t.text.size() <= 40 ? t.text : t.text.substr(0, 37) + "...") + "\"";
    }
  }

  void expect_op(std::string_view text) {
    if (!take_op(text))
      fail("expected \"" + std::string(text) + "\", found " + describe(now()));
  }
  void expect_name(std::string_view text) {
    if (!take_name(text))
      fail("expected \"" + std::string(text) + "\", found " + describe(now()));
  }
  void expect(token_kind what, const std::string& wanted) {
    if (now().what != what)
      fail("expected " + wanted + ", found " + describe(now()));
    ++at_;
  }
  std::string identifier() {
    if (now().what != token_kind::name)
      fail("expected a name, found " + describe(now()));
    return tokens_[at_++].text;
  }

  // --- expressions ---
  expression_ptr finish(expression_ptr e) const {
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
  expression_ptr combine(expression_kind what, int line, std::string name, expression_ptr a, expression_ptr b = nullptr,
                         expression_ptr c = nullptr) const {
    auto e = make(what, line, std::move(name));
    e->items.push_back(std::move(a));
    if (b || c)
      e->items.push_back(std::move(b));
    if (c)
      e->items.push_back(std::move(c));
    return finish(std::move(e));
  }

  struct nesting {
    explicit nesting(const parser& p, int& depth) : depth_(depth) {
      if (++depth_ > max_expression_depth)
        p.fail("an expression deeper than " + std::to_string(max_expression_depth), errc::unsupported);
    }
    ~nesting() { --depth_; }
    nesting(const nesting&) = delete;
    nesting& operator=(const nesting&) = delete;
    int& depth_;
  };

  expression_ptr parse_expression(bool with_condition = true) {
    const nesting guard(*this, expression_depth_);
    auto left = parse_or();
    while (with_condition && is_name("if")) {
      const int line = now().line;
      ++at_;
      auto e = make(expression_kind::condition, line);
      e->items.push_back(std::move(left));
      e->items.push_back(parse_or());
      e->items.push_back(take_name("else") ? parse_expression() : nullptr);
      left = finish(std::move(e));
    }
    return left;
  }

  expression_ptr parse_or() {
    auto left = parse_and();
    while (is_name("or")) {
      const int line = tokens_[at_++].line;
      left = combine(expression_kind::logical_or, line, "", std::move(left), parse_and());
    }
    return left;
  }

  expression_ptr parse_and() {
    auto left = parse_not();
    while (is_name("and")) {
      const int line = tokens_[at_++].line;
      left = combine(expression_kind::logical_and, line, "", std::move(left), parse_not());
    }
    return left;
  }

  expression_ptr parse_not() {
    if (!is_name("not"))
      return parse_compare();
    const nesting guard(*this, expression_depth_);
    const int line = tokens_[at_++].line;
    return combine(expression_kind::logical_not, line, "", parse_not());
  }

  std::string comparison() {
    for (const std::string_view op : {"==", "!=", "<=", ">=", "<", ">"})
      if (take_op(op))
        return std::string(op);
    if (take_name("in"))
      return "in";
    if (is_name("not") && ahead().what == token_kind::name && ahead().text == "in") {
      at_ += 2;
      return "not in";
    }
    return {};
  }

  expression_ptr parse_compare() {
    const int line = now().line;
    auto left = parse_sum();
    auto e = make(expression_kind::compare, line);
    for (std::string op = comparison(); !op.empty(); op = comparison()) {
      e->operators.push_back(op);
      e->items.push_back(parse_sum());
    }
    if (e->operators.empty())
      return left;
    e->items.insert(e->items.begin(), std::move(left));
    return finish(std::move(e));
  }

  expression_ptr parse_binary(std::initializer_list<std::string_view> ops, expression_ptr (parser::*operand)()) {
    auto left = (this->*operand)();
    for (;;) {
      const auto it = std::find_if(ops.begin(), ops.end(), [this](auto op) { return is_op(op); });
      if (it == ops.end())
        return left;
      const int line = tokens_[at_++].line;
      left = combine(expression_kind::binary, line, std::string(*it), std::move(left), (this->*operand)());
    }
  }
  expression_ptr parse_sum() { return parse_binary({"+", "-"}, &parser::parse_concat); }
  expression_ptr parse_product() { return parse_binary({"*", "/", "//", "%"}, &parser::parse_power); }
  expression_ptr parse_power() { return parse_binary({"**"}, &parser::parse_unary); }

  expression_ptr parse_concat() {
    auto first = parse_product();
    if (!is_op("~"))
      return first;
    auto e = make(expression_kind::concat, now().line);
    e->items.push_back(std::move(first));
    while (take_op("~"))
      e->items.push_back(parse_product());
    return finish(std::move(e));
  }

  expression_ptr parse_unary() { return parse_signed(true); }

  expression_ptr parse_signed(bool with_filters) {
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

  expression_ptr literal(value v) {
    auto e = make(expression_kind::literal, now().line);
    e->literal = std::move(v);
    ++at_;
    return e;
  }

  expression_ptr parse_number() {
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

  expression_ptr parse_primary() {
    switch (now().what) {
    case token_kind::name:
      if (is_name({"true", "True"}))
        return literal(value::boolean(true));
      if (is_name({"false", "False"}))
        return literal(value::boolean(false));
      if (is_name({"none", "None"}))
        return literal(value::none());
      return make(expression_kind::name, now().line, tokens_[at_++].text);
    case token_kind::string: {
      std::string text;
      const int line = now().line;
      while (now().what == token_kind::string)
        text += tokens_[at_++].text;
      auto e = make(expression_kind::literal, line);
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
      const int line = tokens_[at_++].line;
      if (take_op(")"))
        return make(expression_kind::tuple, line);
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

  // One expression, or several with commas between as a tuple.
  expression_ptr parse_tuple(bool with_condition = true) {
    const int line = now().line;
    auto first = parse_expression(with_condition);
    if (!is_op(","))
      return first;
    auto e = make(expression_kind::tuple, line);
    e->items.push_back(std::move(first));
    while (take_op(",")) {
      if (now().what == token_kind::block_end || now().what == token_kind::output_end || is_op(")") || is_name("recursive"))
        break;
      e->items.push_back(parse_expression(with_condition));
    }
    return finish(std::move(e));
  }

  expression_ptr parse_list() {
    auto e = make(expression_kind::list, now().line);
    expect_op("[");
    while (!is_op("]")) {
      e->items.push_back(parse_expression());
      if (!is_op("]"))
        expect_op(",");
    }
    expect_op("]");
    return finish(std::move(e));
  }

  expression_ptr parse_dict() {
    auto e = make(expression_kind::dict, now().line);
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

  expression_ptr parse_postfix(expression_ptr e) {
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

  expression_ptr parse_subscript(expression_ptr base) {
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
      ++at_;
    }
    if (is_op(","))
      unsupported("a subscript with a comma");
    expect_op("]");
    if (!slice && !parts[0])
      fail("an empty subscript");
    if (!slice)
      return combine(expression_kind::subscript, line, "", std::move(base), std::move(parts[0]));
    auto e = make(expression_kind::slice, line);
    e->items.push_back(std::move(base));
    for (auto& part : parts)
      e->items.push_back(std::move(part));
    return finish(std::move(e));
  }

  void parse_arguments(expression& e) {
    expect_op("(");
    while (!is_op(")")) {
      if (is_op("*") || is_op("**"))
        unsupported("an argument with * or **");
      if (now().what == token_kind::name && ahead().what == token_kind::op && ahead().text == "=") {
        auto key = identifier();
        ++at_;
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

  expression_ptr parse_call(expression_ptr callee) {
    auto e = make(expression_kind::call, now().line);
    e->items.push_back(std::move(callee));
    parse_arguments(*e);
    return finish(std::move(e));
  }

  expression_ptr parse_filter(expression_ptr base) {
    auto e = make(expression_kind::filter, now().line, identifier());
    if (is_op("."))
      unsupported("the filter " + e->name + "...");
    e->items.push_back(std::move(base));
    if (is_op("("))
      parse_arguments(*e);
    return finish(std::move(e));
  }

  expression_ptr parse_filters(expression_ptr e) {
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

  expression_ptr parse_test(expression_ptr base) {
    const int line = now().line;
    const bool negated = take_name("not");
    auto e = make(expression_kind::test, line, identifier());
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

  // --- statements ---
  void statement_into(body& out) {
    const int line = now().line;
    if (now().what == token_kind::text) {
      out.push_back({statement_kind::text, line, tokens_[at_++].text, {}, {}, {}, false, {}, {}, {}});
    } else if (now().what == token_kind::output_begin) {
      ++at_;
      auto& s = add(out, statement_kind::output, line);
      s.value = parse_tuple();
      expect(token_kind::output_end, "}}");
    } else {
      expect(token_kind::block_begin, "{%");
      if (++statement_depth_ > max_statement_depth)
        fail("blocks nested deeper than " + std::to_string(max_statement_depth), errc::unsupported);
      block(out, line);
      --statement_depth_;
    }
  }

  static statement& add(body& out, statement_kind what, int line) {
    out.push_back({what, line, {}, {}, {}, {}, false, {}, {}, {}});
    return out.back();
  }

  void end_block() { expect(token_kind::block_end, "%}"); }

  // Statements up to {% NAME; the position is then on NAME.
  body until(std::initializer_list<std::string_view> names, const std::string& opened, int line) {
    body out;
    for (;;) {
      if (now().what == token_kind::end)
        throw error(errc::bad_input, name_ + ":" + std::to_string(line) + ": {% " + opened + " %} without its end");
      if (now().what == token_kind::block_begin && ahead().what == token_kind::name &&
          std::find(names.begin(), names.end(), ahead().text) != names.end()) {
        ++at_;
        return out;
      }
      statement_into(out);
    }
  }

  body until_end(std::string_view name, const std::string& opened, int line) {
    auto out = until({name}, opened, line);
    ++at_;
    return out;
  }

  void block(body& out, int line) {
    const auto tag = identifier();
    if (tag == "if")
      return parse_if(out, line);
    if (tag == "for")
      parse_for(out, line);
    else if (tag == "set")
      parse_set(out, line);
    else if (tag == "macro")
      parse_macro(out, line);
    else if (tag == "call")
      parse_call_block(out, line);
    else if (tag == "filter")
      parse_filter_block(out, line);
    else if (tag == "with")
      parse_with(out, line);
    else if (tag == "generation") {
      auto& s = add(out, statement_kind::generation, line);
      end_block();
      s.inner = until_end("endgeneration", tag, line);
    } else if (tag == "break" || tag == "continue") {
      if (loop_depth_ == 0)
        fail("{% " + tag + " %} outside a loop");
      add(out, tag == "break" ? statement_kind::break_loop : statement_kind::continue_loop, line);
    } else if (tag == "include" || tag == "import" || tag == "from" || tag == "extends" || tag == "block" || tag == "autoescape" ||
               tag == "do" || tag == "trans" || tag == "debug") {
      unsupported("{% " + tag + " %}");
    } else {
      fail("unknown tag {% " + tag + " %}");
    }
    end_block();
  }

  void parse_if(body& out, int line) {
    body* place = &out;
    for (int arms = 1;; ++arms) {
      auto& s = add(*place, statement_kind::branch, line);
      s.value = parse_tuple(false);
      end_block();
      s.inner = until({"elif", "else", "endif"}, "if", line);
      const auto tag = identifier();
      if (tag == "elif") {
        if (arms > max_elifs)
          fail("an if with more than " + std::to_string(max_elifs) + " elif", errc::unsupported);
        place = &s.other;
        continue;
      }
      if (tag == "else") {
        end_block();
        s.other = until_end("endif", "if", line);
      }
      return end_block();
    }
  }

  expression_ptr parse_target(bool with_attribute = false) {
    const auto one = [&]() -> expression_ptr {
      if (take_op("(")) {
        auto inner = parse_target();
        expect_op(")");
        return inner;
      }
      auto e = make(expression_kind::name, now().line, identifier());
      static constexpr std::string_view reserved[] = {"true", "false", "none", "True", "False", "None", "loop",
                                                      "in",   "if",    "else", "and",  "or",    "not",  "is"};
      if (std::find(std::begin(reserved), std::end(reserved), e->name) != std::end(reserved))
        fail("\"" + e->name + "\" cannot be assigned");
      if (!with_attribute || !is_op("."))
        return e;
      const int line = now().line;
      ++at_;
      return combine(expression_kind::attribute, line, identifier(), std::move(e));
    };
    const nesting guard(*this, expression_depth_);
    const int line = now().line;
    auto first = one();
    if (!is_op(","))
      return first;
    auto e = make(expression_kind::tuple, line);
    e->items.push_back(std::move(first));
    while (take_op(","))
      if (now().what == token_kind::name || is_op("("))
        e->items.push_back(one());
      else
        break;
    return e;
  }

  void parse_for(body& out, int line) {
    auto& s = add(out, statement_kind::loop, line);
    s.target = parse_target();
    expect_name("in");
    s.value = parse_tuple(false);
    if (take_name("if"))
      s.test = parse_expression();
    s.recursive = take_name("recursive");
    end_block();
    ++loop_depth_;
    s.inner = until({"else", "endfor"}, "for", line);
    --loop_depth_;
    if (identifier() == "else") {
      end_block();
      s.other = until_end("endfor", "for", line);
    }
  }

  void parse_set(body& out, int line) {
    auto& s = add(out, statement_kind::set, line);
    s.target = parse_target(true);
    if (take_op("=")) {
      s.value = parse_tuple();
      return;
    }
    s.what = statement_kind::set_block;
    if (is_op("|")) {
      auto empty = make(expression_kind::literal, line);
      s.value = parse_filters(std::move(empty));
    }
    end_block();
    s.inner = until_end("endset", "set", line);
  }

  void parse_parameters(statement& s) {
    expect_op("(");
    while (!is_op(")")) {
      auto name = identifier();
      expression_ptr otherwise;
      if (take_op("="))
        otherwise = parse_expression();
      else if (!s.parameters.empty() && s.parameters.back().second)
        fail("a parameter without a default behind one with a default");
      s.parameters.emplace_back(std::move(name), std::move(otherwise));
      if (!is_op(")"))
        expect_op(",");
    }
    expect_op(")");
  }

  // Inside a macro a loop outside it cannot be left.
  body macro_body(std::string_view end, const std::string& opened, int line) {
    const int outer = std::exchange(loop_depth_, 0);
    auto out = until_end(end, opened, line);
    loop_depth_ = outer;
    return out;
  }

  void parse_macro(body& out, int line) {
    auto& s = add(out, statement_kind::macro, line);
    s.name = identifier();
    parse_parameters(s);
    end_block();
    s.inner = macro_body("endmacro", "macro", line);
  }

  void parse_call_block(body& out, int line) {
    auto& s = add(out, statement_kind::call_block, line);
    if (is_op("("))
      parse_parameters(s);
    s.value = parse_expression();
    if (s.value->what != expression_kind::call)
      fail("{% call %} needs a call");
    end_block();
    s.inner = macro_body("endcall", "call", line);
  }

  void parse_filter_block(body& out, int line) {
    auto& s = add(out, statement_kind::filter_block, line);
    auto empty = make(expression_kind::literal, line);
    s.value = parse_filters(parse_filter(std::move(empty)));
    end_block();
    s.inner = until_end("endfilter", "filter", line);
  }

  void parse_with(body& out, int line) {
    auto& s = add(out, statement_kind::with, line);
    while (now().what != token_kind::block_end) {
      if (!s.parameters.empty())
        expect_op(",");
      auto name = identifier();
      expect_op("=");
      s.parameters.emplace_back(std::move(name), parse_expression());
    }
    end_block();
    s.inner = until_end("endwith", "with", line);
  }

  static constexpr int max_elifs = 60;
  std::vector<token> tokens_;
  const std::string& name_;
  std::size_t at_ = 0;
  int expression_depth_ = 0, statement_depth_ = 0, loop_depth_ = 0;
};

} // namespace

program parse(const std::string& source, const std::string& name) {
  auto tokens = tokenize(source, name);
  return {name, parser(std::move(tokens), name).run()};
}

} // namespace troupe::jinja
