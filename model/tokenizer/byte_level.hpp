#pragma once
#include <array>
#include <cstdint>
#include <string>

namespace troupe {

/// GPT-2's printable stand-in for each byte, as UTF-8.
const std::array<std::string, 256>& byte_level_characters();
/// The byte a stand-in stands for; -1 for other characters.
int byte_of_character(char32_t c) noexcept;

} // namespace troupe
