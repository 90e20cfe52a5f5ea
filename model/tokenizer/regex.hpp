#pragma once
#include <cstddef>
#include <functional>
#include <memory>
#include <string>
#include <string_view>

namespace troupe {

/// A pattern written for Oniguruma (Ruby syntax), which tokenizer.json's regexes are, matched by PCRE2.
/// Immutable; any thread. What differs between the two is rewritten, or refused by name.
class regex {
public:
  /// Throws errc::unsupported (a construct) and errc::bad_input (a syntax error); `where` stands in messages.
  regex(std::string_view pattern, const std::string& where);
  /// A pattern that stands for itself.
  static regex literal(std::string_view text, const std::string& where);

  /// Calls `match(begin, end)` for each match from left to right. text: well-formed UTF-8.
  /// An empty match right behind the match before is left out, as Oniguruma's iterator does.
  void for_each(std::string_view text, const std::function<void(std::size_t, std::size_t)>& match) const;

  /// The text with each match replaced; an empty one stays empty, as in the package.
  std::string replaced(std::string_view text, std::string_view content) const;
  /// Whether it matches somewhere.
  bool matches(std::string_view text) const;

private:
  struct compiled;
  explicit regex(std::shared_ptr<const compiled> c) : compiled_(std::move(c)) {}
  std::shared_ptr<const compiled> compiled_;
};

/// The PCRE2 pattern that matches what Oniguruma's matches.
std::string from_oniguruma(std::string_view pattern, const std::string& where);

} // namespace troupe
