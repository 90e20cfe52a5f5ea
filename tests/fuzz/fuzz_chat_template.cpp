#include "core/error.hpp"
#include "model/tokenizer/chat_template.hpp"
#include <string>

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using json = nlohmann::ordered_json;
  static const json messages = json::parse(R"([{"role": "system", "content": "s"}, {"role": "user", "content": " u\n"},
    {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {"a": [1, null, 1.5]}}}]}, {"role": "tool", "content": "t"}])");
  try {
    const auto made = troupe::chat_template::parse(std::string(reinterpret_cast<const char*>(data), size), {{"bos_token", "<s>"}}, "t");
    made->render_marked(messages, true);
  } catch (const troupe::error&) {
    return 0; // refused by name: what a damaged template should get
  }
  return 0;
}
