#include "model/tokenizer/utf8.hpp"

namespace troupe::utf8 {
namespace {

struct scan {
  std::size_t length; // bytes that belong together
  bool complete;      // a whole character
  bool at_end;        // well-formed so far, and the text ended
};

// One character or the longest start of one, by table 3-7 of the Unicode standard.
scan scan_one(std::string_view text, std::size_t pos) noexcept {
  const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned char lead = byte(pos);
  if (lead < 0x80)
    return {1, true, false};
  std::size_t want = 0;
  unsigned char low = 0x80, high = 0xBF;
  if (lead >= 0xC2 && lead <= 0xDF) {
    want = 2;
  } else if (lead >= 0xE0 && lead <= 0xEF) {
    want = 3;
    if (lead == 0xE0)
      low = 0xA0;
    if (lead == 0xED)
      high = 0x9F;
  } else if (lead >= 0xF0 && lead <= 0xF4) {
    want = 4;
    if (lead == 0xF0)
      low = 0x90;
    if (lead == 0xF4)
      high = 0x8F;
  } else {
    return {1, false, false};
  }
  for (std::size_t i = 1; i < want; ++i) {
    if (pos + i >= text.size())
      return {i, false, true};
    const unsigned char b = byte(pos + i);
    if (b < low || b > high)
      return {i, false, false};
    low = 0x80;
    high = 0xBF;
  }
  return {want, true, false};
}

} // namespace

std::size_t find_invalid(std::string_view text) noexcept {
  std::size_t pos = 0;
  while (pos < text.size()) {
    const scan s = scan_one(text, pos);
    if (!s.complete)
      return pos;
    pos += s.length;
  }
  return std::string_view::npos;
}

char32_t next(std::string_view text, std::size_t& pos) noexcept {
  const auto byte = [&](std::size_t i) { return static_cast<char32_t>(static_cast<unsigned char>(text[i])); };
  const char32_t lead = byte(pos++);
  if (lead < 0x80)
    return lead;
  const int more = lead >= 0xF0 ? 3 : lead >= 0xE0 ? 2 : 1;
  char32_t c = lead & (0x3Fu >> more);
  for (int i = 0; i < more && pos < text.size(); ++i)
    c = c << 6 | (byte(pos++) & 0x3F);
  return c;
}

char32_t previous(std::string_view text, std::size_t& pos) noexcept {
  --pos;
  while (pos > 0 && (static_cast<unsigned char>(text[pos]) & 0xC0) == 0x80)
    --pos;
  std::size_t at = pos;
  return next(text, at);
}

void append(std::string& out, char32_t c) {
  const auto put = [&](char32_t b) { out.push_back(static_cast<char>(b)); };
  if (c < 0x80) {
    put(c);
  } else if (c < 0x800) {
    put(0xC0 | c >> 6);
    put(0x80 | (c & 0x3F));
  } else if (c < 0x10000) {
    put(0xE0 | c >> 12);
    put(0x80 | (c >> 6 & 0x3F));
    put(0x80 | (c & 0x3F));
  } else {
    put(0xF0 | c >> 18);
    put(0x80 | (c >> 12 & 0x3F));
    put(0x80 | (c >> 6 & 0x3F));
    put(0x80 | (c & 0x3F));
  }
}

std::size_t append_lossy(std::string& out, std::string_view bytes, bool keep_tail) {
  std::size_t pos = 0;
  while (pos < bytes.size()) {
    const scan s = scan_one(bytes, pos);
    if (s.at_end && keep_tail)
      return pos;
    if (s.complete)
      out.append(bytes.substr(pos, s.length));
    else
      out.append("\xEF\xBF\xBD");
    pos += s.length;
  }
  return pos;
}

} // namespace troupe::utf8
