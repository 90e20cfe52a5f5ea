#pragma once
#include "model/kernels/cuda/bulk_copy.cuh"
#include "model/kernels/cuda/few_rows.hpp"
#include "model/kernels/cuda/launch.cuh"
#include "model/kernels/cuda/numeric.cuh"
#include "model/kernels/cuda/rope.cuh"
#include <cuda.h>

// What the products for few rows share: where rows of w come from and what becomes of the results.
namespace troupe::cuda::few_rows {

inline constexpr int piece_columns = 64, piece_bytes = 2 * piece_columns, piece_steps = piece_columns / 16; // of k
inline constexpr int tile_rows = 16;                                                                        // of w
inline constexpr int max_stages = 32, max_shared_bytes = 220 * 1024;

__device__ inline float biased(const bf16* bias, int row, float v) { return bias ? v + widen(bias[row]) : v; }

// A tile's rows of w are first(tile) .. +7 and those apart() further on; store() takes the products of one of each, and what load() read
// before. boxes: in how many pieces the rows of a block's tiles lie, one after the other, each with 16 / boxes rows a tile. together: so
// many tiles (or a divisor) lie so; 0: any number.
template <class Out>
struct plain_output {
  Out* y;
  const bf16* bias;
  int m;
  static constexpr int boxes = 1;
  int together() const { return 0; }
  __device__ int first(int tile) const { return tile * tile_rows; }
  __device__ int apart() const { return 8; }
  struct before {};
  __device__ before load(int, int) const { return {}; }
  __device__ void store(int row, int token, float a, float b, before) const {
    Out* const to = y + std::int64_t(token) * m + row;
    round_to(to[0], biased(bias, row, a)), round_to(to[8], biased(bias, row + 8, b));
  }
};

struct added_output {
  bf16* residual;
  const bf16* bias;
  int m;
  static constexpr int boxes = 1;
  int together() const { return 0; }
  __device__ int first(int tile) const { return tile * tile_rows; }
  __device__ int apart() const { return 8; }
  struct before {
    bf16 a, b;
  };
  __device__ before load(int row, int token) const {
    const bf16* const from = residual + std::int64_t(token) * m + row;
    return {from[0], from[8]};
  }
  __device__ void store(int row, int token, float a, float b, before to) const {
    bf16* const at = residual + std::int64_t(token) * m + row;
    round_to(at[0], widen(to.a) + rounded<bf16>(biased(bias, row, a)));
    round_to(at[8], widen(to.b) + rounded<bf16>(biased(bias, row + 8, b)));
  }
};

struct gated_output {
  bf16* act;
  const bf16* bias;
  int inter;
  static constexpr int boxes = 2;
  int together() const { return 0; }
  __device__ int first(int tile) const { return tile * 8; }
  __device__ int apart() const { return inter; }
  struct before {};
  __device__ before load(int, int) const { return {}; }
  __device__ void store(int row, int token, float gate, float up, before) const {
    const float g = rounded<bf16>(biased(bias, row, gate)), u = rounded<bf16>(biased(bias, row + inter, up));
    round_to(act[std::int64_t(token) * inter + row], rounded<bf16>(silu(g)) * u);
  }
};

// A tile has eight elements of a head's first half and their partners of the second.
struct rotated_output {
  attention_shape shape;
  bf16 *qkv, *cache;
  const bf16* bias;
  const std::int32_t *positions, *slots;
  const float* table;
  static constexpr int boxes = 2;
  int together() const { return shape.head_dim / tile_rows; }
  __device__ int apart() const { return shape.head_dim / 2; }
  __device__ int first(int tile) const {
    const int tiles = shape.head_dim / tile_rows;
    return tile / tiles * shape.head_dim + tile % tiles * 8;
  }
  struct before {
    float cosine, sine;
    int slot;
  };
  __device__ before load(int row, int token) const {
    const float* const angles = table + std::int64_t(positions[token]) * shape.head_dim + row % shape.head_dim;
    return {angles[0], angles[shape.head_dim / 2], slots[token]};
  }
  __device__ void store(int row, int token, float a, float b, before to) const {
    const int d = shape.head_dim, head = row / d, j = row % d, kv = head - shape.n_heads;
    halves<bf16, 1> h;
    round_to(h.a.at[0], biased(bias, row, a)), round_to(h.b.at[0], biased(bias, row + d / 2, b));
    if (kv < shape.n_kv_heads)
      h.rotate({to.cosine}, {to.sine}, 1.f);
    h.store(row_head(qkv, shape, token, head), d / 2, j);
    if (kv >= 0 && to.slot >= 0)
      h.store(cache_head(cache, shape, to.slot, kv), d / 2, j);
  }
};

/// Stages in shared memory and their barriers: full, and empty again.
struct ring {
  std::uint32_t data, full, empty; // stages, and their barriers
  int stage = 0;
  std::uint32_t parity = 0;
  __device__ std::uint32_t full_barrier() const { return full + stage * 8; }
  __device__ std::uint32_t empty_barrier() const { return empty + stage * 8; }
  __device__ void next(int stages) {
    if (++stage == stages)
      stage = 0, parity ^= 1;
  }
};

/// Of the current device.
int multiprocessors();
/// A matrix [rows, k] as [k / 64][rows][64], in boxes [pieces][box_rows][64] with the 128-byte swizzle.
CUtensorMap map_of(const void* data, std::int64_t rows, std::int64_t k, int box_rows, int pieces);

} // namespace troupe::cuda::few_rows
