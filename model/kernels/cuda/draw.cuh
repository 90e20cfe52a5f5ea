#pragma once
#include "model/kernels/cuda/draw.hpp"
#include "model/kernels/cuda/softmax.cuh"
#include <cfloat>

// What draws from rows of logits share.
namespace troupe::cuda {

inline constexpr int nowhere = 0x7fffffff;

/// rollout/exp.hpp's exp_nonpositive: the same operations.
__device__ inline float exp_nonpositive(float x) {
  constexpr float to_integer = 12582912.0f;
  const float c = x < -87.0f ? -87.0f : x;
  const float shifted = __fmaf_rn(c, 1.44269504f, to_integer);
  const float n = shifted - to_integer;
  const float r = __fmaf_rn(n, 2.12194440e-4f, __fmaf_rn(n, -0.693359375f, c));
  float p = __fmaf_rn(1.9875691500e-4f, r, 1.3981999507e-3f);
  p = __fmaf_rn(p, r, 8.3334519073e-3f);
  p = __fmaf_rn(p, r, 4.1665795894e-2f);
  p = __fmaf_rn(p, r, 1.6666665459e-1f);
  p = __fmaf_rn(p, r, 5.0000001201e-1f);
  const float y = __fmaf_rn(p, r * r, r) + 1.0f;
  const float scale = __uint_as_float((__float_as_uint(shifted) << 23) + 0x3f800000u);
  return x < -87.0f ? 0.0f : y * scale;
}

/// The greatest logit that each warp of a cluster found, and the lowest id that has it.
struct row_maxima {
  float most[row_cluster * row_warps];
  int best[row_cluster * row_warps];
};

/// The greatest of a warp's share of the row and the lowest id that has it; infinity where a logit is not finite, unless the row is edited.
__device__ inline void find_greatest(const float* x, std::int64_t vocab, int n_blocks, bool edited, warp_share share, float& most,
                                     int& best) {
  most = -FLT_MAX, best = nowhere;
  bool finite = true;
  for (int b = share.begin; b < n_blocks; b += share.step) {
    const columns c(x, vocab, b, -FLT_MAX);
    const int first = b * column_block + int(threadIdx.x % 32);
#pragma unroll
    for (int k = 0; k < 8; ++k) {
      finite = finite && (edited || fabsf(c.at[k]) <= FLT_MAX);
      if (c.at[k] > most || best == nowhere)
        most = c.at[k], best = first + 32 * k;
    }
  }
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) {
    const float other = __shfl_xor_sync(0xffffffffu, most, offset);
    const int id = __shfl_xor_sync(0xffffffffu, best, offset);
    if (other > most || (other == most && id < best))
      most = other, best = id;
  }
  if (!__all_sync(0xffffffffu, finite))
    most = INFINITY;
}

/// The same of what all the cluster's warps found; every warp does it.
__device__ inline void greatest_of_all(const row_maxima& row, int n, float& most, int& best) {
  most = -FLT_MAX, best = nowhere;
  for (int i = int(threadIdx.x % 32); i < n; i += 32)
    if (row.most[i] > most || (row.most[i] == most && row.best[i] < best))
      most = row.most[i], best = row.best[i];
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) {
    const float other = __shfl_xor_sync(0xffffffffu, most, offset);
    const int id = __shfl_xor_sync(0xffffffffu, best, offset);
    if (other > most || (other == most && id < best))
      most = other, best = id;
  }
}

/// The greatest logit of a cluster's row and the lowest id that has it, for every thread; infinity where a logit is not finite, -FLT_MAX
/// where an edited row has none left.
__device__ inline void greatest_of_row(const float* x, std::int64_t vocab, int n_blocks, bool edited, row_maxima& row, float& most,
                                       int& best) {
  const auto cluster = this_cluster();
  const warp_share share = own_share();
  find_greatest(x, vocab, n_blocks, edited, share, most, best);
  cluster.sync(); // all blocks have begun
  if (const int lane = int(threadIdx.x % 32); lane < int(cluster.num_blocks())) {
    row_maxima& of_block = *cluster.map_shared_rank(&row, lane);
    of_block.most[share.begin] = most, of_block.best[share.begin] = best;
  }
  cluster.sync();
  greatest_of_all(row, share.step, most, best);
}

/// The temperature's inverse, as sample_token has it.
__device__ inline float inverse_of(double temperature) { return float(1.0 / fmin(fmax(temperature, 1e-37), 1e37)); }

/// What a kernel draws from: draw i's row, or row i of `edited`.
struct rows_to_draw {
  const float* logits;
  std::int64_t vocab;
  const row_draw* draws;
  float* edited;
  drawn_token* drawn;
};

/// A draw's row as the model gave it and as it is drawn from, with their greatest logits.
struct drawn_row {
  const float *original, *x;
  float original_most, most;
  int best;
  /// A whole cluster's.
  __device__ drawn_row(const rows_to_draw& rows, const row_draw& draw, std::int64_t n, int n_blocks, row_maxima& maxima)
      : original(rows.logits + draw.row * rows.vocab), x(draw.edits < 0 ? original : rows.edited + n * rows.vocab) {
    greatest_of_row(original, rows.vocab, n_blocks, false, maxima, most, best);
    original_most = most;
    if (draw.edits >= 0 && most < INFINITY)
      greatest_of_row(x, rows.vocab, n_blocks, true, maxima, most, best);
  }
  /// Why nothing can be drawn; 0: something can.
  __device__ std::int32_t refusal() const {
    return original_most == INFINITY ? not_finite : x != original && most == -FLT_MAX ? none_left : 0;
  }
};

/// The kernels of edit_rows.cu and truncate.cu, for n draws; each leaves the draws that are not its own alone.
void queue_edits(const rows_to_draw& rows, std::int64_t n, const row_edits* edits, const logit_edit* entries, stream where);
void queue_truncated(const rows_to_draw& rows, std::int64_t n, stream where);
void queue_listing(const rows_to_draw& rows, std::int64_t n, drawn_token* top, stream where);

/// Whether a draw leaves tokens of its row out; not the kernel of draw.cu, but that of truncate.cu then draws.
__device__ inline bool truncates(const row_draw& d) { return d.temperature != 0 && (d.top_k > 0 || d.top_p < 1 || d.min_p > 0); }

} // namespace troupe::cuda
