#pragma once
#include "core/error.hpp"
#include "model/tokenizer/jinja/ast.hpp"
#include <ctime>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace troupe::jinja {

struct scope {
  std::unordered_map<std::string, value> variables;
  std::shared_ptr<scope> parent;
};

/// Runs a program once, as Jinja's immutable sandbox does. One thread. Bounded: steps, depth and size of text.
/// Throws errc::bad_input (an error of the template or its input) and errc::unsupported, with the template's name and line.
class machine {
public:
  /// now: what strftime_now prints.
  machine(const program& p, std::time_t now) : program_(p), now_(now) {}
  std::string run(std::shared_ptr<scope> variables);
  /// Where the text of {% generation %} blocks stands in run's, as Transformers counts: a block inside a macro or a captured
  /// text begins where that is written.
  const std::vector<std::pair<std::size_t, std::size_t>>& generated() const { return generated_; }

  // --- for filters, tests and methods ---
  [[noreturn]] void fail(const std::string& what, errc code = errc::bad_input) const;
  [[noreturn]] void unsupported(const std::string& what) const { fail(what + " is not supported in chat templates", errc::unsupported); }
  value call(const value& callee, arguments& args);
  value filter(const std::string& name, const value& input, arguments& args);
  bool test(const std::string& name, const value& input, arguments& args);
  value attribute(const value& base, const std::string& name);
  value item(const value& base, const value& key);
  bool contains(const value& container, const value& wanted);
  /// -1, 0 or 1; fails for what Python cannot order.
  int order(const value& a, const value& b, int depth = 0);
  value binary(const std::string& op, const value& a, const value& b);
  /// What a for loop goes through; an iterator is then used up.
  std::vector<value> iterate(const value& v);
  value make_dict(const std::vector<std::pair<value, value>>& entries);
  /// Text made by the template, counted against the bounds.
  value text(std::string s);
  std::time_t now() const { return now_; }
  void charge(std::size_t steps);

private:
  enum class flow : std::uint8_t { on, broken, continued };
  struct level {
    explicit level(machine& m);
    ~level() { --machine_.depth_; }
    level(const level&) = delete;
    level& operator=(const level&) = delete;
    machine& machine_;
  };
  class inside; // a scope for as long as it lives

  value evaluate(const expression& e);
  value evaluate_name(const std::string& name);
  value evaluate_collection(const expression& e);
  value evaluate_slice(const expression& e);
  value evaluate_call(const expression& e, const value* caller);
  value evaluate_compare(const expression& e);
  value evaluate_concat(const expression& e);
  value evaluate_filters(const expression& chain, const value& input);
  value evaluate_sign(const expression& e);
  arguments evaluate_arguments(const expression& e);
  void spread(arguments& args, const value& named);

  flow execute(const body& statements);
  flow execute(const statement& s);
  flow execute_loop(const statement& s, const value& over, int depth);
  std::vector<value> loop_items(const statement& s, const value& over);
  std::string captured(const body& statements);
  void assign(const expression& target, const value& v);
  value make_macro(const statement& s, const std::string& name);
  void write(std::string_view s);

  const program& program_;
  std::shared_ptr<scope> scope_;
  std::vector<std::shared_ptr<scope>> kept_; // scopes that macros were made in
  const std::time_t now_;
  std::string* out_ = nullptr;
  const std::string* whole_ = nullptr; // what run gives
  std::vector<std::pair<std::size_t, std::size_t>> generated_;
  const value* filter_input_ = nullptr; // what stands at the start of a {% filter %} chain
  std::size_t steps_ = 0;
  int depth_ = 0, line_ = 1;
};

/// Arguments by position or name, in the order of `names`; absent ones are empty. Fails for one too many or unknown.
std::vector<std::optional<value>> bind(machine& m, const std::string& function, arguments& args,
                                       std::initializer_list<std::string_view> names);

/// The value of a name that every template sees, or nothing: range, dict, namespace, raise_exception, strftime_now.
std::optional<value> global(machine& m, const std::string& name);

/// A method of a string, list or dict bound to it; undefined when the type has none of that name.
value method(machine& m, const value& base, const std::string& name);

} // namespace troupe::jinja
