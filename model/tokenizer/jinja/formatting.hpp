#pragma once
#include "model/tokenizer/jinja/machine.hpp"

namespace troupe::jinja {

/// Python's `format % operand`: conversions s, r, d, i, u, f, F, x, X, c and %, with flags, width, precision and keys.
/// Fails as Python does; errc::unsupported for what it does not know.
value percent_format(machine& m, const std::string& format, const value& operand);

/// Python's str.format; fields are counted, indexed or named, with !s or !r, without a format specification.
value brace_format(machine& m, const std::string& format, const arguments& args);

/// Text in a field of `width` characters: side < 0 at the left, 0 in the middle as str.center has it, > 0 at the right.
value justified(machine& m, const std::string& text, std::int64_t width, int side, char32_t fill = U' ');

/// What HTML escapes, as markupsafe does.
std::string html_escaped(std::string_view text);

} // namespace troupe::jinja
