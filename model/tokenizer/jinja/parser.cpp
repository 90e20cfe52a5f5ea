#include "model/tokenizer/jinja/ast.hpp"
#include "model/tokenizer/jinja/expression_parser.hpp"
#include <utility>

namespace troupe::jinja {
namespace {

constexpr int max_statement_depth = 60, max_elifs = 60;

class parser : expression_parser {
public:
  using expression_parser::expression_parser;

  body run() {
    body out;
    while (now().what != token_kind::end)
      statement_into(out);
    return out;
  }

private:
  void statement_into(body& out) {
    const int line = now().line;
    if (now().what == token_kind::text) {
      out.push_back({statement_kind::text, line, advance().text, {}, {}, {}, false, {}, {}, {}});
    } else if (now().what == token_kind::output_begin) {
      advance();
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
        throw error(errc::bad_input, name() + ":" + std::to_string(line) + ": {% " + opened + " %} without its end");
      if (now().what == token_kind::block_begin && ahead().what == token_kind::name &&
          std::find(names.begin(), names.end(), ahead().text) != names.end()) {
        advance();
        return out;
      }
      statement_into(out);
    }
  }

  body until_end(std::string_view name, const std::string& opened, int line) {
    auto out = until({name}, opened, line);
    advance();
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
      auto e = make_expression(expression_kind::name, now().line, identifier());
      static constexpr std::string_view reserved[] = {"true", "false", "none", "True", "False", "None", "loop",
                                                      "in",   "if",    "else", "and",  "or",    "not",  "is"};
      if (std::find(std::begin(reserved), std::end(reserved), e->name) != std::end(reserved))
        fail("\"" + e->name + "\" cannot be assigned");
      if (!with_attribute || !is_op("."))
        return e;
      const int line = now().line;
      advance();
      return combine(expression_kind::attribute, line, identifier(), std::move(e));
    };
    const nesting guard(*this, expression_depth_);
    const int line = now().line;
    auto first = one();
    if (!is_op(","))
      return first;
    auto e = make_expression(expression_kind::tuple, line);
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
      auto empty = make_expression(expression_kind::literal, line);
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
    auto empty = make_expression(expression_kind::literal, line);
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

  int statement_depth_ = 0, loop_depth_ = 0;
};

} // namespace

program parse(const std::string& source, const std::string& name) {
  auto tokens = tokenize(source, name);
  return {name, parser(std::move(tokens), name).run()};
}

} // namespace troupe::jinja
