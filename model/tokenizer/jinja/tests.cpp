#include "model/tokenizer/jinja/machine.hpp"
#include "model/tokenizer/unicode.hpp"
#include <map>

namespace troupe::jinja {
namespace {

using test_function = bool (*)(machine&, const value&, const std::vector<value>&);

struct known_test {
  std::size_t operands;
  test_function holds;
};

bool is_iterable(const value& v) { return v.is(kind::undefined) || v.is(kind::string) || v.has_items() || v.is(kind::dict); }

std::int64_t whole(machine& m, const value& v) {
  if (!v.is_whole())
    m.fail("the test takes an integer, not a " + type_name(v));
  return v.whole;
}

bool same(machine& m, const value& a, const value& b) {
  const auto single = [](const value& v) { return v.is(kind::none) || v.is(kind::boolean); };
  if (!single(a) && !single(b))
    m.unsupported("the test sameas for a " + type_name(b));
  return a.type == b.type && a.whole == b.whole;
}

// islower, isupper: some letter has a case, and none the other.
bool has_case(machine& m, const value& v, bool upper) {
  const auto text = to_text(v);
  m.charge(text.size() / 16);
  const auto ours = upper ? unicode::upper(text) : unicode::lower(text), theirs = upper ? unicode::lower(text) : unicode::upper(text);
  return text == ours && ours != theirs;
}

template <int... wanted>
bool ordered(machine& m, const value& a, const std::vector<value>& args) {
  const int o = m.order(a, args[0]);
  return ((o == wanted) || ...);
}

const std::map<std::string_view, known_test>& tests() {
  using args = const std::vector<value>&;
  constexpr auto is_equal = [](machine&, const value& a, args b) { return equal(a, b[0]); };
  constexpr auto not_equal = [](machine&, const value& a, args b) { return !equal(a, b[0]); };
  static const std::map<std::string_view, known_test> all = {
      {"==", {1, is_equal}},
      {"eq", {1, is_equal}},
      {"equalto", {1, is_equal}},
      {"!=", {1, not_equal}},
      {"ne", {1, not_equal}},
      {"<", {1, ordered<-1>}},
      {"lt", {1, ordered<-1>}},
      {"lessthan", {1, ordered<-1>}},
      {"<=", {1, ordered<-1, 0>}},
      {"le", {1, ordered<-1, 0>}},
      {">", {1, ordered<1>}},
      {"gt", {1, ordered<1>}},
      {"greaterthan", {1, ordered<1>}},
      {">=", {1, ordered<0, 1>}},
      {"ge", {1, ordered<0, 1>}},
      {"in", {1, [](machine& m, const value& v, args b) { return m.contains(b[0], v); }}},
      {"sameas", {1, [](machine& m, const value& v, args b) { return same(m, v, b[0]); }}},
      {"divisibleby",
       {1, [](machine& m, const value& v,
              args b) { return whole(m, m.binary("%", value::integer(whole(m, v)), value::integer(whole(m, b[0])))) == 0; }}},
      {"even", {0, [](machine& m, const value& v, args) { return whole(m, v) % 2 == 0; }}},
      {"odd", {0, [](machine& m, const value& v, args) { return whole(m, v) % 2 != 0; }}},
      {"defined", {0, [](machine&, const value& v, args) { return !v.is(kind::undefined); }}},
      {"undefined", {0, [](machine&, const value& v, args) { return v.is(kind::undefined); }}},
      {"none", {0, [](machine&, const value& v, args) { return v.is(kind::none); }}},
      {"boolean", {0, [](machine&, const value& v, args) { return v.is(kind::boolean); }}},
      {"true", {0, [](machine&, const value& v, args) { return v.is(kind::boolean) && v.whole != 0; }}},
      {"false", {0, [](machine&, const value& v, args) { return v.is(kind::boolean) && v.whole == 0; }}},
      {"integer", {0, [](machine&, const value& v, args) { return v.is(kind::integer); }}},
      {"float", {0, [](machine&, const value& v, args) { return v.is(kind::floating); }}},
      {"number", {0, [](machine&, const value& v, args) { return v.is_number(); }}},
      {"string", {0, [](machine&, const value& v, args) { return v.is(kind::string); }}},
      {"mapping", {0, [](machine&, const value& v, args) { return v.is(kind::dict); }}},
      {"iterable", {0, [](machine&, const value& v, args) { return is_iterable(v); }}},
      {"sequence", {0, [](machine&, const value& v, args) { return is_iterable(v) && !v.is(kind::iterator) && !v.is(kind::view); }}},
      {"callable", {0, [](machine&, const value& v, args) { return v.is(kind::callable); }}},
      {"lower", {0, [](machine& m, const value& v, args) { return has_case(m, v, false); }}},
      {"upper", {0, [](machine& m, const value& v, args) { return has_case(m, v, true); }}},
  };
  return all;
}

} // namespace

bool machine::test(const std::string& name, const value& input, arguments& args) {
  const auto it = tests().find(name);
  if (it == tests().end())
    unsupported("the test \"" + name + "\"");
  if (args.positional.size() != it->second.operands || !args.named.empty())
    fail("the test \"" + name + "\" takes " + std::to_string(it->second.operands) + " operands, not " +
         std::to_string(args.positional.size()));
  charge(1);
  return it->second.holds(*this, input, args.positional);
}

} // namespace troupe::jinja
