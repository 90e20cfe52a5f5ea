#pragma once
#include <cstddef>
#include <cstdint>
#include <string_view>

namespace troupe {

/// Element types of tensors in files and on the wire.
enum class dtype : std::uint8_t { f32 = 0, bf16, f16, f64, i64, i32, i16, i8, u8, boolean };

constexpr std::size_t size_of(dtype t) noexcept {
  switch (t) {
  case dtype::f64:
  case dtype::i64:
    return 8;
  case dtype::f32:
  case dtype::i32:
    return 4;
  case dtype::bf16:
  case dtype::f16:
  case dtype::i16:
    return 2;
  default:
    return 1;
  }
}

/// safetensors' spelling: "F32", "BF16", ...
constexpr std::string_view name_of(dtype t) noexcept {
  constexpr std::string_view names[] = {"F32", "BF16", "F16", "F64", "I64", "I32", "I16", "I8", "U8", "BOOL"};
  return names[std::size_t(t)];
}

} // namespace troupe
