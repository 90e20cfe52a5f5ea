#include "model/tokenizer/jinja/machine.hpp"
#include "model/tokenizer/jinja/text_filters.hpp"
#include "model/tokenizer/unicode.hpp"
#include <algorithm>
#include <charconv>
#include <cmath>
#include <map>

namespace troupe::jinja {

std::vector<std::optional<value>> bind(machine& m, const std::string& function, arguments& args,
                                       std::initializer_list<std::string_view> names) {
  std::vector<std::optional<value>> out(names.size());
  if (args.positional.size() > names.size())
    m.fail(function + " takes at most " + std::to_string(names.size()) + " arguments, not " + std::to_string(args.positional.size()));
  for (std::size_t i = 0; i < args.positional.size(); ++i)
    out[i] = args.positional[i];
  for (const auto& [key, item] : args.named) {
    const auto it = std::find(names.begin(), names.end(), key);
    const auto at = static_cast<std::size_t>(it - names.begin());
    if (it == names.end() || out[at])
      m.fail(function + " takes no argument \"" + key + "\", or takes it once");
    out[at] = item;
  }
  return out;
}

namespace {

using bound = std::vector<std::optional<value>>;

std::string as_text(machine& m, const std::optional<value>& v, const char* what) {
  if (!v || !v->is(kind::string))
    m.fail(std::string(what) + " must be a string, not " + (v ? type_name(*v) : "absent"));
  return v->str();
}

std::int64_t as_whole(machine& m, const std::optional<value>& v, std::int64_t otherwise, const char* what) {
  if (!v)
    return otherwise;
  if (!v->is_whole())
    m.fail(std::string(what) + " must be an integer, not " + type_name(*v));
  return v->whole;
}

// An attribute path as make_attrgetter reads it: names and indices with dots between.
value path(machine& m, value v, const value& attribute) {
  if (attribute.is_whole())
    return m.item(v, attribute);
  std::string rest = to_text(attribute);
  for (std::size_t dot = 0; dot != std::string::npos;) {
    dot = rest.find('.');
    const std::string part = rest.substr(0, dot);
    rest = dot == std::string::npos ? "" : rest.substr(dot + 1);
    const bool index = !part.empty() && part.size() < 10 && part.find_first_not_of("0123456789") == std::string::npos;
    v = m.item(v, index ? value::integer(std::stoll(part)) : value::string(part));
  }
  return v;
}

value default_filter(machine& m, const value& v, arguments& args) {
  const auto a = bind(m, "default", args, {"default_value", "boolean"});
  const bool falsy = a[1] && truthy(*a[1]) && !truthy(v);
  return v.is(kind::undefined) || falsy ? a[0].value_or(value::string("")) : v;
}

value join_filter(machine& m, const value& v, arguments& args) {
  const auto a = bind(m, "join", args, {"d", "attribute"});
  const std::string between = a[0] ? soft_text(m, *a[0]) : "";
  std::string out;
  bool first = true;
  for (const auto& item : m.iterate(v)) {
    if (!first)
      out += between;
    first = false;
    out += soft_text(m, a[1] && !a[1]->is(kind::none) ? path(m, item, *a[1]) : item);
    m.charge(1 + out.size() / 4096);
  }
  return m.text(std::move(out));
}

value length_filter(machine& m, const value& v, arguments& args) {
  bind(m, "length", args, {});
  switch (v.type) {
  case kind::undefined:
    return value::integer(0);
  case kind::string:
    return value::integer(static_cast<std::int64_t>(length(v.str())));
  case kind::list:
  case kind::tuple:
  case kind::view:
    return value::integer(static_cast<std::int64_t>(v.items->items.size()));
  case kind::dict:
    return value::integer(static_cast<std::int64_t>(v.map->entries.size()));
  default:
    m.fail("a " + type_name(v) + " has no length");
  }
}

value tojson_filter(machine& m, const value& v, arguments& args) {
  const auto a = bind(m, "tojson", args, {"ensure_ascii", "indent", "separators", "sort_keys"});
  json_style style;
  style.ensure_ascii = a[0] && truthy(*a[0]);
  style.sort_keys = a[3] && truthy(*a[3]);
  if (a[1] && !a[1]->is(kind::none)) {
    style.pretty = true;
    style.item_separator = ",";
    if (a[1]->is(kind::string))
      style.indent = a[1]->str();
    else
      style.indent.assign(static_cast<std::size_t>(std::clamp<std::int64_t>(as_whole(m, a[1], 0, "tojson's indent"), 0, 64)), ' ');
  }
  if (a[2] && !a[2]->is(kind::none)) {
    const auto parts = m.iterate(*a[2]);
    if (parts.size() != 2)
      m.fail("tojson's separators are two strings");
    style.item_separator = as_text(m, parts[0], "tojson's separator");
    style.key_separator = as_text(m, parts[1], "tojson's separator");
  }
  if (v.is(kind::undefined))
    m.fail((v.text ? *v.text : "the value is undefined") + "; tojson cannot write it");
  return m.text(to_json(v, style));
}

value replace_filter(machine& m, const value& v, arguments& args) {
  const auto a = bind(m, "replace", args, {"old", "new", "count"});
  if (!a[0] || !a[1])
    m.fail("replace takes what to replace and with what");
  arguments inner;
  inner.positional = {value::string(soft_text(m, *a[0])), value::string(soft_text(m, *a[1]))};
  if (a[2] && !a[2]->is(kind::none))
    inner.positional.push_back(*a[2]);
  return m.call(method(m, value::string(soft_text(m, v)), "replace"), inner);
}

value round_filter(machine& m, const value& v, arguments& args) {
  const auto a = bind(m, "round", args, {"precision", "method"});
  const auto digits = as_whole(m, a[0], 0, "round's precision");
  const std::string how = a[1] ? as_text(m, a[1], "round's method") : "common";
  if (!v.is_number() || (how != "common" && how != "ceil" && how != "floor") || digits < -300 || digits > 300)
    m.fail("round takes a number, a precision and common, ceil or floor");
  const double scale = std::pow(10.0, static_cast<double>(digits));
  if (how != "common")
    return value::floating((how == "ceil" ? std::ceil(v.number() * scale) : std::floor(v.number() * scale)) / scale);
  if (v.is_whole() && digits >= 0)
    return value::integer(v.whole); // Python's round keeps an int
  if (digits < 0)
    m.unsupported("round with a negative precision");
  // The decimal nearest to the double itself, ties to even: what printing with that many digits does.
  std::string text(400, '\0');
  const auto end = std::to_chars(text.data(), text.data() + text.size(), v.number(), std::chars_format::fixed, static_cast<int>(digits));
  double rounded = v.number();
  if (end.ec == std::errc())
    std::from_chars(text.data(), end.ptr, rounded);
  return value::floating(rounded);
}

// Python's int(text) and float(text), without underscores; nothing when it is none.
std::optional<double> parse_real(std::string_view s) {
  s = strip(s, true, true);
  if (!s.empty() && s.front() == '+')
    s.remove_prefix(1);
  double d = 0;
  const auto r = std::from_chars(s.data(), s.data() + s.size(), d);
  return r.ec == std::errc() && r.ptr == s.data() + s.size() && !s.empty() ? std::optional(d) : std::nullopt;
}

value int_filter(machine& m, const value& v, arguments& args) {
  const auto a = bind(m, "int", args, {"default", "base"});
  const value otherwise = a[0].value_or(value::integer(0));
  if (a[1] && !equal(*a[1], value::integer(10)))
    m.unsupported("the filter int with a base");
  if (v.is_whole())
    return value::integer(v.whole);
  std::optional<double> d;
  if (v.is(kind::string)) {
    auto s = strip(v.str(), true, true);
    if (!s.empty() && s.front() == '+')
      s.remove_prefix(1);
    std::int64_t i = 0;
    if (const auto r = std::from_chars(s.data(), s.data() + s.size(), i); r.ec == std::errc() && r.ptr == s.data() + s.size())
      return value::integer(i);
    d = parse_real(s);
  } else if (v.is(kind::floating)) {
    d = v.real;
  }
  if (!d || !std::isfinite(*d))
    return otherwise;
  if (std::abs(*d) > 9.2e18)
    m.unsupported("an integer beyond 64 bits");
  return value::integer(static_cast<std::int64_t>(*d));
}

value float_filter(machine& m, const value& v, arguments& args) {
  const auto a = bind(m, "float", args, {"default"});
  if (v.is_number())
    return value::floating(v.number());
  const auto d = v.is(kind::string) ? parse_real(v.str()) : std::nullopt;
  return d ? value::floating(*d) : a[0].value_or(value::floating(0));
}

value first_or_last(machine& m, const value& v, bool first) {
  if (v.is(kind::iterator) && !first)
    m.fail("a generator has no last item");
  const auto items = m.iterate(v);
  if (items.empty())
    return value::undefined_named("no " + std::string(first ? "first" : "last") + " item, sequence was empty");
  return first ? items.front() : items.back();
}

value map_filter(machine& m, const value& v, arguments& args) {
  std::vector<value> out;
  if (!truthy(v)) // none is no sequence, but Jinja does not look
    return value::list({}, kind::iterator);
  if (args.positional.empty()) {
    const auto a = bind(m, "map", args, {"attribute", "default"});
    if (!a[0])
      m.fail("map takes a filter's name or attribute=...");
    for (const auto& item : m.iterate(v)) {
      value got = path(m, item, *a[0]);
      if (got.is(kind::undefined) && a[1])
        got = *a[1];
      out.push_back(std::move(got));
    }
  } else {
    const auto name = as_text(m, args.positional.front(), "map's filter");
    args.positional.erase(args.positional.begin());
    for (const auto& item : m.iterate(v)) {
      auto copy = args;
      out.push_back(m.filter(name, item, copy));
    }
  }
  return value::list(std::move(out), kind::iterator);
}

// select, reject, selectattr and rejectattr.
value select(machine& m, const value& v, arguments& args, bool wanted, bool by_attribute) {
  if (!truthy(v))
    return value::list({}, kind::iterator);
  std::optional<value> attribute;
  if (by_attribute) {
    if (args.positional.empty())
      m.fail("selectattr and rejectattr take an attribute");
    attribute = args.positional.front();
    args.positional.erase(args.positional.begin());
  }
  std::optional<std::string> test;
  if (!args.positional.empty()) {
    test = as_text(m, args.positional.front(), "the test");
    args.positional.erase(args.positional.begin());
  }
  std::vector<value> out;
  for (const auto& item : m.iterate(v)) {
    const value tested = attribute ? path(m, item, *attribute) : item;
    auto copy = args;
    if ((test ? m.test(*test, tested, copy) : truthy(tested)) == wanted)
      out.push_back(item);
  }
  return value::list(std::move(out), kind::iterator);
}

value pairs_of(const mapping& map, kind k) {
  std::vector<value> out;
  for (const auto& [key, item] : map.entries)
    out.push_back(value::list({key, item}, kind::tuple));
  return value::list(std::move(out), k);
}

value items_filter(machine& m, const value& v, arguments& args) {
  bind(m, "items", args, {});
  if (v.is(kind::undefined))
    return value::list({}, kind::iterator);
  if (!v.is(kind::dict))
    m.fail("items takes a dict, not a " + type_name(v));
  return pairs_of(*v.map, kind::iterator);
}

// What sort, unique, min and max compare: strings without their case unless asked.
value sort_key(machine& m, const value& item, const std::optional<value>& attribute, bool case_sensitive) {
  const value v = attribute && !attribute->is(kind::none) ? path(m, item, *attribute) : item;
  return v.is(kind::string) && !case_sensitive ? value::string(unicode::lower(v.str())) : v;
}

void stable_order(machine& m, std::vector<value>& items, const std::optional<value>& attribute, bool case_sensitive, bool reverse) {
  std::vector<std::pair<value, value>> keyed;
  for (const auto& item : items)
    keyed.emplace_back(sort_key(m, item, attribute, case_sensitive), item);
  m.charge(items.size() * 16);
  // Insertion by halves: a comparison that fails throws between two moves, and none needs to be a strict order.
  std::vector<std::pair<value, value>> sorted;
  for (auto& entry : keyed) {
    const auto before = [&](const auto& a, const auto& b) {
      return reverse ? m.order(b.first, a.first) < 0 : m.order(a.first, b.first) == -1;
    };
    sorted.insert(std::upper_bound(sorted.begin(), sorted.end(), entry, before), entry);
  }
  items.clear();
  for (auto& entry : sorted)
    items.push_back(std::move(entry.second));
}

value sort_filter(machine& m, const value& v, arguments& args) {
  const auto a = bind(m, "sort", args, {"reverse", "case_sensitive", "attribute"});
  auto items = m.iterate(v);
  if (a[2] && a[2]->is(kind::string) && a[2]->str().find(',') != std::string::npos)
    m.unsupported("sort by more than one attribute");
  stable_order(m, items, a[2], a[1] && truthy(*a[1]), a[0] && truthy(*a[0]));
  return value::list(std::move(items));
}

value dictsort_filter(machine& m, const value& v, arguments& args) {
  const auto a = bind(m, "dictsort", args, {"case_sensitive", "by", "reverse"});
  if (!v.is(kind::dict))
    m.fail("dictsort takes a dict, not a " + type_name(v));
  const bool by_value = a[1] && as_text(m, a[1], "dictsort's by") == "value";
  auto items = pairs_of(*v.map, kind::list).items->items;
  stable_order(m, items, value::integer(by_value ? 1 : 0), a[0] && truthy(*a[0]), a[2] && truthy(*a[2]));
  return value::list(std::move(items));
}

value unique_filter(machine& m, const value& v, arguments& args) {
  const auto a = bind(m, "unique", args, {"case_sensitive", "attribute"});
  std::vector<value> out;
  mapping seen;
  for (const auto& item : m.iterate(v)) {
    const auto key = sort_key(m, item, a[1], a[0] && truthy(*a[0]));
    if (hash_key(key).empty())
      m.fail("unique cannot compare a " + type_name(key));
    if (seen.find(key) == nullptr)
      out.push_back(item);
    seen.set(key, value::none());
  }
  return value::list(std::move(out), kind::iterator);
}

value extreme(machine& m, const value& v, arguments& args, int wanted) {
  const auto a = bind(m, wanted < 0 ? "min" : "max", args, {"case_sensitive", "attribute"});
  const auto items = m.iterate(v);
  if (items.empty())
    return value::undefined_named("no aggregated item, sequence was empty");
  const value* best = &items.front();
  for (const auto& item : items)
    if (m.order(sort_key(m, item, a[1], a[0] && truthy(*a[0])), sort_key(m, *best, a[1], a[0] && truthy(*a[0]))) == wanted)
      best = &item;
  return *best;
}

value sum_filter(machine& m, const value& v, arguments& args) {
  const auto a = bind(m, "sum", args, {"attribute", "start"});
  value total = a[1].value_or(value::integer(0));
  for (const auto& item : m.iterate(v))
    total = m.binary("+", total, a[0] && !a[0]->is(kind::none) ? path(m, item, *a[0]) : item);
  return total;
}

value reverse_filter(machine& m, const value& v, arguments& args) {
  bind(m, "reverse", args, {});
  if (v.is(kind::string)) {
    auto all = characters(v.str());
    std::reverse(all.begin(), all.end());
    return m.text(from_characters(all));
  }
  auto items = m.iterate(v);
  std::reverse(items.begin(), items.end());
  return value::list(std::move(items), kind::iterator);
}

value batch_filter(machine& m, const value& v, arguments& args) {
  const auto a = bind(m, "batch", args, {"linecount", "fill_with"});
  const auto n = as_whole(m, a[0], 0, "batch's size");
  if (n < 1 || n > 1'000'000)
    m.fail("batch's size must be from 1 to 1000000");
  std::vector<value> out, row;
  for (const auto& item : m.iterate(v)) {
    if (static_cast<std::int64_t>(row.size()) == n)
      out.push_back(value::list(std::exchange(row, {})));
    row.push_back(item);
  }
  if (!row.empty()) {
    if (a[1] && !a[1]->is(kind::none))
      row.resize(static_cast<std::size_t>(n), *a[1]);
    out.push_back(value::list(std::move(row)));
  }
  return value::list(std::move(out), kind::iterator);
}

value slice_filter(machine& m, const value& v, arguments& args) {
  const auto a = bind(m, "slice", args, {"slices", "fill_with"});
  const auto n = as_whole(m, a[0], 0, "slice's number");
  if (n < 1 || n > 1'000'000)
    m.fail("slice's number must be from 1 to 1000000");
  const auto items = m.iterate(v);
  const auto size = static_cast<std::int64_t>(items.size()), each = size / n, longer = size % n;
  m.charge(static_cast<std::size_t>(n));
  std::vector<value> out;
  for (std::int64_t i = 0, at = 0; i < n; ++i) {
    const std::int64_t count = each + (i < longer ? 1 : 0);
    std::vector<value> part(items.begin() + at, items.begin() + at + count);
    at += count;
    if (i >= longer && a[1] && !a[1]->is(kind::none))
      part.push_back(*a[1]);
    out.push_back(value::list(std::move(part)));
  }
  return value::list(std::move(out), kind::iterator);
}

value safe_filter(machine& m, const value& v, arguments& args) {
  bind(m, "safe", args, {});
  value out = value::string(to_text(v));
  out.markup = true;
  return out;
}

value abs_filter(machine& m, const value& v, arguments& args) {
  bind(m, "abs", args, {});
  if (!v.is_number())
    m.fail("abs takes a number, not a " + type_name(v));
  if (v.is(kind::floating))
    return value::floating(std::abs(v.real));
  return v.whole < 0 ? m.binary("-", value::integer(0), v) : value::integer(v.whole);
}

value trim_filter(machine& m, const value& v, arguments& args) {
  const auto a = bind(m, "trim", args, {"chars"});
  const bool set = a[0] && !a[0]->is(kind::none);
  if (set)
    as_text(m, a[0], "trim's characters");
  return m.text(std::string(strip(soft_text(m, v), true, true, set ? &*a[0] : nullptr)));
}

using filter_function = value (*)(machine&, const value&, arguments&);

template <std::string (*convert)(std::string_view)>
value by_text(machine& m, const value& v, arguments& args) {
  bind(m, "the filter", args, {});
  return m.text(convert(soft_text(m, v)));
}

const std::map<std::string_view, filter_function>& filters() {
  static const std::map<std::string_view, filter_function> all = {
      {"abs", abs_filter},
      {"attr", [](machine& m, const value& v,
                  arguments& args) { return m.attribute(v, as_text(m, bind(m, "attr", args, {"name"})[0], "attr's name")); }},
      {"batch", batch_filter},
      {"capitalize", by_text<unicode::capitalize>},
      {"center", center_filter},
      {"count", length_filter},
      {"d", default_filter},
      {"default", default_filter},
      {"dictsort", dictsort_filter},
      {"e", escape_filter},
      {"escape", escape_filter},
      {"first",
       [](machine& m, const value& v, arguments& args) {
         bind(m, "first", args, {});
         return first_or_last(m, v, true);
       }},
      {"float", float_filter},
      {"format", format_filter},
      {"indent", indent_filter},
      {"int", int_filter},
      {"items", items_filter},
      {"join", join_filter},
      {"last",
       [](machine& m, const value& v, arguments& args) {
         bind(m, "last", args, {});
         return first_or_last(m, v, false);
       }},
      {"length", length_filter},
      {"list",
       [](machine& m, const value& v, arguments& args) {
         bind(m, "list", args, {});
         return value::list(m.iterate(v));
       }},
      {"lower", by_text<unicode::lower>},
      {"map", map_filter},
      {"max", [](machine& m, const value& v, arguments& args) { return extreme(m, v, args, 1); }},
      {"min", [](machine& m, const value& v, arguments& args) { return extreme(m, v, args, -1); }},
      {"reject", [](machine& m, const value& v, arguments& args) { return select(m, v, args, false, false); }},
      {"rejectattr", [](machine& m, const value& v, arguments& args) { return select(m, v, args, false, true); }},
      {"replace", replace_filter},
      {"reverse", reverse_filter},
      {"round", round_filter},
      {"safe", safe_filter},
      {"select", [](machine& m, const value& v, arguments& args) { return select(m, v, args, true, false); }},
      {"selectattr", [](machine& m, const value& v, arguments& args) { return select(m, v, args, true, true); }},
      {"sort", sort_filter},
      {"string",
       [](machine& m, const value& v, arguments& args) {
         bind(m, "string", args, {});
         return v.markup ? v : m.text(to_text(v));
       }},
      {"sum", sum_filter},
      {"slice", slice_filter},
      {"title", title_filter},
      {"tojson", tojson_filter},
      {"trim", trim_filter},
      {"truncate", truncate_filter},
      {"unique", unique_filter},
      {"upper", by_text<unicode::upper>},
      {"wordcount", wordcount_filter},
  };
  return all;
}

} // namespace

value machine::filter(const std::string& name, const value& input, arguments& args) {
  const auto it = filters().find(name);
  if (it == filters().end())
    unsupported("the filter \"" + name + "\"");
  const level guard(*this);
  charge(1);
  return it->second(*this, input, args);
}

} // namespace troupe::jinja
