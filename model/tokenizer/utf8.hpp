#pragma once
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace troupe::utf8 {

/// Offset of the first byte that is not part of well-formed UTF-8 (no surrogates, no overlong forms); npos when all is well.
std::size_t find_invalid(std::string_view text) noexcept;

/// The character at `pos`, which is then moved behind it. text: well-formed.
char32_t next(std::string_view text, std::size_t& pos) noexcept;

/// The character that ends at `pos`, which is then moved to its start. text: well-formed; pos > 0.
char32_t previous(std::string_view text, std::size_t& pos) noexcept;

void append(std::string& out, char32_t c);

/// Appends bytes as text; every maximal subpart of an ill-formed sequence becomes one U+FFFD (Unicode 3.9, as Rust's from_utf8_lossy).
/// With `keep_tail` an unfinished but so far well-formed sequence at the end is left out. Returns how many bytes were taken.
std::size_t append_lossy(std::string& out, std::string_view bytes, bool keep_tail = false);

} // namespace troupe::utf8
