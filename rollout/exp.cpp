#include "rollout/exp.hpp"
#include <cfloat>

namespace troupe {

namespace {

[[gnu::always_inline]] inline void run(const float* x, float most, float scale, float* out, std::size_t n) noexcept {
  for (std::size_t i = 0; i < n; ++i)
    out[i] = exp_nonpositive((x[i] - most) * scale);
}

// A sum is 32 interleaved sums, then a tree: one order for every vector width. GCC would unroll a loop of 16, and not vectorise it.
constexpr std::size_t lanes = 32;

[[gnu::always_inline]] inline double block_sum(const float* x, float most, float scale, std::size_t n) noexcept {
  float s[lanes] = {};
  std::size_t i = 0;
  for (; i + lanes <= n; i += lanes)
    for (std::size_t j = 0; j < lanes; ++j)
      s[j] += exp_nonpositive((x[i + j] - most) * scale);
  for (; i < n; ++i)
    s[i % lanes] += exp_nonpositive((x[i] - most) * scale);
  for (std::size_t half = lanes / 2; half > 0; half /= 2)
    for (std::size_t j = 0; j < half; ++j)
      s[j] += s[j + half];
  return double(s[0]);
}

[[gnu::always_inline]] inline double sum_blocks(const float* x, float most, float scale, double* sums, std::size_t n) noexcept {
  double total = 0;
  for (std::size_t b = 0; b * exp_block < n; ++b) {
    const std::size_t rest = n - b * exp_block;
    sums[b] = block_sum(x + b * exp_block, most, scale, rest < exp_block ? rest : exp_block);
    total += sums[b];
  }
  return total;
}

[[gnu::always_inline]] inline masked_mass add_masked(const float* x, const float* weights, const float* maxima, float lowest,
                                                     std::size_t n) noexcept {
  masked_mass total;
  for (std::size_t b = 0; b * exp_block < n; ++b) {
    if (maxima[b] < lowest)
      continue;
    float s[lanes] = {};
    std::uint32_t counts[lanes] = {};
    const std::size_t end = n < (b + 1) * exp_block ? n : (b + 1) * exp_block;
    std::size_t i = b * exp_block;
    for (; i + lanes <= end; i += lanes)
      for (std::size_t j = 0; j < lanes; ++j) {
        const float v = x[i + j], w = weights[i + j];
        const std::uint32_t mask = v >= lowest ? ~0u : 0u; // a choice between numbers would become a jump
        s[j] += std::bit_cast<float>(std::bit_cast<std::uint32_t>(w) & mask);
        counts[j] += mask & 1u;
      }
    for (; i < end; ++i) {
      s[0] += x[i] >= lowest ? weights[i] : 0.0f;
      counts[0] += x[i] >= lowest ? 1u : 0u;
    }
    for (std::size_t j = 0; j < lanes; ++j) {
      total.mass += double(s[j]);
      total.count += std::size_t(counts[j]);
    }
  }
  return total;
}

[[gnu::always_inline]] inline double cut(const float* x, float lowest, std::size_t last, float* weights, double* sums,
                                         std::size_t n) noexcept {
  double total = 0;
  for (std::size_t i = 0; i < n; ++i)
    weights[i] = x[i] >= lowest ? weights[i] : 0.0f;
  for (std::size_t i = last + 1; i < n; ++i)
    weights[i] = x[i] > lowest ? weights[i] : 0.0f;
  for (std::size_t b = 0; b * exp_block < n; ++b) {
    const std::size_t end = n < (b + 1) * exp_block ? n : (b + 1) * exp_block;
    double s[lanes] = {};
    std::size_t i = b * exp_block;
    for (; i + lanes <= end; i += lanes)
      for (std::size_t j = 0; j < lanes; ++j)
        s[j] += double(weights[i + j]);
    for (; i < end; ++i)
      s[0] += double(weights[i]);
    for (std::size_t j = 1; j < lanes; ++j)
      s[0] += s[j];
    sums[b] = s[0];
    total += s[0];
  }
  return total;
}

[[gnu::always_inline]] inline bool find_maxima(const float* x, float* maxima, std::size_t n) noexcept {
  float sums[lanes] = {}; // NaN from the first value on that is not finite
  for (std::size_t b = 0; b * exp_block < n; ++b) {
    float most[lanes];
    for (std::size_t j = 0; j < lanes; ++j)
      most[j] = -FLT_MAX;
    const std::size_t end = n < (b + 1) * exp_block ? n : (b + 1) * exp_block;
    std::size_t i = b * exp_block;
    for (; i + lanes <= end; i += lanes)
      for (std::size_t j = 0; j < lanes; ++j) {
        const float v = x[i + j];
        sums[j] += v * 0.0f;
        most[j] = v > most[j] ? v : most[j];
      }
    for (; i < end; ++i) {
      sums[0] += x[i] * 0.0f;
      most[0] = x[i] > most[0] ? x[i] : most[0];
    }
    for (std::size_t half = lanes / 2; half > 0; half /= 2)
      for (std::size_t j = 0; j < half; ++j)
        most[j] = most[j + half] > most[j] ? most[j + half] : most[j];
    maxima[b] = most[0];
  }
  float sum = 0;
  for (const float s : sums)
    sum += s;
  return sum == 0;
}

[[gnu::target("avx2,fma")]] void run_avx2(const float* x, float most, float scale, float* out, std::size_t n) noexcept {
  run(x, most, scale, out, n);
}
[[gnu::target("avx512f")]] void run_avx512(const float* x, float most, float scale, float* out, std::size_t n) noexcept {
  run(x, most, scale, out, n);
}
[[gnu::target("avx2,fma")]] double sums_avx2(const float* x, float most, float scale, double* sums, std::size_t n) noexcept {
  return sum_blocks(x, most, scale, sums, n);
}
[[gnu::target("avx512f")]] double sums_avx512(const float* x, float most, float scale, double* sums, std::size_t n) noexcept {
  return sum_blocks(x, most, scale, sums, n);
}
[[gnu::target("avx2,fma")]] masked_mass masked_avx2(const float* x, const float* weights, const float* maxima, float lowest,
                                                    std::size_t n) noexcept {
  return add_masked(x, weights, maxima, lowest, n);
}
[[gnu::target("avx512f")]] masked_mass masked_avx512(const float* x, const float* weights, const float* maxima, float lowest,
                                                     std::size_t n) noexcept {
  return add_masked(x, weights, maxima, lowest, n);
}
[[gnu::target("avx2,fma")]] double cut_avx2(const float* x, float lowest, std::size_t last, float* weights, double* sums,
                                            std::size_t n) noexcept {
  return cut(x, lowest, last, weights, sums, n);
}
[[gnu::target("avx512f")]] double cut_avx512(const float* x, float lowest, std::size_t last, float* weights, double* sums,
                                             std::size_t n) noexcept {
  return cut(x, lowest, last, weights, sums, n);
}
[[gnu::target("avx2,fma")]] bool maxima_avx2(const float* x, float* maxima, std::size_t n) noexcept { return find_maxima(x, maxima, n); }
[[gnu::target("avx512f")]] bool maxima_avx512(const float* x, float* maxima, std::size_t n) noexcept { return find_maxima(x, maxima, n); }

} // namespace

void exp_scaled_portable(const float* x, float most, float scale, float* out, std::size_t n) noexcept { run(x, most, scale, out, n); }

void exp_scaled(const float* x, float most, float scale, float* out, std::size_t n) noexcept {
  if (__builtin_cpu_supports("avx512f"))
    return run_avx512(x, most, scale, out, n);
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
    return run_avx2(x, most, scale, out, n);
  exp_scaled_portable(x, most, scale, out, n);
}

double exp_sums_portable(const float* x, float most, float scale, double* sums, std::size_t n) noexcept {
  return sum_blocks(x, most, scale, sums, n);
}

double exp_sums(const float* x, float most, float scale, double* sums, std::size_t n) noexcept {
  if (__builtin_cpu_supports("avx512f"))
    return sums_avx512(x, most, scale, sums, n);
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
    return sums_avx2(x, most, scale, sums, n);
  return exp_sums_portable(x, most, scale, sums, n);
}

masked_mass mass_from(const float* x, const float* weights, const float* maxima, float lowest, std::size_t n) noexcept {
  if (__builtin_cpu_supports("avx512f"))
    return masked_avx512(x, weights, maxima, lowest, n);
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
    return masked_avx2(x, weights, maxima, lowest, n);
  return add_masked(x, weights, maxima, lowest, n);
}

double cut_weights(const float* x, float lowest, std::size_t last, float* weights, double* sums, std::size_t n) noexcept {
  if (__builtin_cpu_supports("avx512f"))
    return cut_avx512(x, lowest, last, weights, sums, n);
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
    return cut_avx2(x, lowest, last, weights, sums, n);
  return cut(x, lowest, last, weights, sums, n);
}

bool block_maxima(const float* x, float* maxima, std::size_t n) noexcept {
  if (__builtin_cpu_supports("avx512f"))
    return maxima_avx512(x, maxima, n);
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
    return maxima_avx2(x, maxima, n);
  return find_maxima(x, maxima, n);
}

} // namespace troupe
