#pragma once
#include "model/kernels/cuda/cluster.cuh"
#include "model/kernels/cuda/launch.cuh"
#include "model/kernels/cuda/memory.hpp"
#include "model/kernels/cuda/numeric.cuh"
#include "model/kernels/elementwise.hpp"

// What softmax and sampling share: one row of logits by one cluster of thread blocks, which changes no bit.
namespace troupe::cuda {

inline constexpr int column_block = 256; // columns of one partial sum: a warp's, 8 a lane
inline constexpr int max_column_blocks = 2048;
inline constexpr int row_threads = 512;
inline constexpr int row_warps = row_threads / 32;
inline constexpr int row_cluster = 8; // blocks a row where there are few rows

/// The blocks' numbers of one warp in a cluster: begin, begin + step, ...
struct warp_share {
  int begin, step;
};
__device__ inline warp_share own_share() {
  const auto cluster = this_cluster();
  return {int(cluster.block_rank() * row_warps + threadIdx.x / 32), int(cluster.num_blocks() * row_warps)};
}

/// A lane's 8 columns of block b, b * 256 + lane + 32 k; `fill` past the row's end.
struct columns {
  float at[8];
  __device__ columns(const float* row, std::int64_t vocab, int b, float fill) {
    const std::int64_t first = std::int64_t(b) * column_block + threadIdx.x % 32;
#pragma unroll
    for (int k = 0; k < 8; ++k)
      at[k] = first + 32 * k < vocab ? row[first + 32 * k] : fill;
  }
};

__device__ inline float warp_max(float v) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2)
    v = fmaxf(v, __shfl_xor_sync(0xffffffffu, v, offset));
  return v;
}

/// z = logit / temperature.
__device__ inline float tempered(float logit, float temperature) { return temperature == 1.f ? logit : __fdiv_rn(logit, temperature); }

/// kernels::log_exact: the same operations.
__device__ inline double log_exact(double x) {
  long long bits = __double_as_longlong(x);
  int e = 0;
  if (bits < 0x0010000000000000ll) // below the normal numbers
    bits = __double_as_longlong(x * 0x1p54), e = -54;
  e += int(bits >> 52) - 1022;
  double m = __longlong_as_double((bits & 0x000fffffffffffffll) | 0x3fe0000000000000ll);
  if (m < 0.70710678118654752440) {
    m *= 2;
    --e;
  }
  const double s = (m - 1) / (m + 1), s2 = s * s;
  double sum = 0;
#pragma unroll
  for (int k = 23; k >= 1; k -= 2)
    sum = sum * s2 + 1.0 / k;
  return 2 * s * sum + double(e) * 0.69314718055994530942;
}
__device__ inline float log_sum(const kernels::softmax_stats& s) { return float(log_exact(double(s.sum))); }
__device__ inline float logprob(const kernels::softmax_stats& s, float logit, float temperature) {
  return (tempered(logit, temperature) - s.maximum) - log_sum(s);
}

/// Sum of the blocks' sums by one whole warp: lane l adds the blocks l, l + 32, ... ascending, then a butterfly.
__device__ inline float sum_of_blocks(const float* sums, int n_blocks) {
  float sum = 0.f;
  for (int b = int(threadIdx.x % 32); b < n_blocks; b += 32)
    sum += sums[b];
  return warp_sum(sum);
}

/// Launches `rows` rows with one block each, or a cluster of row_cluster where that leaves most of the GPU idle.
template <class... P, class... A>
void launch_rows(const char* what, void (*kernel)(P...), std::int64_t rows, std::int64_t vocab, stream where, A... arguments) {
  if (vocab < 1 || vocab > std::int64_t(column_block) * max_column_blocks)
    throw error(errc::bad_shape, std::string(what) + ": a vocabulary of " + std::to_string(vocab) + "; this kernel takes 1 to " +
                                     std::to_string(column_block * max_column_blocks));
  if (rows == 0)
    return;
  const unsigned blocks = hopper_or_later() && rows < 128 && vocab > 8192 ? unsigned(row_cluster) : 1u;
  launch_early_clusters(what, kernel, unsigned(rows) * blocks, blocks, row_threads, 0, where, arguments...);
}

} // namespace troupe::cuda
