// The first line is encoded and decoded by the tokenizer.json that follows it.
#include "core/error.hpp"
#include "model/tokenizer/tokenizer.hpp"
#include <algorithm>
#include <string_view>

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  const auto end = std::min(input.find('\n'), input.size());
  try {
    const auto tok = troupe::tokenizer::parse(input.substr(std::min(end + 1, input.size())), "tokenizer.json");
    tok->decode(tok->encode(input.substr(0, end), true), true);
  } catch (const troupe::error&) {
    return 0; // refused by name: what a damaged file should get
  }
  return 0;
}
