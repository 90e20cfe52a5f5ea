#include "model/kernels/cuda/check.cuh"
#include "model/kernels/cuda/elementwise.hpp"
#include "model/kernels/cuda/launch.cuh"
#include "model/kernels/cuda/rope.cuh"
#include <algorithm>

namespace troupe::cuda {
namespace {

constexpr int threads = 128;
// One block a row.
template <class T, int N>
__global__ void __launch_bounds__(threads)
    rope_rows(T* x, std::int64_t ld, const std::int32_t* positions, int heads, int d, const float* table, float sign) {
  const int half = d / 2, per_head = half / N;
  const float* const angles = table + std::int64_t(positions[blockIdx.x]) * d;
  for (int i = threadIdx.x; i < heads * per_head; i += threads) {
    T* const head = x + blockIdx.x * ld + i / per_head * d;
    const int j = i % per_head * N;
    halves<T, N> h;
    h.load(head, half, j);
    h.rotate(angles, half, j, sign);
    h.store(head, half, j);
  }
}

// One block a row: queries and keys are rotated, keys and values written to the row's slot.
template <class T, int N>
__global__ void __launch_bounds__(threads)
    rope_write_rows(attention_shape shape, T* qkv, const std::int32_t* positions, const float* table, const std::int32_t* slots, T* cache) {
  let_successor_start();
  const int d = shape.head_dim, half = d / 2, per_head = half / N;
  wait_for_predecessors();
  const int slot = slots[blockIdx.x];
  const float* const angles = table + std::int64_t(positions[blockIdx.x]) * d;
  for (int i = threadIdx.x; i < (shape.n_heads + 2 * shape.n_kv_heads) * per_head; i += threads) {
    const int head = i / per_head, j = i % per_head * N, kv = head - shape.n_heads;
    T* const at = row_head(qkv, shape, blockIdx.x, head);
    halves<T, N> h;
    h.load(at, half, j);
    if (kv < shape.n_kv_heads) {
      h.rotate(angles, half, j, 1.f);
      h.store(at, half, j);
    }
    if (kv >= 0 && slot >= 0)
      h.store(cache_head(cache, shape, slot, kv), half, j);
  }
}

// One block a copy: rotated keys and values of a row to a second slot.
template <class T, int N>
__global__ void __launch_bounds__(threads)
    copy_to_cache(attention_shape shape, const T* qkv, T* cache, const std::int32_t* rows, const std::int32_t* slots) {
  const int d = shape.head_dim, half = d / 2, per_head = half / N, slot = slots[blockIdx.x];
  if (slot < 0)
    return;
  for (int i = threadIdx.x; i < 2 * shape.n_kv_heads * per_head; i += threads) {
    const int kv = i / per_head, j = i % per_head * N;
    halves<T, N> h;
    h.load(row_head(qkv, shape, rows[blockIdx.x], shape.n_heads + kv), half, j);
    h.store(cache_head(cache, shape, slot, kv), half, j);
  }
}

void check_head(const char* what, std::int64_t head_dim) {
  if (head_dim < 2 || head_dim % 2 != 0)
    throw error(errc::bad_shape, std::string(what) + ": heads of " + std::to_string(head_dim) + " elements; they must be even");
}

} // namespace

void rope(dtype type, void* x, std::int64_t ld, std::int64_t n, const std::int32_t* positions, std::int64_t heads, std::int64_t head_dim,
          const float* table, bool inverse, stream where) {
  check_head("rope", head_dim);
  if (n == 0)
    return;
  with_type(type, "rope", [&](auto t) {
    using T = decltype(t);
    constexpr int N = wide<T>;
    const bool vectors = head_dim % (2 * N) == 0 && ld % N == 0 && aligned(x) && aligned(table);
    const auto kernel = vectors ? rope_rows<T, N> : rope_rows<T, 1>;
    kernel<<<unsigned(n), threads, 0, where>>>(static_cast<T*>(x), ld, positions, int(heads), int(head_dim), table, inverse ? -1.f : 1.f);
  });
  check(cudaGetLastError(), "rope");
}

void rope_write(dtype type, const attention_shape& shape, void* qkv, std::int64_t n, const std::int32_t* positions, const float* table,
                const std::int32_t* slots, void* cache, std::int64_t n_copies, const std::int32_t* copy_rows,
                const std::int32_t* copy_slots, stream where) {
  check_head("rope_write", shape.head_dim);
  with_type(type, "rope_write", [&](auto t) {
    using T = decltype(t);
    constexpr int N = wide<T>;
    const bool vectors = shape.head_dim % (2 * N) == 0 && aligned(qkv) && aligned(cache) && aligned(table);
    auto *rows = static_cast<T*>(qkv), *blocks = static_cast<T*>(cache);
    if (n > 0) {
      const auto kernel = vectors ? rope_write_rows<T, N> : rope_write_rows<T, 1>;
      launch_early("rope_write", kernel, unsigned(n), threads, 0, where, shape, rows, positions, table, slots, blocks);
    }
    if (n_copies > 0) {
      const auto kernel = vectors ? copy_to_cache<T, N> : copy_to_cache<T, 1>;
      kernel<<<unsigned(n_copies), threads, 0, where>>>(shape, rows, blocks, copy_rows, copy_slots);
    }
  });
  check(cudaGetLastError(), "rope_write");
}

} // namespace troupe::cuda
