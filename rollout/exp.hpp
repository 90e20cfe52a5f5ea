#pragma once
#include <bit>
#include <cstddef>
#include <cstdint>

namespace troupe {

/// e^x for x <= 0; 1 at 0, 0 below -87, relative error under 2e-7. Multiplications and fused additions in a fixed
/// order, so every processor and every vector width gives the same bits. Pure; any thread.
/// Source: Cephes expf (polynomial and two-part ln 2).
[[gnu::always_inline]] inline float exp_nonpositive(float x) noexcept {
  constexpr float to_integer = 12582912.0f; // 1.5 * 2^23: adding it leaves the rounded integer in the low bits
  const float c = x < -87.0f ? -87.0f : x;
  const float shifted = __builtin_fmaf(c, 1.44269504f, to_integer);
  const float n = shifted - to_integer;
  const float r = __builtin_fmaf(n, 2.12194440e-4f, __builtin_fmaf(n, -0.693359375f, c));
  float p = __builtin_fmaf(1.9875691500e-4f, r, 1.3981999507e-3f);
  p = __builtin_fmaf(p, r, 8.3334519073e-3f);
  p = __builtin_fmaf(p, r, 4.1665795894e-2f);
  p = __builtin_fmaf(p, r, 1.6666665459e-1f);
  p = __builtin_fmaf(p, r, 5.0000001201e-1f);
  const float y = __builtin_fmaf(p, r * r, r) + 1.0f;
  const float scale = std::bit_cast<float>((std::bit_cast<std::uint32_t>(shifted) << 23) + 0x3f800000u);
  return x < -87.0f ? 0.0f : y * scale;
}

/// Rows are worked on in blocks of so many values.
inline constexpr std::size_t exp_block = 256;
/// maxima[b] = the largest of block b, -FLT_MAX where there is none above it. -> whether all n values are finite.
bool block_maxima(const float* x, float* maxima, std::size_t n) noexcept;
/// sums[b] = sum over block b of exp_nonpositive((x[i] - most) * scale) -> the sum of all. By the widest vectors this processor has.
double exp_sums(const float* x, float most, float scale, double* sums, std::size_t n) noexcept;
/// The same bits by code for every x86-64.
double exp_sums_portable(const float* x, float most, float scale, double* sums, std::size_t n) noexcept;
struct masked_mass {
  double mass = 0;
  std::size_t count = 0;
};
/// Sum and number of the weights whose x is at least `lowest`; maxima: as block_maxima gave them for x. [n] f32.
masked_mass mass_from(const float* x, const float* weights, const float* maxima, float lowest, std::size_t n) noexcept;
/// Sets to 0 the weights whose x is less than `lowest`, or equal and after index `last`; sums of blocks -> the sum of all.
double cut_weights(const float* x, float lowest, std::size_t last, float* weights, double* sums, std::size_t n) noexcept;
/// out[i] = exp_nonpositive((x[i] - most) * scale), by the widest vectors this processor has; [n] f32.
void exp_scaled(const float* x, float most, float scale, float* out, std::size_t n) noexcept;
/// The same bits by code for every x86-64.
void exp_scaled_portable(const float* x, float most, float scale, float* out, std::size_t n) noexcept;

} // namespace troupe
