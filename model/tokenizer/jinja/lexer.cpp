#include "model/tokenizer/jinja/lexer.hpp"
#include "core/error.hpp"
#include "model/tokenizer/jinja/value.hpp"
#include "model/tokenizer/utf8.hpp"
#include <algorithm>
#include <array>
#include <cctype>
#include <string_view>

namespace troupe::jinja {
namespace {

constexpr std::size_t max_source = 1 << 20;

// Line ends as \n, and the last one dropped, as Jinja reads a template.
std::string normalize_lines(const std::string& source) {
  std::string out;
  out.reserve(source.size());
  for (std::size_t i = 0; i < source.size(); ++i) {
    if (source[i] == '\r' && i + 1 < source.size() && source[i + 1] == '\n')
      continue;
    out += source[i] == '\r' ? '\n' : source[i];
  }
  if (!out.empty() && out.back() == '\n')
    out.pop_back();
  return out;
}

bool word(char c) { return std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '_'; }
bool digit(char c) { return c >= '0' && c <= '9'; }

class lexer {
public:
  lexer(const std::string& source, const std::string& name) : text_(normalize_lines(source)), in_(text_), name_(name) {}

  std::vector<token> run() {
    while (pos_ < in_.size())
      outside();
    add(token_kind::end, "");
    return std::move(out_);
  }

private:
  [[noreturn]] void fail(const std::string& what) const { throw error(errc::bad_input, name_ + ":" + std::to_string(line_) + ": " + what); }

  void add(token_kind what, std::string text) { out_.push_back({what, line_, std::move(text)}); }

  void advance(std::size_t to) {
    line_ +=
        static_cast<int>(std::count(in_.begin() + static_cast<std::ptrdiff_t>(pos_), in_.begin() + static_cast<std::ptrdiff_t>(to), '\n'));
    if (to > pos_)
      line_starting_ = in_[to - 1] == '\n';
    pos_ = to;
  }

  std::size_t behind_spaces(std::size_t at) const {
    for (std::size_t on = at; on < in_.size() && is_space(utf8::next(in_, on));)
      at = on;
    return at;
  }

  static std::string without_indent(std::string text, bool line_starting) {
    const auto newline = text.rfind('\n');
    const std::size_t begin = newline == std::string::npos ? 0 : newline + 1;
    if ((newline != std::string::npos || line_starting) && strip(std::string_view(text).substr(begin), true, false).empty())
      text.resize(begin);
    return text;
  }

  // Text up to the next tag, then the tag.
  void outside() {
    std::size_t open = in_.find('{', pos_);
    while (open != std::string_view::npos &&
           (open + 1 >= in_.size() || std::string_view("{%#").find(in_[open + 1]) == std::string_view::npos))
      open = in_.find('{', open + 1);
    std::string text(in_.substr(pos_, open == std::string_view::npos ? open : open - pos_));
    if (open == std::string_view::npos) {
      if (!text.empty())
        add(token_kind::text, text);
      return advance(in_.size());
    }
    const char tag = in_[open + 1];
    const char sign = open + 2 < in_.size() ? in_[open + 2] : '\0';
    if (sign == '-')
      text = std::string(strip(text, false, true));
    else if (sign != '+' && tag != '{')
      text = without_indent(std::move(text), line_starting_);
    if (!text.empty())
      add(token_kind::text, text);
    advance(open + 2 + (sign == '-' || sign == '+' ? 1 : 0));
    if (tag == '#')
      return comment();
    if (tag == '%' && raw())
      return;
    add(tag == '%' ? token_kind::block_begin : token_kind::output_begin, "");
    inside(tag == '%');
  }

  // The end of a tag at `at`, or npos: with what whitespace control takes along.
  std::size_t tag_end(std::size_t at, std::string_view close, bool trims) const {
    const auto here = in_.substr(at);
    if (here.starts_with('-') && here.substr(1).starts_with(close))
      return behind_spaces(at + 1 + close.size());
    if (trims && here.starts_with('+') && here.substr(1).starts_with(close))
      return at + 1 + close.size();
    if (!here.starts_with(close))
      return std::string_view::npos;
    at += close.size();
    return trims && at < in_.size() && in_[at] == '\n' ? at + 1 : at;
  }

  void comment() {
    const std::size_t close = in_.find("#}", pos_);
    if (close == std::string_view::npos)
      fail("a comment without its #}");
    const bool signed_end = close > pos_ && (in_[close - 1] == '-' || in_[close - 1] == '+');
    advance(tag_end(signed_end ? close - 1 : close, "#}", true));
  }

  // {% raw %} text {% endraw %}; false when this block is another.
  bool raw() {
    const auto keyword = [&](std::size_t at, std::string_view name, bool trims) {
      at = behind_spaces(at);
      if (!in_.substr(at).starts_with(name))
        return std::string_view::npos;
      return tag_end(behind_spaces(at + name.size()), "%}", trims);
    };
    const std::size_t begin = keyword(pos_, "raw", false);
    if (begin == std::string_view::npos)
      return false;
    for (std::size_t open = in_.find("{%", begin); open != std::string_view::npos; open = in_.find("{%", open + 1)) {
      const char sign = open + 2 < in_.size() ? in_[open + 2] : '\0';
      const std::size_t end = keyword(open + 2 + (sign == '-' || sign == '+' ? 1 : 0), "endraw", true);
      if (end == std::string_view::npos)
        continue;
      std::string text(in_.substr(begin, open - begin));
      if (sign == '-')
        text = std::string(strip(text, false, true));
      else if (sign != '+')
        text = without_indent(std::move(text), in_[begin - 1] == '\n');
      if (!text.empty())
        add(token_kind::text, text);
      advance(end);
      return true;
    }
    fail("{% raw %} without its {% endraw %}");
  }

  void inside(bool block) {
    std::string open_brackets;
    const int begun = line_;
    while (pos_ < in_.size()) {
      if (open_brackets.empty())
        if (const auto end = tag_end(pos_, block ? "%}" : "}}", block); end != std::string_view::npos) {
          add(block ? token_kind::block_end : token_kind::output_end, "");
          return advance(end);
        }
      if (const auto on = behind_spaces(pos_); on != pos_)
        advance(on);
      else if (digit(in_[pos_]))
        number();
      else if (word(in_[pos_]))
        name();
      else if (in_[pos_] == '\'' || in_[pos_] == '"')
        string();
      else
        op(open_brackets);
    }
    throw error(errc::bad_input, name_ + ":" + std::to_string(begun) + ": a tag without its end");
  }

  void name() {
    std::size_t end = pos_;
    while (end < in_.size() && word(in_[end]))
      ++end;
    add(token_kind::name, std::string(in_.substr(pos_, end - pos_)));
    advance(end);
  }

  void number() {
    std::size_t end = pos_;
    const auto digits = [&] {
      while (end < in_.size() && (digit(in_[end]) || (in_[end] == '_' && end + 1 < in_.size() && digit(in_[end + 1]))))
        ++end;
    };
    digits();
    bool real = false;
    if (end + 1 < in_.size() && in_[end] == '.' && digit(in_[end + 1])) {
      real = true;
      ++end;
      digits();
    }
    if (end < in_.size() && (in_[end] | 0x20) == 'e') {
      const std::size_t sign = end + 1 < in_.size() && (in_[end + 1] == '-' || in_[end + 1] == '+') ? 1 : 0;
      if (end + 1 + sign < in_.size() && digit(in_[end + 1 + sign])) {
        real = true;
        end += 1 + sign;
        digits();
      }
    }
    if (end < in_.size() && word(in_[end]))
      fail("a number that ends in a letter");
    std::string text(in_.substr(pos_, end - pos_));
    std::erase(text, '_');
    if (!real && text.size() > 1 && text.front() == '0' && text.find_first_not_of('0') != std::string::npos)
      fail("a number that starts with 0");
    add(real ? token_kind::floating : token_kind::integer, text);
    advance(end);
  }

  void string() {
    const char quote = in_[pos_];
    std::size_t end = pos_ + 1;
    std::string text;
    while (end < in_.size() && in_[end] != quote)
      if (in_[end] == '\\')
        escape(end, text);
      else
        text += in_[end++];
    if (end >= in_.size())
      fail("a string without its end");
    add(token_kind::string, text);
    advance(end + 1);
  }

  char32_t hex(std::size_t at, std::size_t digits) const {
    char32_t c = 0;
    for (std::size_t i = at; i < at + digits; ++i) {
      if (i >= in_.size() || std::isxdigit(static_cast<unsigned char>(in_[i])) == 0)
        fail("an escape without its digits");
      c = c * 16 + static_cast<char32_t>(digit(in_[i]) ? in_[i] - '0' : (in_[i] | 0x20) - 'a' + 10);
    }
    return c;
  }

  // Python's escapes; an unknown one stands for itself with its backslash.
  void escape(std::size_t& at, std::string& text) const {
    if (at + 1 >= in_.size())
      fail("a string without its end");
    const char c = in_[at + 1];
    constexpr std::string_view letters = "abfnrtv\\'\"", meant = "\a\b\f\n\r\t\v\\'\"";
    if (const auto i = letters.find(c); i != std::string_view::npos) {
      text += meant[i];
      at += 2;
    } else if (c == '\n') {
      at += 2;
    } else if (c == 'x' || c == 'u' || c == 'U') {
      const std::size_t digits = c == 'x' ? 2 : c == 'u' ? 4 : 8;
      const char32_t code = hex(at + 2, digits);
      if (code > 0x10FFFF || (code >= 0xD800 && code < 0xE000))
        fail("an escape that is no character");
      utf8::append(text, code);
      at += 2 + digits;
    } else if (c >= '0' && c <= '7') {
      char32_t code = 0;
      std::size_t end = at + 1;
      while (end < in_.size() && end < at + 4 && in_[end] >= '0' && in_[end] <= '7')
        code = code * 8 + static_cast<char32_t>(in_[end++] - '0');
      utf8::append(text, code);
      at = end;
    } else if (c == 'N') {
      fail("escapes by name (\\N{...}) are not supported");
    } else {
      text += '\\';
      ++at;
    }
  }

  void op(std::string& open_brackets) {
    static constexpr std::array<std::string_view, 27> known = {"//", "**", "==", "!=", ">=", "<=", "+", "-", "/", "*", "%", "~", "[", "]",
                                                               "(",  ")",  "{",  "}",  ">",  "<",  "=", ".", ":", "|", ",", ";", ""};
    const auto here = in_.substr(pos_);
    const auto it = std::find_if(known.begin(), known.end(), [&](std::string_view k) { return here.starts_with(k); });
    if (it->empty())
      fail("unexpected character in a tag: " + std::string(here.substr(0, 1) < std::string_view("\x7F") ? here.substr(0, 1) : "not ASCII"));
    if (std::string_view("([{").find(it->front()) != std::string_view::npos) {
      open_brackets += *it == "(" ? ')' : *it == "[" ? ']' : '}';
    } else if (std::string_view(")]}").find(it->front()) != std::string_view::npos) {
      if (open_brackets.empty() || open_brackets.back() != it->front())
        fail("a " + std::string(*it) + " that closes nothing");
      open_brackets.pop_back();
    }
    add(token_kind::op, std::string(*it));
    advance(pos_ + it->size());
  }

  std::string text_;
  std::string_view in_;
  const std::string& name_;
  std::size_t pos_ = 0;
  int line_ = 1;
  bool line_starting_ = true;
  std::vector<token> out_;
};

} // namespace

std::vector<token> tokenize(const std::string& source, const std::string& name) {
  if (source.size() > max_source)
    throw error(errc::unsupported,
                name + ": a template of " + std::to_string(source.size()) + " bytes; the limit is " + std::to_string(max_source));
  if (const auto bad = utf8::find_invalid(source); bad != std::string_view::npos)
    throw error(errc::bad_input, name + ": byte " + std::to_string(bad) + " is not UTF-8");
  return lexer(source, name).run();
}

} // namespace troupe::jinja
