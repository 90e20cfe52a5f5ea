#pragma once
#include <cstdint>
#include <string>
#include <vector>

namespace troupe::jinja {

enum class token_kind : std::uint8_t { text, block_begin, block_end, output_begin, output_end, name, string, integer, floating, op, end };

struct token {
  token_kind what;
  int line;
  std::string text; // of a string: what it stands for
};

/// Jinja's tokens with trim_blocks and lstrip_blocks: what whitespace control removes is gone, comments and raw are resolved.
/// Throws errc::bad_input with name and line.
std::vector<token> tokenize(const std::string& source, const std::string& name);

} // namespace troupe::jinja
