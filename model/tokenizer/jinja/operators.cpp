#include "model/tokenizer/jinja/formatting.hpp"
#include "model/tokenizer/utf8.hpp"
#include <algorithm>
#include <cmath>

namespace troupe::jinja {
namespace {

constexpr std::size_t max_items = 10'000'000;

bool sequences(const value& a, const value& b) { return a.type == b.type && (a.is(kind::list) || a.is(kind::tuple)); }

// Python's // and % round towards minus infinity.
std::int64_t floor_divide(std::int64_t a, std::int64_t b) { return a / b - (a % b != 0 && (a % b < 0) != (b < 0) ? 1 : 0); }

} // namespace

std::vector<value> machine::iterate(const value& v) {
  switch (v.type) {
  case kind::undefined:
    return {};
  case kind::list:
  case kind::tuple:
  case kind::view:
    charge(v.items->items.size() / 8);
    return v.items->items;
  case kind::iterator: {
    auto& s = *v.items;
    std::vector<value> rest(s.items.begin() + static_cast<std::ptrdiff_t>(std::min(s.next, s.items.size())), s.items.end());
    s.next = s.items.size();
    return rest;
  }
  case kind::dict: {
    std::vector<value> keys;
    for (const auto& entry : v.map->entries)
      keys.push_back(entry.first);
    return keys;
  }
  case kind::string: {
    std::vector<value> out;
    charge(v.str().size());
    for (std::size_t pos = 0; pos < v.str().size();) {
      const std::size_t begin = pos;
      utf8::next(v.str(), pos);
      out.push_back(value::string(v.str().substr(begin, pos - begin)));
    }
    return out;
  }
  default:
    fail("a " + type_name(v) + " cannot be iterated");
  }
}

bool machine::contains(const value& container, const value& wanted) {
  if (container.is(kind::string)) {
    if (!wanted.is(kind::string))
      fail("only a string can be in a string, not " + type_name(wanted));
    charge(container.str().size() / 64);
    return container.str().find(wanted.str()) != std::string::npos;
  }
  if (container.is(kind::dict)) {
    if (hash_key(wanted).empty())
      fail("a dict's key cannot be a " + type_name(wanted));
    return container.map->find(wanted) != nullptr;
  }
  const auto items = iterate(container);
  charge(items.size());
  return std::any_of(items.begin(), items.end(), [&](const value& item) { return equal(item, wanted); });
}

int machine::order(const value& a, const value& b, int depth) {
  const auto compare = [](const auto& x, const auto& y) { return x < y ? -1 : y < x ? 1 : 0; };
  if (a.is_whole() && b.is_whole())
    return compare(a.whole, b.whole);
  if (a.is_number() && b.is_number()) {
    if (std::isnan(a.number()) || std::isnan(b.number()))
      return 2; // neither less, equal nor greater
    return compare(a.number(), b.number());
  }
  if (a.is(kind::string) && b.is(kind::string))
    return compare(a.str(), b.str()); // the bytes of UTF-8 stand in the order of the characters
  if (!sequences(a, b) || depth > 100)
    fail("a " + type_name(a) + " and a " + type_name(b) + " have no order");
  const auto &x = a.items->items, &y = b.items->items;
  for (std::size_t i = 0; i < std::min(x.size(), y.size()); ++i)
    if (!equal(x[i], y[i]))
      return order(x[i], y[i], depth + 1);
  return compare(x.size(), y.size());
}

namespace {

value whole_arithmetic(machine& m, char op, std::int64_t a, std::int64_t b) {
  std::int64_t result = 0;
  bool overflow = false;
  switch (op) {
  case '+':
    overflow = __builtin_add_overflow(a, b, &result);
    break;
  case '-':
    overflow = __builtin_sub_overflow(a, b, &result);
    break;
  default:
    overflow = __builtin_mul_overflow(a, b, &result);
    break;
  }
  if (overflow)
    m.unsupported("an integer beyond 64 bits");
  return value::integer(result);
}

value divide(machine& m, const std::string& op, const value& a, const value& b) {
  if (b.number() == 0)
    m.fail("division by zero");
  if (op == "/")
    return value::floating(a.number() / b.number());
  if (a.is_whole() && b.is_whole()) {
    if (b.whole == -1)
      return op == "//" ? whole_arithmetic(m, '-', 0, a.whole) : value::integer(0);
    const std::int64_t quotient = floor_divide(a.whole, b.whole);
    return value::integer(op == "//" ? quotient : a.whole - quotient * b.whole);
  }
  double rest = std::fmod(a.number(), b.number());
  if (rest != 0 && (rest < 0) != (b.number() < 0))
    rest += b.number();
  if (op == "%")
    return value::floating(rest == 0 ? std::copysign(0.0, b.number()) : rest);
  return value::floating(std::nearbyint((a.number() - rest) / b.number()));
}

value power(machine& m, const value& a, const value& b) {
  if (!a.is_whole() || !b.is_whole() || b.whole < 0) {
    if (a.number() == 0 && b.number() < 0)
      m.fail("0 has no negative power");
    if (a.number() < 0 && std::nearbyint(b.number()) != b.number())
      m.unsupported("a complex number");
    return value::floating(std::pow(a.number(), b.number()));
  }
  if (a.whole == 0 || a.whole == 1 || a.whole == -1)
    return value::integer(b.whole == 0 ? 1 : a.whole == -1 && b.whole % 2 == 0 ? 1 : a.whole);
  value result = value::integer(1);
  for (std::int64_t i = 0; i < b.whole; ++i)
    result = whole_arithmetic(m, '*', result.whole, a.whole);
  return result;
}

value repeat(machine& m, const value& a, std::int64_t times) {
  const auto count = static_cast<std::size_t>(std::max<std::int64_t>(0, times));
  const std::size_t size = a.is(kind::string) ? a.str().size() : a.items->items.size();
  if (size > 0 && count > max_items / size)
    m.fail("a value repeated to more than " + std::to_string(max_items) + " items");
  m.charge(size * count / 8);
  if (a.is(kind::string)) {
    std::string out;
    for (std::size_t i = 0; i < count && size > 0; ++i)
      out += a.str();
    return m.text(std::move(out));
  }
  std::vector<value> items;
  for (std::size_t i = 0; i < count && size > 0; ++i)
    items.insert(items.end(), a.items->items.begin(), a.items->items.end());
  return value::list(std::move(items), a.type);
}

} // namespace

namespace {

// As markupsafe has it: what did not go through safe is escaped beside what did.
value added(machine& m, const value& a, const value& b) {
  if (!a.markup && !b.markup)
    return m.text(a.str() + b.str());
  const auto safe = [](const value& v) { return v.markup ? v.str() : html_escaped(v.str()); };
  value out = m.text(safe(a) + safe(b));
  out.markup = true;
  return out;
}

} // namespace

value machine::binary(const std::string& op, const value& a, const value& b) {
  for (const auto* v : {&a, &b}) {
    if (v->is(kind::undefined))
      fail((v->text ? *v->text : "the value is undefined") + "; it is an operand of " + op);
    if (v->markup && op != "+")
      unsupported("operator " + op + " on text that went through safe");
  }
  const bool numbers = a.is_number() && b.is_number();
  if (numbers && a.is_whole() && b.is_whole() && (op == "+" || op == "-" || op == "*"))
    return whole_arithmetic(*this, op[0], a.whole, b.whole);
  if (numbers && op == "+")
    return value::floating(a.number() + b.number());
  if (numbers && op == "-")
    return value::floating(a.number() - b.number());
  if (numbers && op == "*")
    return value::floating(a.number() * b.number());
  if (numbers)
    return op == "**" ? power(*this, a, b) : divide(*this, op, a, b);
  if (op == "+" && a.is(kind::string) && b.is(kind::string))
    return added(*this, a, b);
  if (op == "+" && sequences(a, b)) {
    auto items = a.items->items;
    items.insert(items.end(), b.items->items.begin(), b.items->items.end());
    charge(items.size());
    return value::list(std::move(items), a.type);
  }
  const auto repeats = [](const value& x) { return x.is(kind::string) || x.is(kind::list) || x.is(kind::tuple); };
  if (op == "*" && repeats(a) && b.is_whole())
    return repeat(*this, a, b.whole);
  if (op == "*" && repeats(b) && a.is_whole())
    return repeat(*this, b, a.whole);
  if (op == "%" && a.is(kind::string))
    return percent_format(*this, a.str(), b);
  fail("operator " + op + " does not take a " + type_name(a) + " and a " + type_name(b));
}

} // namespace troupe::jinja
