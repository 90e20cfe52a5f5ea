#include "core/error.hpp"
#include "model/weights/gguf.hpp"
#include "tests/fuzz/memory_file.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const troupe::fuzz::memory_file file(data, size);
  try {
    const troupe::gguf_reader reader(file.path());
    for (const auto& [name, tensor] : reader.tensors()) {
      std::vector<float> values(tensor.numel());
      troupe::dequantize(tensor.type, tensor.bytes, values.data());
    }
    reader.texts("tokenizer.ggml.tokens");
    reader.integers("tokenizer.ggml.token_type");
    reader.number("llama.rope.freq_base");
  } catch (const troupe::error&) {
    return 0; // refused by name: what a damaged file should get
  }
  return 0;
}
