#include "model/tokenizer/jinja/value.hpp"
#include "core/error.hpp"
#include "model/tokenizer/unicode.hpp"
#include "model/tokenizer/utf8.hpp"
#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <limits>

namespace troupe::jinja {
namespace {

constexpr int max_depth = 100; // of values inside values
constexpr std::string_view too_deep = "values nested deeper than 100";

} // namespace

value value::undefined_named(std::string name) {
  value v;
  v.text = std::make_shared<const std::string>(std::move(name));
  return v;
}

value value::none() {
  value v;
  v.type = kind::none;
  return v;
}

value value::boolean(bool b) {
  value v;
  v.type = kind::boolean;
  v.whole = b ? 1 : 0;
  return v;
}

value value::integer(std::int64_t i) {
  value v;
  v.type = kind::integer;
  v.whole = i;
  return v;
}

value value::floating(double d) {
  value v;
  v.type = kind::floating;
  v.real = d;
  return v;
}

value value::string(std::string s) {
  value v;
  v.type = kind::string;
  v.text = std::make_shared<const std::string>(std::move(s));
  return v;
}

value value::list(std::vector<value> items, kind k) {
  value v;
  v.type = k;
  v.items = std::make_shared<sequence>();
  v.items->items = std::move(items);
  return v;
}

value value::dict(std::shared_ptr<mapping> m, kind k) {
  value v;
  v.type = k;
  v.map = std::move(m);
  return v;
}

value value::function(std::string name, std::function<value(machine&, arguments&)> call) {
  value v;
  v.type = kind::callable;
  v.function_ = std::make_shared<callable>();
  v.function_->name = std::move(name);
  v.function_->call = std::move(call);
  return v;
}

namespace {

value convert(const nlohmann::ordered_json& json, int depth) {
  if (depth > max_depth)
    throw error(errc::bad_input, "chat template variables: " + std::string(too_deep));
  switch (json.type()) {
  case nlohmann::ordered_json::value_t::boolean:
    return value::boolean(json.get<bool>());
  case nlohmann::ordered_json::value_t::number_unsigned:
    if (json.get<std::uint64_t>() > static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max()))
      throw error(errc::unsupported, "chat template variables: integers above 2^63 are not supported");
    return value::integer(json.get<std::int64_t>());
  case nlohmann::ordered_json::value_t::number_integer:
    return value::integer(json.get<std::int64_t>());
  case nlohmann::ordered_json::value_t::number_float:
    return value::floating(json.get<double>());
  case nlohmann::ordered_json::value_t::string:
    return value::string(json.get<std::string>());
  case nlohmann::ordered_json::value_t::array: {
    std::vector<value> items;
    items.reserve(json.size());
    for (const auto& item : json)
      items.push_back(convert(item, depth + 1));
    return value::list(std::move(items));
  }
  case nlohmann::ordered_json::value_t::object: {
    auto map = std::make_shared<mapping>();
    for (const auto& [key, item] : json.items())
      map->set(value::string(key), convert(item, depth + 1));
    return value::dict(std::move(map));
  }
  default:
    return value::none();
  }
}

} // namespace

value value::from_json(const nlohmann::ordered_json& json) { return convert(json, 0); }

const value* mapping::find(const value& key) const {
  const auto it = index.find(hash_key(key));
  return it == index.end() ? nullptr : &entries[it->second].second;
}

void mapping::set(const value& key, value item) {
  const auto [it, fresh] = index.try_emplace(hash_key(key), entries.size());
  if (fresh)
    entries.emplace_back(key, std::move(item));
  else
    entries[it->second].second = std::move(item);
}

std::string hash_key(const value& key) {
  switch (key.type) {
  case kind::none:
    return "n";
  case kind::boolean:
  case kind::integer:
    return "i" + std::to_string(key.whole);
  case kind::floating:
    // Equal numbers are equal keys.
    if (std::nearbyint(key.real) == key.real && std::abs(key.real) < 9e15)
      return "i" + std::to_string(static_cast<std::int64_t>(key.real));
    return "f" + number_text(key.real);
  case kind::string:
    return "s" + key.str();
  case kind::tuple: {
    std::string out = "t";
    for (const auto& item : key.items->items) {
      const auto part = hash_key(item);
      if (part.empty())
        return {};
      out += std::to_string(part.size()) + ":" + part;
    }
    return out;
  }
  default:
    return {};
  }
}

bool truthy(const value& v) {
  switch (v.type) {
  case kind::undefined:
  case kind::none:
    return false;
  case kind::boolean:
  case kind::integer:
    return v.whole != 0;
  case kind::floating:
    return v.real != 0;
  case kind::string:
    return !v.str().empty();
  case kind::list:
  case kind::tuple:
  case kind::view:
    return !v.items->items.empty();
  case kind::dict:
    return !v.map->entries.empty();
  default:
    return true;
  }
}

bool equal(const value& a, const value& b, int depth) {
  if (depth > max_depth)
    throw error(errc::unsupported, "chat template: " + std::string(too_deep));
  if (a.is_whole() && b.is_whole())
    return a.whole == b.whole;
  if (a.is_number() && b.is_number())
    return a.number() == b.number();
  if (a.type != b.type)
    return false;
  switch (a.type) {
  case kind::undefined:
  case kind::none:
    return true;
  case kind::string:
    return a.str() == b.str();
  case kind::list:
  case kind::tuple:
    return std::equal(a.items->items.begin(), a.items->items.end(), b.items->items.begin(), b.items->items.end(),
                      [depth](const value& x, const value& y) { return equal(x, y, depth + 1); });
  case kind::dict:
    return a.map->entries.size() == b.map->entries.size() &&
           std::all_of(a.map->entries.begin(), a.map->entries.end(), [&](const auto& entry) {
             const value* other = b.map->find(entry.first);
             return other != nullptr && equal(entry.second, *other, depth + 1);
           });
  default:
    return a.items == b.items && a.map == b.map && a.function_ == b.function_;
  }
}

std::string type_name(const value& v) {
  switch (v.type) {
  case kind::undefined:
    return "Undefined";
  case kind::none:
    return "NoneType";
  case kind::boolean:
    return "bool";
  case kind::integer:
    return "int";
  case kind::floating:
    return "float";
  case kind::string:
    return "str";
  case kind::list:
    return "list";
  case kind::tuple:
    return "tuple";
  case kind::view:
    return "dict view";
  case kind::iterator:
    return "generator";
  case kind::dict:
    return "dict";
  case kind::space:
    return "namespace";
  case kind::callable:
    return "function";
  }
  return {};
}

std::string number_text(double d) {
  if (std::isnan(d))
    return "nan";
  if (std::isinf(d))
    return d > 0 ? "inf" : "-inf";
  std::array<char, 40> buffer{};
  const auto end = std::to_chars(buffer.data(), buffer.data() + buffer.size(), d, std::chars_format::scientific).ptr;
  const std::string_view shortest(buffer.data(), static_cast<std::size_t>(end - buffer.data()));
  int exponent = 0;
  const auto mark = shortest.find('e');
  const char* digits = shortest.data() + mark + 1;
  std::from_chars(*digits == '+' ? digits + 1 : digits, end, exponent);
  if (exponent < -4 || exponent >= 16) // Python's repr; to_chars writes the exponent with two digits as well
    return std::string(shortest);
  const auto fixed = std::to_chars(buffer.data(), buffer.data() + buffer.size(), d, std::chars_format::fixed).ptr;
  std::string text(buffer.data(), fixed);
  return text.find('.') == std::string::npos ? text + ".0" : text;
}

namespace {

bool is_printable(char32_t c) { return c == ' ' || unicode::is_printable(c); }

std::string quoted(const std::string& text) {
  const char quote = text.find('\'') != std::string::npos && text.find('"') == std::string::npos ? '"' : '\'';
  std::string out(1, quote);
  for (std::size_t pos = 0; pos < text.size();) {
    const char32_t c = utf8::next(text, pos);
    std::array<char, 16> escape{};
    if (c == static_cast<char32_t>(quote) || c == '\\')
      (out += '\\') += static_cast<char>(c);
    else if (c == '\n')
      out += "\\n";
    else if (c == '\r')
      out += "\\r";
    else if (c == '\t')
      out += "\\t";
    else if (is_printable(c))
      utf8::append(out, c);
    else if (std::snprintf(escape.data(), escape.size(),
                           c < 0x100     ? "\\x%02x"
                           : c < 0x10000 ? "\\u%04x"
                                         : "\\U%08x",
                           static_cast<unsigned>(c)) > 0)
      out += escape.data();
  }
  return out + quote;
}

} // namespace

std::string to_repr(const value& v, int depth) {
  if (depth > max_depth)
    throw error(errc::unsupported, "chat template: " + std::string(too_deep));
  const auto joined = [&](const auto& all, auto each) {
    std::string out;
    for (const auto& item : all)
      out += (out.empty() ? "" : ", ") + each(item);
    return out;
  };
  switch (v.type) {
  case kind::undefined:
    return "Undefined";
  case kind::none:
    return "None";
  case kind::boolean:
    return v.whole != 0 ? "True" : "False";
  case kind::integer:
    return std::to_string(v.whole);
  case kind::floating:
    return number_text(v.real);
  case kind::string:
    return quoted(v.str());
  case kind::list:
    return "[" + joined(v.items->items, [depth](const value& x) { return to_repr(x, depth + 1); }) + "]";
  case kind::tuple: {
    const auto inner = joined(v.items->items, [depth](const value& x) { return to_repr(x, depth + 1); });
    return "(" + inner + (v.items->items.size() == 1 ? ",)" : ")");
  }
  case kind::dict:
    return "{" +
           joined(v.map->entries, [depth](const auto& e) { return to_repr(e.first, depth + 1) + ": " + to_repr(e.second, depth + 1); }) +
           "}";
  default:
    throw error(errc::unsupported, "chat template: the text of a " + type_name(v) + " is not supported");
  }
}

std::string to_text(const value& v) {
  if (v.is(kind::string))
    return v.str();
  return v.is(kind::undefined) ? std::string() : to_repr(v);
}

namespace {

std::string json_string(const std::string& text, bool ensure_ascii) {
  std::string out = "\"";
  const auto unit = [&](unsigned c) {
    std::array<char, 16> escape{};
    std::snprintf(escape.data(), escape.size(), "\\u%04x", c);
    out += escape.data();
  };
  for (std::size_t pos = 0; pos < text.size();) {
    const char32_t c = utf8::next(text, pos);
    constexpr std::string_view names = "\b\f\n\r\t\"\\", letters = "bfnrt\"\\";
    if (const auto at = c < 0x80 ? names.find(static_cast<char>(c)) : std::string_view::npos; at != std::string_view::npos)
      (out += '\\') += letters[at];
    else if (c < 0x20 || (ensure_ascii && c >= 0x7F && c < 0x10000))
      unit(static_cast<unsigned>(c));
    else if (ensure_ascii && c >= 0x10000) {
      unit(static_cast<unsigned>(0xD800 + ((c - 0x10000) >> 10)));
      unit(static_cast<unsigned>(0xDC00 + ((c - 0x10000) & 0x3FF)));
    } else
      utf8::append(out, c);
  }
  return out + '"';
}

std::string json_number(const value& v) {
  if (!v.is(kind::floating))
    return std::to_string(v.whole);
  if (std::isnan(v.real))
    return "NaN";
  return std::isinf(v.real) ? (v.real > 0 ? "Infinity" : "-Infinity") : number_text(v.real);
}

class json_writer {
public:
  explicit json_writer(const json_style& style) : style_(style) {}
  std::string out;

  void write(const value& v, int depth) {
    if (depth > max_depth)
      throw error(errc::unsupported, "chat template: tojson: " + std::string(too_deep));
    switch (v.type) {
    case kind::none:
      out += "null";
      return;
    case kind::boolean:
      out += v.whole != 0 ? "true" : "false";
      return;
    case kind::integer:
    case kind::floating:
      out += json_number(v);
      return;
    case kind::string:
      out += json_string(v.str(), style_.ensure_ascii);
      return;
    case kind::list:
    case kind::tuple:
      write_items(v, depth);
      return;
    case kind::dict:
      write_entries(v, depth);
      return;
    default:
      throw error(errc::bad_input, "chat template: tojson of a " + type_name(v) + ": not JSON serializable");
    }
  }

private:
  void line(int depth) {
    if (!style_.pretty)
      return;
    out += '\n';
    for (int i = 0; i < depth; ++i)
      out += style_.indent;
  }

  void write_items(const value& v, int depth) {
    out += '[';
    bool first = true;
    for (const auto& item : v.items->items) {
      if (!first)
        out += style_.item_separator;
      first = false;
      line(depth + 1);
      write(item, depth + 1);
    }
    if (!first)
      line(depth);
    out += ']';
  }

  static std::string key_text(const value& key) {
    if (key.is(kind::string))
      return key.str();
    if (key.is(kind::none))
      return "null";
    if (key.is(kind::boolean))
      return key.whole != 0 ? "true" : "false";
    if (key.is_number())
      return json_number(key);
    throw error(errc::bad_input, "chat template: tojson: a key must be a string or a number, not " + type_name(key));
  }

  void write_entries(const value& v, int depth) {
    std::vector<const std::pair<value, value>*> entries;
    for (const auto& entry : v.map->entries)
      entries.push_back(&entry);
    if (style_.sort_keys)
      std::stable_sort(entries.begin(), entries.end(),
                       [](const auto* a, const auto* b) { return key_text(a->first) < key_text(b->first); });
    out += '{';
    bool first = true;
    for (const auto* entry : entries) {
      if (!first)
        out += style_.item_separator;
      first = false;
      line(depth + 1);
      out += json_string(key_text(entry->first), style_.ensure_ascii) + style_.key_separator;
      write(entry->second, depth + 1);
    }
    if (!first)
      line(depth);
    out += '}';
  }

  const json_style& style_;
};

} // namespace

std::string to_json(const value& v, const json_style& style) {
  json_writer writer(style);
  writer.write(v, 0);
  return std::move(writer.out);
}

bool is_space(char32_t c) { return unicode::is_space(c) || (c >= 0x1C && c <= 0x1F); }

std::u32string characters(std::string_view text) {
  std::u32string out;
  for (std::size_t pos = 0; pos < text.size();)
    out += utf8::next(text, pos);
  return out;
}

std::string from_characters(std::u32string_view text) {
  std::string out;
  for (const char32_t c : text)
    utf8::append(out, c);
  return out;
}

std::size_t length(std::string_view text) {
  return static_cast<std::size_t>(
      std::count_if(text.begin(), text.end(), [](char c) { return (static_cast<unsigned char>(c) & 0xC0) != 0x80; }));
}

std::string_view strip(std::string_view text, bool left, bool right, const value* chars) {
  const std::u32string set = chars != nullptr ? characters(chars->str()) : std::u32string();
  const auto goes = [&](char32_t c) { return chars != nullptr ? set.find(c) != std::u32string::npos : is_space(c); };
  std::size_t begin = 0, end = text.size();
  for (std::size_t at = begin; left && at < end && goes(utf8::next(text, at));)
    begin = at;
  for (std::size_t at = end; right && at > begin && goes(utf8::previous(text, at));)
    end = at;
  return text.substr(begin, end - begin);
}

} // namespace troupe::jinja
