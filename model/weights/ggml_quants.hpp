#pragma once
#include <cstddef>
#include <cstdint>
#include <span>

namespace troupe {

/// ggml's tensor types, with its numbers; only those that can be read here.
enum class ggml_type : std::uint32_t {
  f32 = 0,
  f16 = 1,
  q4_0 = 2,
  q4_1 = 3,
  q5_0 = 6,
  q5_1 = 7,
  q8_0 = 8,
  q4_k = 12,
  q5_k = 13,
  q6_k = 14,
  bf16 = 30,
};

/// Elements in a block and the bytes that hold them.
struct ggml_layout {
  const char* name; // "Q4_1"
  std::size_t block, bytes;
};

/// Null for a type that is not in `ggml_type`.
const ggml_layout* layout_of(std::uint32_t type) noexcept;
/// ggml's name of any of its types, e.g. "IQ4_XS"; "type 99" style names are the caller's. Null when ggml has no such type.
const char* ggml_name(std::uint32_t type) noexcept;

/// Whole blocks to float32, with gguf-py's arithmetic and order: the same bits. out: [blocks.size() / bytes * block].
void dequantize(ggml_type type, std::span<const std::byte> blocks, float* out) noexcept;

} // namespace troupe
