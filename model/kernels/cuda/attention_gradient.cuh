#pragma once
#include "model/kernels/cuda/attention_arithmetic.cuh"
#include "model/kernels/cuda/attention_kernels.hpp"

// What the kernels of the gradient share.
namespace troupe::cuda::attention {

struct gradient_arguments {
  attention_shape shape;
  attention_gradient_plan plan;
  const void *qkv, *out, *d_out;
  const float* lse;
  float* d_qkv;
  float* terms; // [n_heads][tiles][2][64]: of each row of a tile lse * log2(e), then dO . O; 0 where the tile has no row
  float scale;
  std::int64_t row; // shape.row()

  __device__ __forceinline__ float* terms_of(int head, int tile) const {
    return terms + (std::int64_t(head) * 2 * plan.n_pairs + tile) * 2 * attention_gradient_plan::tile_rows;
  }
};

/// P of a score; scale: the shape's times log2(e), lse likewise.
__device__ __forceinline__ float probability(float score, float scale, float lse) { return ex2(__fmaf_rn(score, scale, -lse)); }
/// dS of P and dO V^T.
__device__ __forceinline__ float score_gradient(float p, float dp, float delta) { return __fmul_rn(p, __fsub_rn(dp, delta)); }

} // namespace troupe::cuda::attention
