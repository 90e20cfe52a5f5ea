#pragma once
#include "model/kernels/cuda/launch.cuh"
#include "model/kernels/cuda/numeric.cuh"

// What the kernels that normalise rows share; it decides the bits of add_rms_norm.
namespace troupe::cuda {

inline constexpr int norm_threads = 512; // of a row, at most

/// How a row of so many vectors is cut over threads, by its width alone: two vectors a thread keep enough loads in flight, the widest
/// rows take more. Thread t has the vectors t, t + threads, t + 2 threads, ...
__host__ __device__ inline int row_threads(std::int64_t n_vectors) {
  const std::int64_t threads = (n_vectors + 63) / 64 * 32;
  return int(threads < norm_threads ? threads : norm_threads);
}

/// Of a sum of squares over h elements.
__device__ inline float inverse_root(float squares, float eps, int h) { return __frcp_rn(__fsqrt_rn(__fdiv_rn(squares, float(h)) + eps)); }

/// One bf16 vector of a row: its share of the sum of squares; and what becomes of it.
template <class V>
__device__ void add_squares(float& sum, const V& v) {
#pragma unroll
  for (const auto& e : v.at)
    sum = __fmaf_rn(widen(e), widen(e), sum);
}
template <class T, int N>
__device__ void scale(vec<T, N>& v, const vec<T, N>& weight, float inverse) {
#pragma unroll
  for (int i = 0; i < N; ++i)
    round_to(v.at[i], widen(weight.at[i]) * rounded<T>(widen(v.at[i]) * inverse));
}

/// y [k] = add_rms_norm of one row x [k] with nothing added, in shared memory; bit for bit what that kernel's threads and order make.
/// k <= most_normalised, a multiple of 8. By the block's first Warps warps, which wait for the kernel's predecessors here.
inline constexpr std::int64_t most_normalised = 8192;
template <int Warps>
__device__ void normalise_row(const bf16* x, const bf16* w, float eps, int k, std::uint8_t* y) {
  using V = vec<bf16, 8>;
  constexpr int most = norm_threads / 32 / Warps * 2; // vectors of a thread: two of each of that kernel's threads for which it stands
  __shared__ float sums[norm_threads / 32];
  const int n_vectors = k / 8, threads = row_threads(n_vectors), warp = int(threadIdx.x / 32), lane = int(threadIdx.x % 32);
  int at[most];
  V weight[most], kept[most];
#pragma unroll
  for (int i = 0; i < most; ++i) {
    const int thread = (warp + i / 2 * Warps) * 32 + lane;
    at[i] = thread < threads ? thread + i % 2 * threads : n_vectors;
    if (at[i] < n_vectors)
      weight[i] = reinterpret_cast<const V*>(w)[at[i]];
  }
  const auto together = [] { asm volatile("bar.sync 1, %0;" ::"n"(Warps * 32) : "memory"); };
  wait_for_predecessors();
#pragma unroll
  for (int i = 0; i < most; ++i)
    if (at[i] < n_vectors)
      kept[i] = reinterpret_cast<const V*>(x)[at[i]];
#pragma unroll
  for (int i = 0; i < most; i += 2) {
    float sum = 0.f;
#pragma unroll
    for (int j = i; j < i + 2; ++j)
      if (at[j] < n_vectors)
        add_squares(sum, kept[j]);
    sum = warp_sum(sum);
    if (const int of = warp + i / 2 * Warps; lane == 0 && of < threads / 32)
      sums[of] = sum;
  }
  together();
  float sum = 0.f;
  for (int i = 0; i < threads / 32; ++i)
    sum += sums[i];
  const float inverse = inverse_root(sum, eps, k);
#pragma unroll
  for (int i = 0; i < most; ++i)
    if (at[i] < n_vectors) {
      scale(kept[i], weight[i], inverse);
      reinterpret_cast<V*>(y)[at[i]] = kept[i];
    }
  together();
}

} // namespace troupe::cuda
