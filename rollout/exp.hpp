#pragma once
#include <bit>
#include <cstddef>
#include <cstdint>

namespace troupe {

/// e^x for x <= 0; 1 at 0, 0 below -87, relative error under 2e-7. Multiplications and additions in a fixed order and no
/// library call, so every processor and every vector width gives the same bits. Pure; any thread.
/// Source: Cephes expf (polynomial and two-part ln 2).
[[gnu::always_inline]] inline float exp_nonpositive(float x) noexcept {
  constexpr float to_integer = 12582912.0f; // 1.5 * 2^23: adding it leaves the rounded integer in the low bits
  const float c = x < -87.0f ? -87.0f : x;
  const float shifted = c * 1.44269504f + to_integer;
  const float n = shifted - to_integer;
  const float r = (c - n * 0.693359375f) - n * -2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  const float y = (p * (r * r) + r) + 1.0f;
  const float scale = std::bit_cast<float>((std::bit_cast<std::uint32_t>(shifted) << 23) + 0x3f800000u);
  return x < -87.0f ? 0.0f : y * scale;
}

/// The largest of n values; NaN when one of them is not finite.
float finite_max(const float* x, std::size_t n) noexcept;
/// out[i] = exp_nonpositive((x[i] - most) * scale), by the widest vectors this processor has; [n] f32.
void exp_scaled(const float* x, float most, float scale, float* out, std::size_t n) noexcept;
/// The same bits by code for every x86-64.
void exp_scaled_portable(const float* x, float most, float scale, float* out, std::size_t n) noexcept;

} // namespace troupe
