#pragma once
#include <bit>
#include <cstdint>

namespace troupe {

// 16-bit floats and float32. Widening is exact; narrowing rounds to nearest even; NaN stays NaN with its sign, and a
// float16 one becomes quiet, as the processor has it.

constexpr float bf16_to_f32(std::uint16_t bits) noexcept { return std::bit_cast<float>(std::uint32_t(bits) << 16); }

constexpr std::uint16_t f32_to_bf16(float value) noexcept {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u)
    return std::uint16_t(bits >> 16 | 0x40u);
  return std::uint16_t((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

// Without branches, so that a loop of it becomes vector instructions. A subnormal is what 2^-14 and its mantissa exceed 2^-14 by.
constexpr float f16_to_f32(std::uint16_t bits) noexcept {
  constexpr std::uint32_t rebias = 112u << 23;
  const std::uint32_t sign = std::uint32_t(bits & 0x8000u) << 16, exponent = bits & 0x7c00u, mantissa = bits & 0x3ffu;
  const std::uint32_t quiet = std::uint32_t((bits & 0x7fffu) > 0x7c00u) << 22;
  const std::uint32_t normal = ((std::uint32_t(bits & 0x7fffu) << 13) + rebias + (exponent == 0x7c00u) * rebias) | quiet;
  const auto subnormal = std::bit_cast<std::uint32_t>(std::bit_cast<float>(113u << 23 | mantissa << 13) - 0x1p-14f);
  const std::uint32_t is_subnormal = 0u - std::uint32_t(exponent == 0);
  return std::bit_cast<float>(sign | (subnormal & is_subnormal) | (normal & ~is_subnormal));
}

constexpr std::uint16_t f32_to_f16(float value) noexcept {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  const auto sign = std::uint16_t(bits >> 16 & 0x8000u);
  std::uint32_t rest = bits & 0x7fffffffu;
  if (rest > 0x7f800000u)
    return std::uint16_t(sign | 0x7e00u | (rest >> 13 & 0x3ffu));
  if (rest >= 0x47800000u) // 2^16
    return std::uint16_t(sign | 0x7c00u);
  if (rest < 0x33000000u) // below half the least subnormal
    return sign;
  if (rest < 0x38800000u) { // below 2^-14: a multiple of 2^-24
    const std::uint32_t mantissa = (rest & 0x7fffffu) | 0x800000u, shift = 126u - (rest >> 23), half = 1u << (shift - 1);
    const std::uint32_t quotient = mantissa >> shift, remainder = mantissa & ((1u << shift) - 1);
    return std::uint16_t(sign | (quotient + (remainder > half || (remainder == half && (quotient & 1u)))));
  }
  rest += 0xfffu + (rest >> 13 & 1u);
  return std::uint16_t(sign | (rest - (112u << 23)) >> 13);
}

} // namespace troupe
