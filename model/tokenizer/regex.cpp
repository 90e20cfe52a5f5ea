#include "model/tokenizer/regex.hpp"
#include "core/error.hpp"
#include "model/tokenizer/unicode.hpp"
#include "model/tokenizer/utf8.hpp"
#define PCRE2_CODE_UNIT_WIDTH 8
#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdio>
#include <pcre2.h>

namespace troupe {
namespace {

constexpr std::size_t max_pattern = 1 << 16;
constexpr std::string_view known_classes[] = {"L",  "Lu", "Ll", "Lt", "Lm", "Lo", "M", "Mn", "Mc", "Me", "N",  "Nd", "Nl", "No", "P", "Pc",
                                              "Pd", "Ps", "Pe", "Pi", "Pf", "Po", "S", "Sm", "Sc", "Sk", "So", "Z",  "Zs", "Zl", "Zp"};

std::string hex(char32_t c) {
  std::array<char, 16> text{};
  std::snprintf(text.data(), text.size(), "\\x{%X}", static_cast<unsigned>(c));
  return text.data();
}

std::string ranges_text(std::span<const unicode::range> ranges) {
  std::string out;
  for (const auto& r : ranges)
    out += r.first == r.last ? hex(r.first) : hex(r.first) + "-" + hex(r.last);
  return out;
}

std::string complement_text(std::span<const unicode::range> ranges) {
  std::string out;
  char32_t next = 0;
  for (const auto& r : ranges) {
    if (next < r.first)
      out += hex(next) + "-" + hex(r.first - 1);
    next = r.last + 1;
  }
  return out + hex(next) + "-\\x{10FFFF}";
}

std::string property(std::string_view name) {
  const auto whole = unicode::additions("=" + std::string(name)); // a class that lost characters since
  return whole.empty() ? "\\p{" + std::string(name) + "}" + ranges_text(unicode::additions(name)) : ranges_text(whole);
}

// Rewrites a pattern from left to right. Classes become explicit, so that neither library's Unicode tables are asked
// for more than both know.
class translator {
public:
  translator(std::string_view pattern, const std::string& where) : in_(pattern), where_(where) {}

  std::string run() {
    while (pos_ < in_.size()) {
      const char c = in_[pos_];
      if (c == '\\')
        escape();
      else if (c == '[')
        character_class();
      else if (c == '(' && in_.substr(pos_).starts_with("(?"))
        group();
      else
        out_ += in_[pos_++];
    }
    return out_;
  }

private:
  [[noreturn]] void refuse(const std::string& construct) const {
    throw error(errc::unsupported, where_ + ": regex construct " + construct + " at offset " + std::to_string(pos_) + " is not supported");
  }

  // What stands inside brackets for \s, \d, \w or \p{..}; empty when it cannot stand there.
  std::string class_body(char kind, bool inside) {
    switch (kind) {
    case 's':
      return ranges_text(unicode::spaces());
    case 'd':
      return property("Nd");
    case 'w':
      return property("L") + property("M") + property("Nd") + property("Nl") + property("Pc") + ranges_text(unicode::additions("word"));
    case 'S':
      return complement_text(unicode::spaces());
    default:
      break;
    }
    if (inside)
      refuse(std::string("\\") + kind + " inside [...]");
    return {};
  }

  std::string property_name() {
    const auto close = in_.find('}', pos_);
    if (pos_ + 2 >= in_.size() || in_[pos_ + 2] != '{' || close == std::string_view::npos)
      refuse("\\p without {...}");
    const auto name = in_.substr(pos_ + 3, close - pos_ - 3);
    if (std::find(std::begin(known_classes), std::end(known_classes), name) == std::end(known_classes))
      refuse("\\p{" + std::string(name) + "}");
    pos_ = close + 1;
    return std::string(name);
  }

  void escape(bool inside = false) {
    if (pos_ + 1 >= in_.size())
      refuse("\\ at the end");
    const char c = in_[pos_ + 1];
    if (c == 'p' || c == 'P') {
      if (c == 'P' && inside)
        refuse("\\P inside [...]");
      const auto body = property(property_name());
      out_ += inside ? body : (c == 'p' ? "[" : "[^") + body + "]";
    } else if (std::string_view("sSdw").find(c) != std::string_view::npos) {
      const auto body = class_body(c, inside);
      out_ += inside ? body : "[" + body + "]";
      pos_ += 2;
    } else if (c == 'D' || c == 'W') {
      const auto body = class_body(c == 'D' ? 'd' : 'w', false);
      if (inside)
        refuse(std::string("\\") + c + " inside [...]");
      out_ += "[^" + body + "]";
      pos_ += 2;
    } else if (std::string_view("rntfvae").find(c) != std::string_view::npos) {
      out_ += c == 'v' ? "\\x0B" : std::string("\\") + c; // \v is one character here, a class there
      pos_ += 2;
    } else if (c == 'x' || c == 'u') {
      hex_escape(c);
    } else if (static_cast<unsigned char>(c) < 0x80 && std::isalnum(static_cast<unsigned char>(c)) != 0) {
      refuse(std::string("\\") + c);
    } else {
      out_ += '\\';
      ++pos_;
      out_ += in_[pos_++];
    }
  }

  void hex_escape(char kind) {
    std::size_t begin = pos_ + 2;
    const std::size_t digits = kind == 'u' ? 4 : 2;
    const bool braces = kind == 'x' && begin < in_.size() && in_[begin] == '{';
    if (braces)
      ++begin;
    const std::size_t end = braces ? in_.find('}', begin) : std::min(in_.size(), begin + digits);
    if (end == std::string_view::npos || end <= begin || end - begin > 6 || (kind == 'u' && end - begin != 4))
      refuse(std::string("\\") + kind + " without digits");
    char32_t c = 0;
    for (const char d : in_.substr(begin, end - begin)) {
      if (std::isxdigit(static_cast<unsigned char>(d)) == 0)
        refuse(std::string("\\") + kind + " with a digit that is none");
      c = c * 16 + static_cast<char32_t>(d <= '9' ? d - '0' : (d | 0x20) - 'a' + 10);
    }
    if (kind == 'x' && !braces && c >= 0x80)
      refuse("\\x of a byte that is no character");
    out_ += hex(c);
    pos_ = end + (braces ? 1 : 0);
  }

  void character_class() {
    out_ += in_[pos_++];
    if (pos_ < in_.size() && in_[pos_] == '^')
      out_ += in_[pos_++];
    if (pos_ < in_.size() && in_[pos_] == ']')
      refuse("] first in [...]");
    while (pos_ < in_.size() && in_[pos_] != ']') {
      const char c = in_[pos_];
      if (c == '[')
        refuse("[ inside [...]");
      if (c == '&' && in_.substr(pos_).starts_with("&&"))
        refuse("&& inside [...]");
      if (c == '\\')
        escape(true);
      else
        out_ += in_[pos_++];
    }
    if (pos_ >= in_.size())
      throw error(errc::bad_input, where_ + ": regex: a [ without its ]");
    out_ += in_[pos_++];
  }

  // Groups that mean the same in both: (?:..) (?=..) (?!..) (?<=..) (?<!..) (?>..) (?i:..) (?i).
  void group() {
    for (const std::string_view known : {"(?:", "(?=", "(?!", "(?<=", "(?<!", "(?>", "(?i:", "(?i)", "(?-i:"})
      if (in_.substr(pos_).starts_with(known)) {
        out_ += known;
        pos_ += known.size();
        return;
      }
    refuse(std::string(in_.substr(pos_, 4)));
  }

  std::string_view in_;
  const std::string& where_;
  std::size_t pos_ = 0;
  std::string out_;
};

std::string message_of(int code) {
  std::array<PCRE2_UCHAR, 160> text{};
  pcre2_get_error_message(code, text.data(), text.size());
  return reinterpret_cast<const char*>(text.data());
}

// What a thread needs to match; grows to the largest pattern it has seen.
struct match_space {
  pcre2_match_data* data = pcre2_match_data_create(1, nullptr); // only the whole match is asked for
  pcre2_match_context* context = pcre2_match_context_create(nullptr);
  pcre2_jit_stack* stack = pcre2_jit_stack_create(32 * 1024, 16 * 1024 * 1024, nullptr);
  match_space() { pcre2_jit_stack_assign(context, nullptr, stack); }
  match_space(const match_space&) = delete;
  match_space& operator=(const match_space&) = delete;
  ~match_space() {
    pcre2_jit_stack_free(stack);
    pcre2_match_context_free(context);
    pcre2_match_data_free(data);
  }
};

} // namespace

std::string from_oniguruma(std::string_view pattern, const std::string& where) { return translator(pattern, where).run(); }

struct regex::compiled {
  compiled(const std::string& pattern, std::uint32_t options, std::string place) : where(std::move(place)) {
    int code_of_error = 0;
    PCRE2_SIZE offset = 0;
    code = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(), options, &code_of_error, &offset, nullptr);
    if (code == nullptr)
      throw error(errc::bad_input, where + ": regex: " + message_of(code_of_error) + " at offset " + std::to_string(offset));
    pcre2_jit_compile(code, PCRE2_JIT_COMPLETE); // without it matching is slower, and the same
  }
  compiled(const compiled&) = delete;
  compiled& operator=(const compiled&) = delete;
  ~compiled() { pcre2_code_free(code); }
  pcre2_code* code = nullptr;
  std::string where;
};

regex::regex(std::string_view pattern, const std::string& where) {
  if (pattern.size() > max_pattern)
    throw error(errc::unsupported,
                where + ": a regex of " + std::to_string(pattern.size()) + " bytes; the limit is " + std::to_string(max_pattern));
  // Ruby's ^ and $ are a line's ends; its . is every character but the line feed.
  compiled_ = std::make_shared<const compiled>(from_oniguruma(pattern, where), PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE, where);
}

regex regex::literal(std::string_view text, const std::string& where) {
  return regex(std::make_shared<const compiled>(std::string(text), PCRE2_UTF | PCRE2_LITERAL, where));
}

void regex::for_each(std::string_view text, const std::function<void(std::size_t, std::size_t)>& match) const {
  thread_local match_space space;
  std::size_t from = 0, last_end = std::string_view::npos;
  while (from <= text.size()) {
    const int found = pcre2_match(compiled_->code, reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), from, PCRE2_NO_UTF_CHECK,
                                  space.data, space.context);
    if (found == PCRE2_ERROR_NOMATCH)
      return;
    if (found < 0)
      throw error(errc::failed,
                  compiled_->where + ": regex: " + message_of(found) + " in a text of " + std::to_string(text.size()) + " bytes");
    const PCRE2_SIZE* span = pcre2_get_ovector_pointer(space.data);
    if (span[0] == span[1] && span[1] == last_end) {
      if (from >= text.size())
        return;
      utf8::next(text, from);
      continue;
    }
    from = last_end = span[1];
    match(span[0], span[1]);
  }
}

std::string regex::replaced(std::string_view text, std::string_view content) const {
  constexpr std::size_t max_bytes = 256u << 20;
  std::string out;
  std::size_t done = 0;
  if (!text.empty())
    for_each(text, [&](std::size_t begin, std::size_t end) {
      out.append(text, done, begin - done).append(content);
      if (out.size() > max_bytes)
        throw error(errc::bad_input, compiled_->where + ": replacing makes more than " + std::to_string(max_bytes) +
                                         " bytes of a text of " + std::to_string(text.size()));
      done = end;
    });
  return out.append(text, done);
}

bool regex::matches(std::string_view text) const {
  bool found = false;
  for_each(text, [&](std::size_t, std::size_t) { found = true; });
  return found;
}

} // namespace troupe
