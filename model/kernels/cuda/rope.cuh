#pragma once
#include "model/kernels/cuda/attention.hpp"
#include "model/kernels/cuda/numeric.cuh"

// Rotating heads and where they lie; the kernels that do it share these operations.
namespace troupe::cuda {

inline constexpr int block_tokens = 32; // of a cache block

// N elements of each half of a head: (a, b) -> (a cos - b sin, b cos + a sin).
template <class T, int N>
struct halves {
  vec<T, N> a, b;
  __device__ void load(const T* head, int half, int j) {
    a = *reinterpret_cast<const vec<T, N>*>(head + j), b = *reinterpret_cast<const vec<T, N>*>(head + half + j);
  }
  __device__ void store(T* head, int half, int j) const {
    *reinterpret_cast<vec<T, N>*>(head + j) = a, *reinterpret_cast<vec<T, N>*>(head + half + j) = b;
  }
  // angles: the position's cosines, then sines.
  __device__ void rotate(const float* angles, int half, int j, float sign) {
    rotate(*reinterpret_cast<const vec<float, N>*>(angles + j), *reinterpret_cast<const vec<float, N>*>(angles + half + j), sign);
  }
  __device__ void rotate(const vec<float, N>& c, const vec<float, N>& s, float sign) {
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const float va = widen(a.at[i]), vb = widen(b.at[i]), sine = s.at[i] * sign;
      round_to(a.at[i], va * c.at[i] - vb * sine);
      round_to(b.at[i], vb * c.at[i] + va * sine);
    }
  }
};

// Where head `kv` (keys, then values) of a slot lies.
template <class T>
__device__ T* cache_head(T* cache, const attention_shape& shape, int slot, int kv) {
  const std::int64_t head = std::int64_t(slot / block_tokens) * 2 * shape.n_kv_heads + kv;
  return cache + (head * block_tokens + slot % block_tokens) * shape.head_dim;
}
// And where head `head` (queries, keys, values) of a row.
template <class T>
__device__ T* row_head(T* qkv, const attention_shape& shape, std::int64_t row, int head) {
  return qkv + (row * (shape.n_heads + 2 * shape.n_kv_heads) + head) * shape.head_dim;
}

} // namespace troupe::cuda
