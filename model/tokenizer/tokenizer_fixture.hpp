#pragma once
#include <array>
#include <cstdint>
#include <cstdio>
#include <string>
#include <vector>

namespace troupe {

/// For tests: tests/reference/tokenizer_dump.py's digest of ids and text.
class text_digest {
public:
  text_digest& operator<<(const std::string& text) {
    for (const char c : text + '\xFF')
      state_ = (state_ ^ static_cast<unsigned char>(c)) * 0x100000001B3ull;
    return *this;
  }
  text_digest& operator<<(const std::vector<std::int32_t>& list) {
    std::string text;
    for (const auto id : list)
      text += std::to_string(id) + ' ';
    return *this << text;
  }
  std::string hex() const {
    std::array<char, 20> out{};
    std::snprintf(out.data(), out.size(), "%012llx", static_cast<unsigned long long>(state_ >> 16));
    return out.data();
  }

private:
  std::uint64_t state_ = 0xCBF29CE484222325ull;
};

} // namespace troupe
