#include "core/error.hpp"
#include "model/weights/safetensors.hpp"
#include "tests/fuzz/memory_file.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const troupe::fuzz::memory_file file(data, size);
  try {
    const troupe::safetensors_reader reader(file.path());
    for (const auto& [name, info] : reader.tensors()) {
      std::vector<std::byte> copy(info.n_bytes);
      troupe::convert_elements(info.type, info.bytes.data(), info.type, copy.data(), info.n_bytes / troupe::size_of(info.type));
    }
  } catch (const troupe::error&) {
    return 0; // refused by name: what a damaged file should get
  }
  return 0;
}
