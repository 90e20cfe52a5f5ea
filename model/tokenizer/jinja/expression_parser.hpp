#pragma once
#include "model/tokenizer/jinja/ast.hpp"
#include "model/tokenizer/jinja/token_cursor.hpp"

namespace troupe::jinja {

expression_ptr make_expression(expression_kind what, int line, std::string name = {});

/// Jinja's expressions by recursive descent, a function a level of precedence. Their depth is bounded, and so is the stack's.
class expression_parser : public token_cursor {
public:
  using token_cursor::token_cursor;

  expression_ptr parse_expression(bool with_condition = true);
  /// One expression, or several with commas between as a tuple.
  expression_ptr parse_tuple(bool with_condition = true);
  expression_ptr parse_filter(expression_ptr base);
  expression_ptr parse_filters(expression_ptr e);
  /// An expression with its parts, its depth counted. A null b or c is left out unless one follows it.
  expression_ptr combine(expression_kind what, int line, std::string name, expression_ptr a, expression_ptr b = nullptr,
                         expression_ptr c = nullptr) const;
  /// Counts a level of recursion while it lives.
  class nesting {
  public:
    nesting(const token_cursor& at, int& depth);
    ~nesting() { --depth_; }
    nesting(const nesting&) = delete;
    nesting& operator=(const nesting&) = delete;

  private:
    int& depth_;
  };

protected:
  int expression_depth_ = 0;

private:
  expression_ptr finish(expression_ptr e) const;
  expression_ptr parse_or();
  expression_ptr parse_and();
  expression_ptr parse_not();
  std::string comparison();
  expression_ptr parse_compare();
  expression_ptr parse_binary(std::initializer_list<std::string_view> ops, expression_ptr (expression_parser::*operand)());
  expression_ptr parse_sum() { return parse_binary({"+", "-"}, &expression_parser::parse_concat); }
  expression_ptr parse_product() { return parse_binary({"*", "/", "//", "%"}, &expression_parser::parse_power); }
  expression_ptr parse_power() { return parse_binary({"**"}, &expression_parser::parse_unary); }
  expression_ptr parse_concat();
  expression_ptr parse_unary() { return parse_signed(true); }
  expression_ptr parse_signed(bool with_filters);
  expression_ptr literal(value v);
  expression_ptr parse_number();
  expression_ptr parse_primary();
  expression_ptr parse_list();
  expression_ptr parse_dict();
  expression_ptr parse_postfix(expression_ptr e);
  expression_ptr parse_subscript(expression_ptr base);
  void parse_arguments(expression& e);
  expression_ptr parse_call(expression_ptr callee);
  expression_ptr parse_test(expression_ptr base);
};

} // namespace troupe::jinja
