#include "model/tokenizer/unicode.hpp"
#include "core/error.hpp"
#include "model/tokenizer/utf8.hpp"
#include <algorithm>
#include <cstdlib>
#include <map>
#include <memory>
#include <new>
#include <utf8proc.h>
#include <vector>

namespace troupe::unicode {
namespace {

const std::map<std::string_view, std::vector<range>>& tables() {
  static const std::map<std::string_view, std::vector<range>> all = {
#include "model/tokenizer/unicode_tables.inc"
  };
  return all;
}

bool within(std::span<const range> ranges, char32_t c) noexcept {
  const auto it = std::upper_bound(ranges.begin(), ranges.end(), c, [](char32_t x, const range& r) { return x < r.first; });
  return it != ranges.begin() && c <= std::prev(it)->last;
}

utf8proc_category_t category(char32_t c) noexcept { return utf8proc_category(static_cast<utf8proc_int32_t>(c)); }

constexpr range space_ranges[] = {{0x9, 0xD},       {0x20, 0x20},     {0x85, 0x85},     {0xA0, 0xA0},     {0x1680, 0x1680},
                                  {0x2000, 0x200A}, {0x2028, 0x2029}, {0x202F, 0x202F}, {0x205F, 0x205F}, {0x3000, 0x3000}};
// Other_Alphabetic symbols: circled and squared Latin letters.
constexpr range letter_symbols[] = {{0x24B6, 0x24E9}, {0x1F130, 0x1F149}, {0x1F150, 0x1F169}, {0x1F170, 0x1F189}};

// Lower case of letters that utf8proc does not know yet.
const std::map<char32_t, char32_t>& newer_letters() {
  static const std::map<char32_t, char32_t> all = {
#include "model/tokenizer/lowercase_tables.inc"
  };
  return all;
}

void append_normalized(std::string& out, std::string_view text, form f) {
  if (text.empty())
    return;
  int options = UTF8PROC_STABLE | (f == form::nfc || f == form::nfkc ? UTF8PROC_COMPOSE : UTF8PROC_DECOMPOSE);
  if (f == form::nfkc || f == form::nfkd)
    options |= UTF8PROC_COMPAT;
  utf8proc_uint8_t* result = nullptr;
  const auto length = utf8proc_map(reinterpret_cast<const utf8proc_uint8_t*>(text.data()), static_cast<utf8proc_ssize_t>(text.size()),
                                   &result, static_cast<utf8proc_option_t>(options));
  const std::unique_ptr<utf8proc_uint8_t, decltype(&std::free)> owner(result, &std::free);
  if (length < 0)
    throw error(errc::failed, std::string("Unicode normalization: ") + utf8proc_errmsg(length));
  out.append(reinterpret_cast<const char*>(result), static_cast<std::size_t>(length));
}

} // namespace

std::span<const range> additions(std::string_view class_name) {
  const auto it = tables().find(class_name);
  return it == tables().end() ? std::span<const range>() : std::span<const range>(it->second);
}

std::span<const range> spaces() noexcept { return space_ranges; }
bool is_space(char32_t c) noexcept { return within(space_ranges, c); }

bool is_numeric(char32_t c) noexcept {
  if (c < 0x80)
    return c >= '0' && c <= '9';
  static const auto more = additions("numeric");
  const auto k = category(c);
  return k == UTF8PROC_CATEGORY_ND || k == UTF8PROC_CATEGORY_NL || k == UTF8PROC_CATEGORY_NO || within(more, c);
}

bool is_word(char32_t c) noexcept {
  switch (category(c)) {
  case UTF8PROC_CATEGORY_LU:
  case UTF8PROC_CATEGORY_LL:
  case UTF8PROC_CATEGORY_LT:
  case UTF8PROC_CATEGORY_LM:
  case UTF8PROC_CATEGORY_LO:
  case UTF8PROC_CATEGORY_MN:
  case UTF8PROC_CATEGORY_MC:
  case UTF8PROC_CATEGORY_ME:
  case UTF8PROC_CATEGORY_ND:
  case UTF8PROC_CATEGORY_NL:
  case UTF8PROC_CATEGORY_PC:
    return true;
  default:
    break;
  }
  static const std::span<const range> more[] = {additions("L"), additions("M"), additions("Nd"), letter_symbols};
  return c == 0x200C || c == 0x200D || std::any_of(std::begin(more), std::end(more), [c](auto r) { return within(r, c); });
}

bool is_punctuation(char32_t c) noexcept {
  static const auto all = additions("punctuation");
  return within(all, c);
}

bool is_combining_mark(char32_t c) noexcept {
  static const auto all = additions("mark");
  return within(all, c);
}

std::string normalize(std::string_view text, form f) {
  std::string out;
  out.reserve(text.size());
  if (std::all_of(text.begin(), text.end(), [](char c) { return static_cast<unsigned char>(c) < 0x80; }))
    return std::string(text);
  static const auto unordered = additions("unordered"), indivisible = additions("indivisible");
  const bool compatible = f == form::nfkc || f == form::nfkd;
  // A character that the package does not know parts what stands before it from what stands behind.
  std::size_t begin = 0;
  for (std::size_t pos = 0; pos < text.size();) {
    const std::size_t at = pos;
    const char32_t c = utf8::next(text, pos);
    if (c >= 0x300 && (within(unordered, c) || (compatible && within(indivisible, c)))) {
      append_normalized(out, text.substr(begin, at - begin), f);
      out.append(text.substr(at, pos - at));
      begin = pos;
    }
  }
  append_normalized(out, text.substr(begin), f);
  return out;
}

std::string lowercase(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (std::size_t pos = 0; pos < text.size();) {
    const char32_t c = utf8::next(text, pos);
    if (c == 0x130) // the one letter whose lower case is two characters
      out += "i\xCC\x87";
    else if (const auto it = c < 0x80 ? newer_letters().end() : newer_letters().find(c); it != newer_letters().end())
      utf8::append(out, it->second);
    else
      utf8::append(out, static_cast<char32_t>(utf8proc_tolower(static_cast<utf8proc_int32_t>(c))));
  }
  return out;
}

namespace {

bool is_cased(char32_t c) noexcept {
  const auto k = category(c);
  return k == UTF8PROC_CATEGORY_LU || k == UTF8PROC_CATEGORY_LL || k == UTF8PROC_CATEGORY_LT;
}

bool is_case_ignorable(char32_t c) noexcept {
  const auto k = category(c);
  return k == UTF8PROC_CATEGORY_MN || k == UTF8PROC_CATEGORY_ME || k == UTF8PROC_CATEGORY_CF || k == UTF8PROC_CATEGORY_LM ||
         k == UTF8PROC_CATEGORY_SK || c == '\'' || c == '.' || c == ':' || c == 0xB7 || c == 0x2019;
}

// A sigma behind a letter and before none, marks and the like between passed over.
bool ends_word(std::string_view text, std::size_t begin, std::size_t end) {
  char32_t c = 0;
  while (begin > 0 && is_case_ignorable(c = utf8::previous(text, begin)))
    c = 0;
  if (!is_cased(c))
    return false;
  c = 0;
  while (end < text.size() && is_case_ignorable(c = utf8::next(text, end)))
    c = 0;
  return !is_cased(c);
}

// Letters whose upper case is more than one character.
const std::map<char32_t, std::string_view>& long_uppers() {
  static const std::map<char32_t, std::string_view> all = {
#include "model/tokenizer/casing_tables.inc"
  };
  return all;
}

} // namespace

std::string lower(std::string_view text) {
  std::string out;
  for (std::size_t pos = 0; pos < text.size();) {
    const std::size_t at = pos;
    const char32_t c = utf8::next(text, pos);
    if (c == 0x3A3 && ends_word(text, at, pos))
      out += "\xCF\x82";
    else
      out += lowercase(text.substr(at, pos - at));
  }
  return out;
}

std::string upper(std::string_view text) {
  std::string out;
  for (std::size_t pos = 0; pos < text.size();) {
    const char32_t c = utf8::next(text, pos);
    if (const auto it = c < 0x80 ? long_uppers().end() : long_uppers().find(c); it != long_uppers().end())
      out += it->second;
    else
      utf8::append(out, static_cast<char32_t>(utf8proc_toupper(static_cast<utf8proc_int32_t>(c))));
  }
  return out;
}

namespace {

// The first letter of a word; of several characters where it has no single one.
std::string title_of(char32_t c) {
  std::string out;
  const auto simple = static_cast<char32_t>(utf8proc_totitle(static_cast<utf8proc_int32_t>(c)));
  if (category(simple) == UTF8PROC_CATEGORY_LT || !long_uppers().contains(c)) {
    utf8::append(out, simple);
    return out;
  }
  const auto whole = long_uppers().at(c);
  if (c == 0x149) // an apostrophe and n
    return std::string(whole);
  std::size_t pos = 0;
  utf8::append(out, utf8::next(whole, pos));
  while (pos < whole.size()) {
    const char32_t next = utf8::next(whole, pos);
    if (next == 0x399) // iota, which stays below the letter
      utf8::append(out, 0x345);
    else
      utf8::append(out, static_cast<char32_t>(utf8proc_tolower(static_cast<utf8proc_int32_t>(next))));
  }
  return out;
}

} // namespace

std::string capitalize(std::string_view text) {
  if (text.empty())
    return {};
  std::size_t pos = 0;
  const char32_t c = utf8::next(text, pos);
  return title_of(c) + lower(text).substr(lower(text.substr(0, pos)).size());
}

std::string title(std::string_view text) {
  std::string out;
  bool inside = false; // behind a letter that has a case
  for (std::size_t pos = 0; pos < text.size();) {
    const std::size_t at = pos;
    const char32_t c = utf8::next(text, pos);
    const auto one = text.substr(at, pos - at);
    if (!inside)
      out += title_of(c);
    else
      out += c == 0x3A3 && ends_word(text, at, pos) ? "\xCF\x82" : lowercase(one);
    inside = is_cased(c);
  }
  return out;
}

bool is_letter(char32_t c) noexcept {
  const auto k = category(c);
  return is_cased(c) || k == UTF8PROC_CATEGORY_LM || k == UTF8PROC_CATEGORY_LO;
}

bool is_digit(char32_t c) noexcept {
  // Nd, and the superscripts and circled digits that Unicode calls digits.
  static constexpr range digits[] = {{0xB2, 0xB3},     {0xB9, 0xB9},       {0x1369, 0x1371},   {0x19DA, 0x19DA},   {0x2070, 0x2070},
                                     {0x2074, 0x2079}, {0x2080, 0x2089},   {0x2460, 0x2468},   {0x2474, 0x247C},   {0x2488, 0x2490},
                                     {0x24EA, 0x24EA}, {0x24F5, 0x24FD},   {0x24FF, 0x24FF},   {0x2776, 0x277E},   {0x2780, 0x2788},
                                     {0x278A, 0x2792}, {0x10A40, 0x10A43}, {0x10E60, 0x10E68}, {0x11052, 0x1105A}, {0x1F100, 0x1F10A}};
  return category(c) == UTF8PROC_CATEGORY_ND || within(digits, c);
}

bool is_printable(char32_t c) noexcept {
  switch (category(c)) {
  case UTF8PROC_CATEGORY_CN:
  case UTF8PROC_CATEGORY_CC:
  case UTF8PROC_CATEGORY_CF:
  case UTF8PROC_CATEGORY_CS:
  case UTF8PROC_CATEGORY_CO:
  case UTF8PROC_CATEGORY_ZS:
  case UTF8PROC_CATEGORY_ZL:
  case UTF8PROC_CATEGORY_ZP:
    return false;
  default:
    return true;
  }
}

} // namespace troupe::unicode
