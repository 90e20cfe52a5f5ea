#pragma once
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

namespace troupe::unicode {

struct range {
  char32_t first, last;
};

/// Characters that the `tokenizers` package counts to a class ("L", "Nd", ...) and PCRE2's Unicode does not know yet.
std::span<const range> additions(std::string_view class_name);

bool is_space(char32_t c) noexcept;          // White_Space
bool is_numeric(char32_t c) noexcept;        // N, as Rust's char::is_numeric
bool is_word(char32_t c) noexcept;           // \w of Rust's regexes
bool is_punctuation(char32_t c) noexcept;    // what the package's Punctuation splits at
bool is_combining_mark(char32_t c) noexcept; // what its StripAccents drops

/// The 25 characters of White_Space as ranges.
std::span<const range> spaces() noexcept;

enum class form : std::uint8_t { nfc, nfd, nfkc, nfkd };
/// Normal form with the combining classes that the package knows. text: well-formed UTF-8.
std::string normalize(std::string_view text, form f);

/// Lower case as Rust's str::to_lowercase without the rule for a final sigma.
std::string lowercase(std::string_view text);

// As Python's str methods have it.
std::string lower(std::string_view text);
std::string upper(std::string_view text);
std::string capitalize(std::string_view text);
std::string title(std::string_view text);
bool is_letter(char32_t c) noexcept;    // isalpha
bool is_digit(char32_t c) noexcept;     // isdigit
bool is_printable(char32_t c) noexcept; // isprintable, the space aside

} // namespace troupe::unicode
