#pragma once
#include "model/tokenizer/jinja/value.hpp"
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace troupe::jinja {

struct expression;
struct statement;
using expression_ptr = std::unique_ptr<expression>;
using body = std::vector<statement>;

enum class expression_kind : std::uint8_t {
  literal,
  name,
  list,
  tuple,
  dict,      // items; a dict's are key, value, key, value
  attribute, // items[0].name
  subscript, // items[0][items[1]]
  slice,     // items[0][items[1]:items[2]:items[3]]; null: left out
  call,      // items[0](items[1..], named)
  filter,    // items[0] | name(items[1..], named)
  test,      // items[0] is name(items[1..])
  negate,
  plus,
  logical_not,
  binary,  // name: the operator
  concat,  // items joined by ~
  compare, // items[0] operators[0] items[1] operators[1] ...
  logical_and,
  logical_or,
  condition, // items[0] if items[1] else items[2]; null: undefined
};

struct expression {
  expression_kind what;
  int line;
  int depth = 1; // of the tree below, bounded by the parser
  std::string name;
  value literal;
  std::vector<expression_ptr> items;
  std::vector<std::pair<std::string, expression_ptr>> named; // "*" and "**": what they spread
  std::vector<std::string> operators;
};

enum class statement_kind : std::uint8_t {
  text,         // name: what is written
  output,       // value
  branch,       // value, inner, other
  loop,         // target, value, test, inner, other, recursive
  set,          // target, value
  set_block,    // target, value (a chain of filters over an empty literal, or null), inner
  macro,        // name, parameters, inner
  call_block,   // value (a call), parameters of the caller, inner
  filter_block, // value (a chain of filters), inner
  with,         // parameters as assignments, inner
  generation,   // inner
  break_loop,
  continue_loop,
};

struct statement {
  statement_kind what;
  int line;
  std::string name;
  expression_ptr target, value, test;
  bool recursive = false;
  std::vector<std::pair<std::string, expression_ptr>> parameters; // with their defaults, or null
  body inner, other;
};

/// A parsed template. Immutable.
struct program {
  std::string name;
  body statements;
};

/// Throws errc::bad_input (a syntax error) and errc::unsupported, with `name`, line and construct.
program parse(const std::string& source, const std::string& name);

} // namespace troupe::jinja
