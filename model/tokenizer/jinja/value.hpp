#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

namespace troupe::jinja {

struct value;
struct arguments;
class machine;

enum class kind : std::uint8_t {
  undefined,
  none,
  boolean,
  integer,
  floating,
  string,
  list,
  tuple,
  view,     // what dict.items() and its like give: iterable and sized, without an index
  iterator, // what map, select and their like give: iterable once, always true, without a length
  dict,
  space, // namespace(): a dict that templates may change
  callable,
};

struct sequence {
  std::vector<value> items;
  std::size_t next = 0; // iterator: what was not taken yet
};

/// A dict in the order of its keys. Keys are what Python can hash.
struct mapping {
  std::vector<std::pair<value, value>> entries;
  std::unordered_map<std::string, std::size_t> index; // by hash_key
  const value* find(const value& key) const;
  void set(const value& key, value item);
};

struct callable {
  std::string name;
  std::function<value(machine&, arguments&)> call;
  /// Attributes, as `loop.index`; null when there are none.
  std::function<value(machine&, std::string_view)> attribute;
};

/// What a template computes with: Python's types as far as chat templates use them. Cheap to copy.
struct value {
  value() = default;
  static value undefined_named(std::string name);
  static value none();
  static value boolean(bool b);
  static value integer(std::int64_t i);
  static value floating(double d);
  static value string(std::string s);
  static value list(std::vector<value> items, kind k = kind::list);
  static value dict(std::shared_ptr<mapping> m, kind k = kind::dict);
  static value function(std::string name, std::function<value(machine&, arguments&)> call);
  static value from_json(const nlohmann::ordered_json& json);

  bool is(kind k) const { return type == k; }
  bool is_number() const { return type == kind::boolean || type == kind::integer || type == kind::floating; }
  bool is_whole() const { return type == kind::boolean || type == kind::integer; }
  bool has_items() const { return type == kind::list || type == kind::tuple || type == kind::view || type == kind::iterator; }
  const std::string& str() const { return *text; }
  double number() const { return type == kind::floating ? real : static_cast<double>(whole); }

  kind type = kind::undefined;
  bool markup = false;    // went through `safe`
  std::int64_t whole = 0; // boolean, integer
  double real = 0;
  std::shared_ptr<const std::string> text; // string; an undefined's name, or null
  std::shared_ptr<sequence> items;
  std::shared_ptr<mapping> map;
  std::shared_ptr<callable> function_;
};

struct arguments {
  std::vector<value> positional;
  std::vector<std::pair<std::string, value>> named;
};

bool truthy(const value& v);
bool equal(const value& a, const value& b, int depth = 0);
/// Names of types as Python gives them.
std::string type_name(const value& v);
/// A dict's key as text that is equal for equal keys; empty when Python could not hash it.
std::string hash_key(const value& key);

/// str(v) and repr(v). Throw errc::unsupported for what Python would print with an address.
std::string to_text(const value& v);
std::string to_repr(const value& v, int depth = 0);
std::string number_text(double d);

struct json_style {
  std::string indent; // of one level, when pretty
  bool pretty = false, ensure_ascii = false, sort_keys = false;
  std::string item_separator = ", ", key_separator = ": ";
};
/// json.dumps(v).
std::string to_json(const value& v, const json_style& style);

// Python's ideas of text; all count characters, not bytes.
bool is_space(char32_t c);
std::u32string characters(std::string_view text);
std::string from_characters(std::u32string_view text);
std::size_t length(std::string_view text);
std::string_view strip(std::string_view text, bool left, bool right, const value* chars = nullptr);

} // namespace troupe::jinja
