#include "model/tokenizer/jinja/text_filters.hpp"
#include "model/tokenizer/jinja/formatting.hpp"
#include "model/tokenizer/unicode.hpp"
#include "model/tokenizer/utf8.hpp"
#include <algorithm>

namespace troupe::jinja {

std::string soft_text(machine& m, const value& v) {
  if (v.markup)
    m.unsupported("a filter on text that went through safe");
  return to_text(v);
}

namespace {

std::int64_t size_of(machine& m, const std::optional<value>& v, std::int64_t otherwise, const char* what) {
  if (v && !v->is_whole())
    m.fail(std::string(what) + " must be an integer, not " + type_name(*v));
  return v ? v->whole : otherwise;
}

// Words begin behind spaces and opening brackets.
std::string titled(std::string_view text) {
  std::string out;
  bool begins = true;
  for (std::size_t pos = 0; pos < text.size();) {
    const std::size_t at = pos;
    const char32_t c = utf8::next(text, pos);
    const auto one = text.substr(at, pos - at);
    const bool between = is_space(c) || (c < 0x80 && std::string_view("-({[<").find(static_cast<char>(c)) != std::string_view::npos);
    out += between ? std::string(one) : begins ? unicode::upper(one) : unicode::lower(one);
    begins = between;
  }
  return out;
}

} // namespace

value title_filter(machine& m, const value& v, arguments& args) {
  bind(m, "title", args, {});
  return m.text(titled(soft_text(m, v)));
}

value center_filter(machine& m, const value& v, arguments& args) {
  const auto a = bind(m, "center", args, {"width"});
  return justified(m, soft_text(m, v), size_of(m, a[0], 80, "center's width"), 0);
}

value escape_filter(machine& m, const value& v, arguments& args) {
  bind(m, "escape", args, {});
  if (v.markup)
    return v;
  value out = m.text(html_escaped(to_text(v)));
  out.markup = true;
  return out;
}

value format_filter(machine& m, const value& v, arguments& args) {
  if (!args.positional.empty() && !args.named.empty())
    m.fail("format takes arguments by position or by name, not both");
  if (args.named.empty())
    return percent_format(m, soft_text(m, v), value::list(args.positional, kind::tuple));
  std::vector<std::pair<value, value>> entries;
  for (const auto& [key, item] : args.named)
    entries.emplace_back(value::string(key), item);
  return percent_format(m, soft_text(m, v), m.make_dict(entries));
}

value indent_filter(machine& m, const value& v, arguments& args) {
  const auto a = bind(m, "indent", args, {"width", "first", "blank"});
  const std::string by =
      a[0] && a[0]->is(kind::string)
          ? a[0]->str()
          : std::string(static_cast<std::size_t>(std::clamp<std::int64_t>(size_of(m, a[0], 4, "indent's width"), 0, 1024)), ' ');
  const bool first = a[1] && truthy(*a[1]), blank = a[2] && truthy(*a[2]);
  const std::string text = soft_text(m, v);
  std::string out = first ? by : "";
  for (std::size_t begin = 0, line = 0;; ++line) {
    const auto end = text.find('\n', begin);
    const std::string part = text.substr(begin, end == std::string::npos ? end : end - begin);
    if (line > 0 && (blank || !part.empty()))
      out += by;
    out += part;
    if (end == std::string::npos)
      return m.text(std::move(out));
    out += '\n';
    begin = end + 1;
  }
}

value truncate_filter(machine& m, const value& v, arguments& args) {
  const auto a = bind(m, "truncate", args, {"length", "killwords", "end", "leeway"});
  const std::string end = a[2] ? soft_text(m, *a[2]) : "...";
  const auto most = size_of(m, a[0], 255, "truncate's length");
  const auto leeway = a[3] && !a[3]->is(kind::none) ? size_of(m, a[3], 0, "truncate's leeway") : 5;
  const auto kept = most - static_cast<std::int64_t>(length(end));
  if (kept < 0 || leeway < 0)
    m.fail("truncate's length must leave room for its end, and its leeway be 0 or more");
  const auto all = characters(soft_text(m, v));
  if (static_cast<std::int64_t>(all.size()) - leeway <= most)
    return m.text(from_characters(all));
  auto part = all.substr(0, static_cast<std::size_t>(kept));
  if (!(a[1] && truthy(*a[1])))
    part = part.substr(0, part.rfind(U' '));
  return m.text(from_characters(part) + end);
}

value wordcount_filter(machine& m, const value& v, arguments& args) {
  bind(m, "wordcount", args, {});
  const std::string text = soft_text(m, v);
  std::int64_t words = 0;
  bool inside = false;
  for (std::size_t pos = 0; pos < text.size();) {
    const char32_t c = utf8::next(text, pos);
    const bool word = c == U'_' || unicode::is_letter(c) || unicode::is_numeric(c);
    words += word && !inside ? 1 : 0;
    inside = word;
  }
  return value::integer(words);
}

} // namespace troupe::jinja
