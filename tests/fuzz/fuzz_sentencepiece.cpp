#include "core/error.hpp"
#include "model/tokenizer/sentencepiece.hpp"
#include "model/tokenizer/tokenizer.hpp"
#include <string_view>

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  try {
    const auto json =
        troupe::sentencepiece_tokenizer({reinterpret_cast<const char*>(data), size}, nlohmann::json::object(), "tokenizer.model");
    troupe::tokenizer::parse(json.dump(), "made")->encode("Hello \xC3\xA9", true);
  } catch (const troupe::error&) {
    return 0; // refused by name: what a damaged file should get
  }
  return 0;
}
