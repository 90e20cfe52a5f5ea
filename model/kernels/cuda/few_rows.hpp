#pragma once
#include "core/dtype.hpp"
#include "model/kernels/cuda/attention.hpp"
#include "model/kernels/cuda/memory.hpp"
#include <cstdint>

// Products y = x w^T for few rows of x, in bf16: what is bound by reading w. Each output is one chain of m16n8k16 steps, k ascending, in
// float32: the bits of cuBLASLt's kernels in one piece (linear.hpp). The matrix streams through rings in shared memory, and begins to
// before the kernel's predecessor is done (launch.cuh). Hopper only; what a product does with its input and output may be fused into it.
namespace troupe::cuda::few_rows {

inline constexpr std::int64_t most_rows = 16;

/// How the matrix streams; changes no bit.
struct streaming {
  int rows = 32;      // of w: of a block at a time, a multiple of 16 up to 128
  int ring_kib = 180; // what is requested ahead, in shared memory
};

/// x [n, k], w [m, k], bias [m] or null, bf16, multiples of 16 bytes. norm [k] not null: x is RMS-normalised first, with the bits of
/// add_rms_norm; by the kernel itself where x is one row, else into normalised [n, k].
struct operands {
  const void *x = nullptr, *w = nullptr, *bias = nullptr;
  std::int64_t n = 0, m = 0, k = 0;
  const void* norm = nullptr;
  float eps = 0;
  void* normalised = nullptr;
};
/// Where rope_write's work goes: as its arguments.
struct rotation {
  attention_shape shape;
  const std::int32_t* positions = nullptr;
  const float* table = nullptr;
  const std::int32_t* slots = nullptr;
  void* cache = nullptr;
};

/// Whether this build has these kernels, for products of these sizes.
bool takes(dtype type, std::int64_t n, std::int64_t m, std::int64_t k);

/// y [n, m], bf16 or f32. how, here and below: for tests; null is what is best.
void product(const operands& a, void* y, dtype out, stream where, const streaming* how = nullptr);
/// residual [n, m] += the product, each rounded.
void add_product(const operands& a, void* residual, stream where, const streaming* how = nullptr);
/// act [n, m / 2] = silu_mul of the product; m / 2 a multiple of 8.
void gated_product(const operands& a, void* act, stream where, const streaming* how = nullptr);
/// qkv [n, m] = the product, then rope_write; head_dim a multiple of 16.
void rotated_product(const operands& a, const rotation& r, void* qkv, stream where, const streaming* how = nullptr);

} // namespace troupe::cuda::few_rows
