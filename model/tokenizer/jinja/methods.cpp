#include "model/tokenizer/jinja/formatting.hpp"
#include "model/tokenizer/unicode.hpp"
#include "model/tokenizer/utf8.hpp"
#include <algorithm>
#include <array>
#include <ctime>
#include <map>

namespace troupe::jinja {
namespace {

using names = std::initializer_list<std::string_view>;
using bound = std::vector<std::optional<value>>;

bool given(const std::optional<value>& v) { return v && !v->is(kind::none); }

const std::string& text_of(machine& m, const std::optional<value>& v, const char* method) {
  if (!v || !v->is(kind::string))
    m.fail(std::string(method) + " takes a string, not " + (v ? type_name(*v) : "nothing"));
  return v->str();
}

std::int64_t whole_of(machine& m, const std::optional<value>& v, std::int64_t otherwise, const char* method) {
  if (v && !v->is_whole())
    m.fail(std::string(method) + " takes an integer, not " + type_name(*v));
  return v ? v->whole : otherwise;
}

value strip_method(machine& m, const std::string& s, arguments& args, bool left, bool right) {
  const auto a = bind(m, "strip", args, {"chars"});
  if (given(a[0]))
    text_of(m, a[0], "strip");
  return m.text(std::string(strip(s, left, right, given(a[0]) ? &*a[0] : nullptr)));
}

value affix_method(machine& m, const std::string& s, arguments& args, bool start) {
  const auto a = bind(m, start ? "startswith" : "endswith", args, {"prefix"});
  const auto holds = [&](const value& v) {
    const auto& affix = text_of(m, v, start ? "startswith" : "endswith");
    return start ? s.starts_with(affix) : s.ends_with(affix);
  };
  if (a[0] && a[0]->is(kind::tuple))
    return value::boolean(std::any_of(a[0]->items->items.begin(), a[0]->items->items.end(), holds));
  return value::boolean(a[0] ? holds(*a[0]) : holds(value()));
}

value remove_affix(machine& m, const std::string& s, arguments& args, bool start) {
  const auto a = bind(m, "removeprefix", args, {"affix"});
  const auto& affix = text_of(m, a[0], "removeprefix");
  if (start ? !s.starts_with(affix) : !s.ends_with(affix))
    return value::string(s);
  return value::string(start ? s.substr(affix.size()) : s.substr(0, s.size() - affix.size()));
}

value replace_method(machine& m, const std::string& s, arguments& args) {
  const auto a = bind(m, "replace", args, {"old", "new", "count"});
  const auto &from = text_of(m, a[0], "replace"), &to = text_of(m, a[1], "replace");
  auto left = whole_of(m, a[2], -1, "replace");
  std::string out;
  std::size_t done = 0;
  const auto put = [&](std::size_t at) {
    m.charge(1 + (at - done + to.size()) / 16);
    out.append(s, done, at - done).append(to);
    done = at;
    --left;
  };
  if (from.empty()) { // stands before each character and at the end
    for (std::size_t pos = 0; left != 0 && pos <= s.size();) {
      put(pos);
      if (pos == s.size())
        break;
      utf8::next(s, pos);
    }
  } else {
    for (auto at = s.find(from); left != 0 && at != std::string::npos; at = s.find(from, at + from.size())) {
      put(at);
      done = at + from.size();
    }
  }
  return m.text(out.append(s, done));
}

value spaces_split(const std::string& s, std::int64_t left, bool from_right) {
  std::vector<value> out;
  std::string_view rest = strip(s, !from_right, from_right);
  while (!strip(rest, true, true).empty()) {
    std::size_t cut = from_right ? rest.size() : 0;
    if (left == 0)
      cut = from_right ? 0 : rest.size();
    else if (from_right)
      for (std::size_t at = cut; at > 0 && !is_space(utf8::previous(rest, at));)
        cut = at;
    else
      for (std::size_t at = cut; at < rest.size() && !is_space(utf8::next(rest, at));)
        cut = at;
    out.push_back(value::string(std::string(from_right ? rest.substr(cut) : rest.substr(0, cut))));
    rest = from_right ? strip(rest.substr(0, cut), false, true) : strip(rest.substr(cut), true, false);
    --left;
  }
  if (from_right)
    std::reverse(out.begin(), out.end());
  return value::list(std::move(out));
}

value split_method(machine& m, const std::string& s, arguments& args, bool from_right) {
  const auto a = bind(m, "split", args, {"sep", "maxsplit"});
  auto left = whole_of(m, a[1], -1, "split");
  m.charge(s.size() / 16);
  if (!given(a[0]))
    return spaces_split(s, left, from_right);
  const auto& by = text_of(m, a[0], "split");
  if (by.empty())
    m.fail("split by an empty string");
  std::vector<value> out;
  std::string_view rest = s;
  for (auto at = from_right ? rest.rfind(by) : rest.find(by); left != 0 && at != std::string_view::npos; --left) {
    out.push_back(value::string(std::string(from_right ? rest.substr(at + by.size()) : rest.substr(0, at))));
    rest = from_right ? rest.substr(0, at) : rest.substr(at + by.size());
    at = from_right ? rest.rfind(by) : rest.find(by);
  }
  out.push_back(value::string(std::string(rest)));
  if (from_right)
    std::reverse(out.begin(), out.end());
  return value::list(std::move(out));
}

value splitlines_method(machine& m, const std::string& s, arguments& args) {
  const auto a = bind(m, "splitlines", args, {"keepends"});
  std::vector<value> out;
  std::size_t begin = 0;
  for (std::size_t pos = 0; pos < s.size();) {
    const std::size_t at = pos;
    const char32_t c = utf8::next(s, pos);
    if (!((c >= 0xA && c <= 0xD) || (c >= 0x1C && c <= 0x1E) || c == 0x85 || c == 0x2028 || c == 0x2029))
      continue;
    if (c == '\r' && pos < s.size() && s[pos] == '\n')
      ++pos;
    out.push_back(value::string(s.substr(begin, (a[0] && truthy(*a[0]) ? pos : at) - begin)));
    begin = pos;
  }
  if (begin < s.size())
    out.push_back(value::string(s.substr(begin)));
  return value::list(std::move(out));
}

value find_method(machine& m, const std::string& s, arguments& args, bool last, bool must = false) {
  const auto a = bind(m, "find", args, {"sub"});
  const auto& part = text_of(m, a[0], "find");
  const auto at = last ? s.rfind(part) : s.find(part);
  if (must && at == std::string::npos)
    m.fail("index did not find the string");
  return value::integer(at == std::string::npos ? -1 : static_cast<std::int64_t>(length(std::string_view(s).substr(0, at))));
}

// Three parts: before, the separator, behind it; the whole and two empty ones where there is none.
value partition_method(machine& m, const std::string& s, arguments& args, bool last) {
  const auto a = bind(m, "partition", args, {"sep"});
  const auto& by = text_of(m, a[0], "partition");
  if (by.empty())
    m.fail("partition by an empty string");
  const auto at = last ? s.rfind(by) : s.find(by);
  std::vector<std::string> parts = {s.substr(0, at), by, at == std::string::npos ? "" : s.substr(at + by.size())};
  if (at == std::string::npos)
    parts = last ? std::vector<std::string>{"", "", s} : std::vector<std::string>{s, "", ""};
  std::vector<value> out;
  for (auto& part : parts)
    out.push_back(value::string(std::move(part)));
  return value::list(std::move(out), kind::tuple);
}

value justify_method(machine& m, const std::string& s, arguments& args, int side) {
  const auto a = bind(m, "center", args, {"width", "fillchar"});
  const std::string fill = a[1] ? text_of(m, a[1], "center") : " ";
  if (!a[0] || length(fill) != 1)
    m.fail("center, ljust and rjust take a width and one character");
  return justified(m, s, whole_of(m, a[0], 0, "center"), side, characters(fill)[0]);
}

value zfill_method(machine& m, const std::string& s, arguments& args) {
  const auto a = bind(m, "zfill", args, {"width"});
  const bool sign = s.starts_with('+') || s.starts_with('-');
  if (!a[0])
    m.fail("zfill takes a width");
  return m.text(s.substr(0, sign ? 1 : 0) +
                justified(m, s.substr(sign ? 1 : 0), whole_of(m, a[0], 0, "zfill") - (sign ? 1 : 0), 1, U'0').str());
}

value count_method(machine& m, const std::string& s, arguments& args) {
  const auto a = bind(m, "count", args, {"sub"});
  const auto& part = text_of(m, a[0], "count");
  std::int64_t n = 0;
  for (auto at = s.find(part); !part.empty() && at != std::string::npos; at = s.find(part, at + part.size()))
    ++n;
  return value::integer(part.empty() ? static_cast<std::int64_t>(length(s)) + 1 : n);
}

value join_method(machine& m, const std::string& s, arguments& args) {
  const auto a = bind(m, "join", args, {"iterable"});
  std::string out;
  bool first = true;
  for (const auto& item : m.iterate(a[0].value_or(value::none()))) {
    if (!first)
      out += s;
    first = false;
    out += text_of(m, item, "join");
    m.charge(1 + out.size() / 4096);
  }
  return m.text(std::move(out));
}

// isdigit and its like: whether all characters, and at least one, are of a kind.
value all_are(machine& m, const std::string& s, arguments& args, bool (*is)(char32_t)) {
  bind(m, "the method", args, {});
  for (std::size_t pos = 0; pos < s.size();)
    if (!is(utf8::next(s, pos)))
      return value::boolean(false);
  return value::boolean(!s.empty());
}

value cased(machine& m, const std::string& s, arguments& args, std::string (*convert)(std::string_view)) {
  bind(m, "the method", args, {});
  return m.text(convert(s));
}

value has_case(machine& m, const std::string& s, arguments& args, const char* test) {
  bind(m, "the method", args, {});
  arguments none;
  return value::boolean(m.test(test, value::string(s), none));
}

using string_method = value (*)(machine&, const std::string&, arguments&);

const std::map<std::string_view, string_method>& string_methods() {
  using str = const std::string&;
  static const std::map<std::string_view, string_method> all = {
      {"capitalize", [](machine& m, str s, arguments& a) { return cased(m, s, a, unicode::capitalize); }},
      {"center", [](machine& m, str s, arguments& a) { return justify_method(m, s, a, 0); }},
      {"count", count_method},
      {"endswith", [](machine& m, str s, arguments& a) { return affix_method(m, s, a, false); }},
      {"find", [](machine& m, str s, arguments& a) { return find_method(m, s, a, false); }},
      {"format", [](machine& m, str s, arguments& a) { return brace_format(m, s, a); }},
      {"index", [](machine& m, str s, arguments& a) { return find_method(m, s, a, false, true); }},
      {"isalnum",
       [](machine& m, str s, arguments& a) {
         return all_are(m, s, a, [](char32_t c) { return unicode::is_letter(c) || unicode::is_numeric(c); });
       }},
      {"isalpha", [](machine& m, str s, arguments& a) { return all_are(m, s, a, unicode::is_letter); }},
      {"isdigit", [](machine& m, str s, arguments& a) { return all_are(m, s, a, unicode::is_digit); }},
      {"isspace", [](machine& m, str s, arguments& a) { return all_are(m, s, a, is_space); }},
      {"islower", [](machine& m, str s, arguments& a) { return has_case(m, s, a, "lower"); }},
      {"isupper", [](machine& m, str s, arguments& a) { return has_case(m, s, a, "upper"); }},
      {"join", join_method},
      {"ljust", [](machine& m, str s, arguments& a) { return justify_method(m, s, a, -1); }},
      {"lower", [](machine& m, str s, arguments& a) { return cased(m, s, a, unicode::lower); }},
      {"lstrip", [](machine& m, str s, arguments& a) { return strip_method(m, s, a, true, false); }},
      {"partition", [](machine& m, str s, arguments& a) { return partition_method(m, s, a, false); }},
      {"removeprefix", [](machine& m, str s, arguments& a) { return remove_affix(m, s, a, true); }},
      {"removesuffix", [](machine& m, str s, arguments& a) { return remove_affix(m, s, a, false); }},
      {"replace", replace_method},
      {"rfind", [](machine& m, str s, arguments& a) { return find_method(m, s, a, true); }},
      {"rindex", [](machine& m, str s, arguments& a) { return find_method(m, s, a, true, true); }},
      {"rjust", [](machine& m, str s, arguments& a) { return justify_method(m, s, a, 1); }},
      {"rpartition", [](machine& m, str s, arguments& a) { return partition_method(m, s, a, true); }},
      {"rsplit", [](machine& m, str s, arguments& a) { return split_method(m, s, a, true); }},
      {"rstrip", [](machine& m, str s, arguments& a) { return strip_method(m, s, a, false, true); }},
      {"split", [](machine& m, str s, arguments& a) { return split_method(m, s, a, false); }},
      {"splitlines", splitlines_method},
      {"startswith", [](machine& m, str s, arguments& a) { return affix_method(m, s, a, true); }},
      {"strip", [](machine& m, str s, arguments& a) { return strip_method(m, s, a, true, true); }},
      {"title", [](machine& m, str s, arguments& a) { return cased(m, s, a, unicode::title); }},
      {"upper", [](machine& m, str s, arguments& a) { return cased(m, s, a, unicode::upper); }},
      {"zfill", zfill_method},
  };
  return all;
}

// Methods that Python has and this does not: refused when asked for, so that no template reads them as undefined.
constexpr std::string_view refused_of_string[] = {"casefold",  "encode",       "expandtabs", "format_map",  "isascii",
                                                  "isdecimal", "isidentifier", "isnumeric",  "isprintable", "istitle",
                                                  "maketrans", "swapcase",     "translate"};
constexpr std::string_view refused_of_list[] = {"append", "clear", "copy",   "count",   "extend", "index",
                                                "insert", "pop",   "remove", "reverse", "sort"};
constexpr std::string_view refused_of_dict[] = {"clear", "copy", "fromkeys", "pop", "popitem", "setdefault", "update"};

template <std::size_t n>
value refused(machine& m, const std::string_view (&all)[n], const value& base, const std::string& name) {
  if (std::find(std::begin(all), std::end(all), name) != std::end(all))
    m.unsupported("the method " + type_name(base) + "." + name);
  return {};
}

value dict_method(machine& m, const value& base, const std::string& name) {
  const auto all = [&](auto pick) {
    return value::function(name, [map = base.map, pick, name](machine& inner, arguments& args) {
      bind(inner, name, args, {});
      std::vector<value> out;
      for (const auto& entry : map->entries)
        out.push_back(pick(entry));
      inner.charge(out.size());
      return value::list(std::move(out), kind::view);
    });
  };
  using entry = std::pair<value, value>;
  if (name == "items")
    return all([](const entry& e) { return value::list({e.first, e.second}, kind::tuple); });
  if (name == "keys")
    return all([](const entry& e) { return e.first; });
  if (name == "values")
    return all([](const entry& e) { return e.second; });
  if (name == "get")
    return value::function(name, [map = base.map](machine& inner, arguments& args) {
      const auto a = bind(inner, "get", args, {"key", "default"});
      if (!a[0] || hash_key(*a[0]).empty())
        inner.fail("get takes a key");
      const value* found = map->find(*a[0]);
      return found != nullptr ? *found : a[1].value_or(value::none());
    });
  return refused(m, refused_of_dict, base, name);
}

} // namespace

value method(machine& m, const value& base, const std::string& name) {
  if (base.is(kind::dict))
    return dict_method(m, base, name);
  if (base.is(kind::list))
    return refused(m, refused_of_list, base, name);
  if (!base.is(kind::string))
    return {};
  const auto it = string_methods().find(name);
  if (it == string_methods().end())
    return refused(m, refused_of_string, base, name);
  if (base.markup)
    m.unsupported("a method of text that went through safe");
  return value::function(name, [text = base.text, run = it->second](machine& inner, arguments& args) { return run(inner, *text, args); });
}

namespace {

constexpr std::int64_t max_range = 100'000; // the sandbox's

value range(machine& m, arguments& args) {
  const auto a = bind(m, "range", args, {"start", "stop", "step"});
  std::int64_t start = whole_of(m, a[0], 0, "range"), stop = whole_of(m, a[1], 0, "range");
  const std::int64_t step = whole_of(m, a[2], 1, "range");
  if (!a[0] || step == 0)
    m.fail("range takes its end, and a step that is not 0");
  if (!a[1])
    stop = std::exchange(start, 0);
  std::vector<value> out;
  for (std::int64_t i = start; step > 0 ? i < stop : i > stop;) {
    if (static_cast<std::int64_t>(out.size()) >= max_range)
      m.fail("a range of more than " + std::to_string(max_range) + " numbers");
    out.push_back(value::integer(i));
    if (__builtin_add_overflow(i, step, &i))
      break;
  }
  m.charge(out.size());
  return value::list(std::move(out));
}

value entries(machine& m, arguments& args, kind k) {
  std::vector<std::pair<value, value>> all;
  if (args.positional.size() > 1)
    m.fail("dict takes one positional argument");
  if (!args.positional.empty()) {
    if (!args.positional[0].is(kind::dict))
      m.unsupported("dict() of a " + type_name(args.positional[0]));
    all = args.positional[0].map->entries;
  }
  for (const auto& [key, item] : args.named) {
    if (k == kind::space && key.starts_with("_"))
      m.unsupported("the attribute \"" + key + "\"");
    all.emplace_back(value::string(key), item);
  }
  value out = m.make_dict(all);
  out.type = k;
  return out;
}

value strftime_now(machine& m, arguments& args) {
  const auto a = bind(m, "strftime_now", args, {"format"});
  const auto& format = text_of(m, a[0], "strftime_now");
  const std::time_t now = m.now();
  std::tm local{};
  localtime_r(&now, &local);
  std::array<char, 1024> out{};
  if (format.size() > 200)
    m.unsupported("strftime_now with a format of more than 200 bytes");
  const auto size = std::strftime(out.data(), out.size(), format.c_str(), &local);
  return m.text(std::string(out.data(), size));
}

} // namespace

std::optional<value> global(machine& m, const std::string& name) {
  if (name == "range")
    return value::function(name, range);
  if (name == "dict")
    return value::function(name, [](machine& inner, arguments& args) { return entries(inner, args, kind::dict); });
  if (name == "namespace")
    return value::function(name, [](machine& inner, arguments& args) { return entries(inner, args, kind::space); });
  if (name == "strftime_now")
    return value::function(name, strftime_now);
  if (name == "raise_exception")
    return value::function(name, [](machine& inner, arguments& args) -> value {
      const auto a = bind(inner, "raise_exception", args, {"message"});
      auto message = a[0] ? to_text(*a[0]) : std::string();
      std::replace(message.begin(), message.end(), '\n', ' ');
      inner.fail("the template refuses: " + message);
    });
  if (name == "cycler" || name == "joiner" || name == "lipsum")
    m.unsupported("the function " + name);
  return std::nullopt;
}

} // namespace troupe::jinja
