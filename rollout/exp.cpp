#include "rollout/exp.hpp"

namespace troupe {

namespace {

[[gnu::always_inline]] inline void run(const float* x, float most, float scale, float* out, std::size_t n) noexcept {
  for (std::size_t i = 0; i < n; ++i)
    out[i] = exp_nonpositive((x[i] - most) * scale);
}

#ifdef __x86_64__
[[gnu::target("avx2")]] void run_avx2(const float* x, float most, float scale, float* out, std::size_t n) noexcept {
  run(x, most, scale, out, n);
}
#endif

} // namespace

void exp_scaled_portable(const float* x, float most, float scale, float* out, std::size_t n) noexcept { run(x, most, scale, out, n); }

void exp_scaled(const float* x, float most, float scale, float* out, std::size_t n) noexcept {
#ifdef __x86_64__
  if (__builtin_cpu_supports("avx2"))
    return run_avx2(x, most, scale, out, n);
#endif
  exp_scaled_portable(x, most, scale, out, n);
}

} // namespace troupe
