#include "model/tokenizer/byte_level.hpp"
#include "model/tokenizer/parts.hpp"
#include "model/tokenizer/utf8.hpp"

namespace troupe {
namespace {

constexpr char32_t first_stand_in = 0x100;

constexpr bool stands_for_itself(int b) { return (b >= '!' && b <= '~') || (b >= 0xA1 && b <= 0xAC) || (b >= 0xAE && b <= 0xFF); }

// Bytes that print stand for themselves; the others take U+0100, U+0101, ... in their order.
constexpr std::array<char32_t, 256> stand_ins = [] {
  std::array<char32_t, 256> out{};
  char32_t next = first_stand_in;
  for (int b = 0; b < 256; ++b)
    out[std::size_t(b)] = stands_for_itself(b) ? static_cast<char32_t>(b) : next++;
  return out;
}();

constexpr std::array<std::int16_t, 0x144> bytes = [] {
  std::array<std::int16_t, 0x144> out{};
  out.fill(-1);
  for (int b = 0; b < 256; ++b)
    out[stand_ins[std::size_t(b)]] = static_cast<std::int16_t>(b);
  return out;
}();

} // namespace

const std::array<std::string, 256>& byte_level_characters() {
  static const auto table = [] {
    std::array<std::string, 256> out;
    for (std::size_t b = 0; b < 256; ++b)
      utf8::append(out[b], stand_ins[b]);
    return out;
  }();
  return table;
}

int byte_of_character(char32_t c) noexcept { return c < bytes.size() ? bytes[c] : -1; }

void append_byte_level(std::string& out, std::string_view token) {
  const std::size_t before = out.size();
  for (std::size_t pos = 0; pos < token.size();) {
    const int byte = byte_of_character(utf8::next(token, pos));
    if (byte < 0) {
      out.resize(before);
      out.append(token);
      return;
    }
    out.push_back(static_cast<char>(byte));
  }
}

} // namespace troupe
