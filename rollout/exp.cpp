#include "rollout/exp.hpp"
#include <cfloat>

namespace troupe {

namespace {

[[gnu::always_inline]] inline void run(const float* x, float most, float scale, float* out, std::size_t n) noexcept {
  for (std::size_t i = 0; i < n; ++i)
    out[i] = exp_nonpositive((x[i] - most) * scale);
}

[[gnu::always_inline]] inline float largest(const float* x, std::size_t n) noexcept {
  constexpr std::size_t lanes = 64;
  float most[lanes], sums[lanes];
  for (std::size_t j = 0; j < lanes; ++j) {
    most[j] = -FLT_MAX;
    sums[j] = 0;
  }
  std::size_t i = 0;
  for (; i + lanes <= n; i += lanes)
    for (std::size_t j = 0; j < lanes; ++j) {
      const float v = x[i + j];
      sums[j] += v * 0.0f; // NaN from here on when v is not finite
      most[j] = v > most[j] ? v : most[j];
    }
  for (; i < n; ++i) {
    sums[0] += x[i] * 0.0f;
    most[0] = x[i] > most[0] ? x[i] : most[0];
  }
  float best = -FLT_MAX, sum = 0;
  for (std::size_t j = 0; j < lanes; ++j) {
    sum += sums[j];
    best = most[j] > best ? most[j] : best;
  }
  return sum == 0 ? best : sum; // sum is 0 or NaN
}

[[gnu::target("avx2")]] void run_avx2(const float* x, float most, float scale, float* out, std::size_t n) noexcept {
  run(x, most, scale, out, n);
}
[[gnu::target("avx512f")]] void run_avx512(const float* x, float most, float scale, float* out, std::size_t n) noexcept {
  run(x, most, scale, out, n);
}
[[gnu::target("avx2")]] float largest_avx2(const float* x, std::size_t n) noexcept { return largest(x, n); }
[[gnu::target("avx512f")]] float largest_avx512(const float* x, std::size_t n) noexcept { return largest(x, n); }

} // namespace

void exp_scaled_portable(const float* x, float most, float scale, float* out, std::size_t n) noexcept { run(x, most, scale, out, n); }

void exp_scaled(const float* x, float most, float scale, float* out, std::size_t n) noexcept {
  if (__builtin_cpu_supports("avx512f"))
    return run_avx512(x, most, scale, out, n);
  if (__builtin_cpu_supports("avx2"))
    return run_avx2(x, most, scale, out, n);
  exp_scaled_portable(x, most, scale, out, n);
}

float finite_max(const float* x, std::size_t n) noexcept {
  if (__builtin_cpu_supports("avx512f"))
    return largest_avx512(x, n);
  if (__builtin_cpu_supports("avx2"))
    return largest_avx2(x, n);
  return largest(x, n);
}

} // namespace troupe
