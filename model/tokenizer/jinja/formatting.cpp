#include "model/tokenizer/jinja/formatting.hpp"
#include "model/tokenizer/utf8.hpp"
#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <cstdio>

namespace troupe::jinja {
namespace {

constexpr std::int64_t max_width = 1 << 20;

// One conversion of a % format: %[(key)][flags][width][.precision]type.
struct conversion {
  std::optional<std::string> key;
  bool left = false, plus = false, space = false, zero = false;
  std::int64_t width = 0;
  std::optional<std::int64_t> precision;
  char type = 0;
};

class percent_formatter {
public:
  percent_formatter(machine& m, const std::string& format, const value& operand) : m_(m), format_(format), operand_(operand) {}

  std::string run() {
    std::string out;
    while (at_ < format_.size()) {
      const auto mark = std::min(format_.find('%', at_), format_.size());
      out.append(format_, at_, mark - at_);
      at_ = mark + 1;
      if (mark == format_.size())
        break;
      const auto c = read();
      if (c.type == '%')
        out += '%';
      else
        put(out, c);
      m_.charge(1 + out.size() / 4096);
    }
    const bool by_key = operand_.is(kind::dict) || operand_.is(kind::list);
    if (!by_key && next_ < (operand_.is(kind::tuple) ? operand_.items->items.size() : 1))
      m_.fail("not all arguments were converted by the format");
    return out;
  }

private:
  char now() const {
    if (at_ >= format_.size())
      m_.fail("the format ends inside a conversion");
    return format_[at_];
  }

  std::int64_t number() {
    if (now() == '*')
      m_.unsupported("a width or precision * in a format");
    std::int64_t n = 0;
    for (; now() >= '0' && now() <= '9'; ++at_)
      if ((n = n * 10 + (now() - '0')) > max_width)
        m_.fail("a format's width or precision of more than " + std::to_string(max_width));
    return n;
  }

  conversion read() {
    conversion c;
    if (now() == '(') {
      const auto end = format_.find(')', at_);
      if (end == std::string::npos)
        m_.fail("a format's key has no end");
      c.key = format_.substr(at_ + 1, end - at_ - 1);
      at_ = end + 1;
    }
    for (;; ++at_) {
      const char f = now();
      c.left = c.left || f == '-';
      c.plus = c.plus || f == '+';
      c.space = c.space || f == ' ';
      c.zero = c.zero || f == '0';
      if (f == '#')
        m_.unsupported("the flag # in a format");
      if (f != '-' && f != '+' && f != ' ' && f != '0')
        break;
    }
    c.width = number();
    if (now() == '.') {
      ++at_;
      c.precision = number();
    }
    while (now() == 'l' || now() == 'h' || now() == 'L')
      ++at_;
    c.type = now();
    ++at_;
    return c;
  }

  value take(const conversion& c) {
    if (c.key) {
      if (!operand_.is(kind::dict))
        m_.fail("a format with keys takes a dict, not a " + type_name(operand_));
      const value* found = operand_.map->find(value::string(*c.key));
      if (found == nullptr)
        m_.fail("the format's key \"" + *c.key + "\" is not in the dict");
      next_ = 1;
      return *found;
    }
    if (!operand_.is(kind::tuple)) {
      if (next_++ > 0)
        m_.fail("too few arguments for the format");
      return operand_;
    }
    if (next_ >= operand_.items->items.size())
      m_.fail("too few arguments for the format");
    return operand_.items->items[next_++];
  }

  void put(std::string& out, const conversion& c) {
    const value v = take(c);
    if (v.markup)
      m_.unsupported("formatting text that went through safe");
    std::string sign, text;
    if (c.type == 's' || c.type == 'r') {
      text = c.type == 's' ? to_text(v) : to_repr(v);
      if (c.precision)
        text = from_characters(characters(text).substr(0, static_cast<std::size_t>(*c.precision)));
    } else if (c.type == 'c') {
      text = one_character(v);
    } else {
      text = number_text(c, v);
      if (text.starts_with('-')) {
        sign = "-";
        text.erase(0, 1);
      } else {
        sign = c.plus ? "+" : c.space ? " " : "";
      }
    }
    const auto size = static_cast<std::int64_t>(length(text) + sign.size());
    const std::string pad(static_cast<std::size_t>(std::max<std::int64_t>(0, c.width - size)), ' ');
    const bool zeros = c.zero && !c.left && c.type != 's' && c.type != 'r' && c.type != 'c';
    if (zeros)
      out.append(sign).append(pad.size(), '0').append(text);
    else
      out.append(c.left ? "" : pad).append(sign).append(text).append(c.left ? pad : "");
  }

  std::string one_character(const value& v) {
    std::string out;
    if (v.is_whole() && v.whole >= 0 && v.whole <= 0x10FFFF && (v.whole < 0xD800 || v.whole > 0xDFFF))
      utf8::append(out, static_cast<char32_t>(v.whole));
    else if (v.is(kind::string) && length(v.str()) == 1)
      out = v.str();
    else
      m_.fail("%c takes a character, not a " + type_name(v));
    return out;
  }

  std::string number_text(const conversion& c, const value& v) {
    if (!v.is_number())
      m_.fail(std::string("%") + c.type + " takes a number, not a " + type_name(v));
    if (c.type == 'f' || c.type == 'F') {
      const auto digits = c.precision.value_or(6);
      if (!std::isfinite(v.number()) || digits > 200)
        m_.unsupported("formatting such a number");
      std::array<char, 600> out{};
      const int n = std::snprintf(out.data(), out.size(), "%.*f", static_cast<int>(digits), v.number());
      return {out.data(), static_cast<std::size_t>(n)};
    }
    const bool hex = c.type == 'x' || c.type == 'X';
    if (!hex && c.type != 'd' && c.type != 'i' && c.type != 'u')
      m_.unsupported(std::string("the conversion %") + c.type + " of a format");
    if (v.is(kind::floating) && (hex || !(std::abs(v.real) < 9.2e18)))
      m_.fail(std::string("%") + c.type + " takes an integer, not a " + type_name(v));
    const std::int64_t i = v.is(kind::floating) ? static_cast<std::int64_t>(v.real) : v.whole;
    std::array<char, 32> out{};
    const auto end = std::to_chars(out.data(), out.data() + out.size(), i, hex ? 16 : 10).ptr;
    std::string text(out.data(), end);
    if (c.type == 'X')
      std::transform(text.begin(), text.end(), text.begin(), [](char d) { return d >= 'a' ? char(d - 'a' + 'A') : d; });
    const std::size_t sign = text.starts_with('-') ? 1 : 0, digits = text.size() - sign;
    if (c.precision && digits < static_cast<std::size_t>(*c.precision))
      text.insert(sign, static_cast<std::size_t>(*c.precision) - digits, '0');
    return text;
  }

  machine& m_;
  const std::string& format_;
  const value& operand_;
  std::size_t at_ = 0, next_ = 0;
};

bool all_digits(std::string_view s) { return !s.empty() && s.size() < 10 && s.find_first_not_of("0123456789") == std::string_view::npos; }

// A field of str.format without its braces.
value field(machine& m, std::string_view text, const arguments& args, std::optional<std::size_t>& counted, bool& indexed) {
  if (text.find(':') != std::string_view::npos)
    m.unsupported("a format specification in str.format");
  bool repr = false;
  if (const auto mark = text.find('!'); mark != std::string_view::npos) {
    const auto how = text.substr(mark + 1);
    if (how != "s" && how != "r")
      m.unsupported("the conversion !" + std::string(how) + " of str.format");
    repr = how == "r";
    text = text.substr(0, mark);
  }
  if (text.find_first_of(".[") != std::string_view::npos)
    m.unsupported("an attribute or item in a field of str.format");
  value v;
  if (text.empty() || all_digits(text)) {
    if (text.empty() ? indexed : counted.has_value())
      m.fail("str.format mixes counted and numbered fields");
    std::size_t i = 0;
    if (text.empty()) {
      i = counted.value_or(0);
      counted = i + 1;
    } else {
      indexed = true;
      std::from_chars(text.data(), text.data() + text.size(), i);
    }
    if (i >= args.positional.size())
      m.fail("str.format has no argument " + std::to_string(i));
    v = args.positional[i];
  } else {
    const auto it = std::find_if(args.named.begin(), args.named.end(), [&](const auto& a) { return a.first == text; });
    if (it == args.named.end())
      m.fail("str.format has no argument \"" + std::string(text) + "\"");
    v = it->second;
  }
  if (v.markup)
    m.unsupported("formatting text that went through safe");
  return value::string(repr ? to_repr(v) : to_text(v));
}

} // namespace

value percent_format(machine& m, const std::string& format, const value& operand) {
  return m.text(percent_formatter(m, format, operand).run());
}

value brace_format(machine& m, const std::string& format, const arguments& args) {
  std::string out;
  std::optional<std::size_t> counted;
  bool indexed = false;
  for (std::size_t at = 0; at < format.size(); ++at) {
    const char c = format[at];
    const bool twice = at + 1 < format.size() && format[at + 1] == c;
    if (c != '{' && c != '}') {
      out += c;
    } else if (twice) {
      out += c;
      ++at;
    } else if (c == '}') {
      m.fail("a single } in str.format");
    } else {
      const auto end = format.find_first_of("{}", at + 1);
      if (end == std::string::npos)
        m.fail("a field of str.format has no end");
      if (format[end] == '{')
        m.unsupported("a field inside a field of str.format");
      out += field(m, std::string_view(format).substr(at + 1, end - at - 1), args, counted, indexed).str();
      m.charge(1 + out.size() / 4096);
      at = end;
    }
  }
  return m.text(std::move(out));
}

value justified(machine& m, const std::string& text, std::int64_t width, int side, char32_t fill) {
  const auto size = static_cast<std::int64_t>(length(text));
  if (width > max_width)
    m.fail("a width of more than " + std::to_string(max_width));
  const std::int64_t pad = std::max<std::int64_t>(0, width - size);
  const std::int64_t before = side < 0 ? 0 : side > 0 ? pad : pad / 2 + (pad & width & 1);
  const auto run = [&](std::int64_t n) { return from_characters(std::u32string(static_cast<std::size_t>(n), fill)); };
  return m.text(run(before) + text + run(pad - before));
}

std::string html_escaped(std::string_view text) {
  std::string out;
  for (const char c : text)
    switch (c) {
    case '&':
      out += "&amp;";
      break;
    case '<':
      out += "&lt;";
      break;
    case '>':
      out += "&gt;";
      break;
    case '"':
      out += "&#34;";
      break;
    case '\'':
      out += "&#39;";
      break;
    default:
      out += c;
    }
  return out;
}

} // namespace troupe::jinja
