#include "experience/reward.hpp"
#include "core/error.hpp"
#include <array>
#include <cstdlib>
#include <optional>

namespace troupe {
namespace {

bool is_digit(char c) { return c >= '0' && c <= '9'; }

std::string without_digit_commas(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (std::size_t i = 0; i < text.size(); ++i)
    if (text[i] != ',' || i == 0 || i + 1 == text.size() || !is_digit(text[i - 1]) || !is_digit(text[i + 1]))
      out += text[i];
  return out;
}

/// digits * 10^exponent with neither leading nor trailing zeros in `digits`; zero has no digits, no sign and exponent 0.
struct decimal {
  bool negative = false;
  std::string digits;
  std::int64_t exponent = 0;
  bool operator==(const decimal&) const = default;
};

void normalise(decimal& d) {
  const auto last = d.digits.find_last_not_of('0');
  if (last == std::string::npos) {
    d = decimal{};
    return;
  }
  d.exponent += std::int64_t(d.digits.size() - last - 1);
  d.digits.resize(last + 1);
  d.digits.erase(0, d.digits.find_first_not_of('0'));
}

std::size_t digits_from(std::string_view text, std::size_t at) {
  while (at < text.size() && is_digit(text[at]))
    ++at;
  return at;
}

std::optional<std::int64_t> parse_exponent(std::string_view text) {
  const bool negative = !text.empty() && text[0] == '-';
  if (negative || (!text.empty() && text[0] == '+'))
    text.remove_prefix(1);
  if (text.empty() || text.size() > 6 || digits_from(text, 0) != text.size())
    return std::nullopt;
  const std::int64_t value = std::strtoll(std::string(text).c_str(), nullptr, 10);
  return negative ? -value : value;
}

std::optional<decimal> parse_decimal(std::string_view text) {
  decimal d;
  d.negative = !text.empty() && text[0] == '-';
  if (d.negative || (!text.empty() && text[0] == '+'))
    text.remove_prefix(1);
  const std::size_t point = digits_from(text, 0);
  std::size_t end = point;
  d.digits = text.substr(0, point);
  if (end < text.size() && text[end] == '.') {
    end = digits_from(text, point + 1);
    d.digits += text.substr(point + 1, end - point - 1);
    d.exponent = -std::int64_t(end - point - 1);
  }
  if (d.digits.empty())
    return std::nullopt;
  if (end < text.size() && (text[end] == 'e' || text[end] == 'E')) {
    const auto exponent = parse_exponent(text.substr(end + 1));
    if (!exponent)
      return std::nullopt;
    d.exponent += *exponent;
    end = text.size();
  }
  if (end != text.size())
    return std::nullopt;
  normalise(d);
  return d;
}

/// Bytes of the white space character that `text` begins with; 0: none. The table is of UTF-8 encodings.
std::size_t leading_space(std::string_view text) {
  if (text.empty())
    return 0;
  const auto c = static_cast<unsigned char>(text[0]);
  if ((c >= 0x09 && c <= 0x0d) || (c >= 0x1c && c <= 0x20))
    return 1;
  static constexpr std::array<std::string_view, 19> wide = {
      "\xc2\x85",     "\xc2\xa0",                                                                     // U+0085, U+00A0
      "\xe1\x9a\x80",                                                                                 // U+1680
      "\xe2\x80\x80", "\xe2\x80\x81", "\xe2\x80\x82", "\xe2\x80\x83", "\xe2\x80\x84", "\xe2\x80\x85", // U+2000 ..
      "\xe2\x80\x86", "\xe2\x80\x87", "\xe2\x80\x88", "\xe2\x80\x89", "\xe2\x80\x8a",                 // .. U+200A
      "\xe2\x80\xa8", "\xe2\x80\xa9", "\xe2\x80\xaf", "\xe2\x81\x9f", "\xe3\x80\x80"}; // U+2028, U+2029, U+202F, U+205F, U+3000
  for (std::string_view s : wide)
    if (text.starts_with(s))
      return s.size();
  return 0;
}

class last_number_reward final : public reward_function {
public:
  double operator()(const reward_input& in) const override {
    return in.finish == finish_reason::stop && same_number(last_number(in.text), number_of(in.answer)) ? 1.0 : 0.0;
  }
  std::string objection(std::string_view answer) const override {
    return parse_decimal(number_of(answer)) ? "" : "is not a number, and reward.function = \"last_number\" compares numbers";
  }

private:
  static std::string number_of(std::string_view answer) { return without_digit_commas(strip(answer)); }
};

class exact_match_reward final : public reward_function {
public:
  double operator()(const reward_input& in) const override { return strip(in.text) == in.answer ? 1.0 : 0.0; }
  std::string objection(std::string_view answer) const override {
    return strip(answer) == answer ? "" : "has white space at its ends, which reward.function = \"exact_match\" strips from a response";
  }
};

using factory = std::unique_ptr<reward_function> (*)(const reward_section&);
struct table_row {
  std::string_view name;
  factory make;
};

// One line a reward: docs/rewards.md.
constexpr std::array table = {
    table_row{"last_number",
              [](const reward_section&) -> std::unique_ptr<reward_function> { return std::make_unique<last_number_reward>(); }},
    table_row{"exact_match",
              [](const reward_section&) -> std::unique_ptr<reward_function> { return std::make_unique<exact_match_reward>(); }},
};

} // namespace

std::string last_number(std::string_view text) {
  const std::string plain = without_digit_commas(text);
  std::string_view found;
  for (std::size_t at = 0; at < plain.size();) {
    if (!is_digit(plain[at])) {
      ++at;
      continue;
    }
    const std::size_t begin = at > 0 && plain[at - 1] == '-' ? at - 1 : at;
    std::size_t end = digits_from(plain, at);
    if (end + 1 < plain.size() && plain[end] == '.' && is_digit(plain[end + 1]))
      end = digits_from(plain, end + 1);
    found = std::string_view(plain).substr(begin, end - begin);
    at = end;
  }
  return std::string(found);
}

bool same_number(std::string_view a, std::string_view b) {
  const auto x = parse_decimal(a), y = parse_decimal(b);
  return x && y && *x == *y;
}

std::string_view strip(std::string_view text) {
  while (const std::size_t n = leading_space(text))
    text.remove_prefix(n);
  for (bool more = true; more;) {
    more = false;
    for (std::size_t n = 1; n <= 3 && n <= text.size() && !more; ++n)
      if (leading_space(text.substr(text.size() - n)) == n) {
        text.remove_suffix(n);
        more = true;
      }
  }
  return text;
}

std::vector<std::string> reward_names() {
  std::vector<std::string> names;
  for (const table_row& row : table)
    names.emplace_back(row.name);
  return names;
}

std::unique_ptr<reward_function> make_reward(const reward_section& section) {
  std::string known;
  for (const table_row& row : table) {
    if (row.name == section.function)
      return row.make(section);
    known += (known.empty() ? "" : ", ") + std::string(row.name);
  }
  throw error(errc::bad_config, "reward.function = \"" + section.function + "\" is not known; known: " + known);
}

} // namespace troupe
