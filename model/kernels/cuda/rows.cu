#include "model/kernels/cuda/check.cuh"
#include "model/kernels/cuda/elementwise.hpp"
#include "model/kernels/cuda/launch.cuh"
#include "model/kernels/cuda/numeric.cuh"
#include <algorithm>

namespace troupe::cuda {
namespace {

// Row i of n: row from[i] of x (i itself where from is null; zeros where it is negative) goes to row to[i] of out, likewise.
template <class V>
__global__ void copy_rows(const V* x, const std::int32_t* from, const std::int32_t* to, std::int64_t width, V* out) {
  let_successor_start();
  wait_for_predecessors();
  const std::int64_t i = blockIdx.x, source = from ? from[i] : i, target = to ? to[i] : i;
  for (std::int64_t j = threadIdx.x; j < width; j += blockDim.x)
    out[target * width + j] = source < 0 ? V() : x[source * width + j];
}

void copy(const char* what, dtype type, const void* x, const std::int32_t* from, const std::int32_t* to, std::int64_t n, std::int64_t h,
          void* out, bool first, stream where) {
  if (n == 0 || h == 0)
    return;
  const auto launch = [&](auto v, std::int64_t width) {
    using V = decltype(v);
    const int threads = int(std::clamp<std::int64_t>((width + 31) / 32 * 32, 32, 256));
    const auto* const in = static_cast<const V*>(x);
    auto* const rows = static_cast<V*>(out);
    if (first) // of a pass: launch.cuh
      copy_rows<<<unsigned(n), threads, 0, where>>>(in, from, to, width, rows);
    else
      launch_early(what, copy_rows<V>, unsigned(n), unsigned(threads), 0, where, in, from, to, width, rows);
  };
  with_type(type, what, [&](auto t) {
    using T = decltype(t);
    if (h % wide<T> == 0 && aligned(x) && aligned(out))
      launch(uint4(), h / wide<T>);
    else if constexpr (sizeof(T) == 2)
      launch(std::uint16_t(), h);
    else
      launch(std::uint32_t(), h);
  });
  check(cudaGetLastError(), what);
}

__global__ void embed_gradient(const std::int32_t* ids, const std::int32_t* begin, const std::int32_t* order, const float* d_out, int h,
                               float* grad) {
  const int j = int(blockIdx.y * blockDim.x + threadIdx.x);
  if (j >= h)
    return;
  float& total = grad[std::int64_t(ids[blockIdx.x]) * h + j];
  float sum = total;
#pragma unroll 4
  for (int i = begin[blockIdx.x]; i < begin[blockIdx.x + 1]; ++i)
    sum += d_out[std::int64_t(order[i]) * h + j];
  total = sum;
}

constexpr int bias_lanes = 32;

// A warp takes 32 vectors of columns; its rows are those with row % 32 = its number, ascending; then the warps in ascending order.
template <class T, int N>
__global__ void __launch_bounds__(32 * bias_lanes) column_sums(const T* dy, std::int64_t n, std::int64_t m, float* dbias) {
  using V = vec<T, N>;
  __shared__ float sums[bias_lanes][32 * N];
  const std::int64_t first = (std::int64_t(blockIdx.x) * 32 + threadIdx.x) * N;
  float sum[N] = {};
  if (first < m)
#pragma unroll 4
    for (std::int64_t r = threadIdx.y; r < n; r += bias_lanes) {
      const V v = *reinterpret_cast<const V*>(dy + r * m + first);
#pragma unroll
      for (int i = 0; i < N; ++i)
        sum[i] += widen(v.at[i]);
    }
#pragma unroll
  for (int i = 0; i < N; ++i)
    sums[threadIdx.y][threadIdx.x * N + i] = sum[i];
  __syncthreads();
  const int column = int(threadIdx.y * 32 + threadIdx.x);
  if (column >= 32 * N || std::int64_t(blockIdx.x) * 32 * N + column >= m)
    return;
  float total = 0.f;
  for (int i = 0; i < bias_lanes; ++i)
    total += sums[i][column];
  dbias[std::int64_t(blockIdx.x) * 32 * N + column] += total;
}

} // namespace

void embed(dtype type, const void* table, const std::int32_t* ids, std::int64_t n, std::int64_t h, void* out, stream where) {
  copy("embed", type, table, ids, nullptr, n, h, out, true, where);
}

void gather_rows(dtype type, const void* x, const std::int32_t* rows, std::int64_t n_rows, std::int64_t h, void* out, stream where) {
  copy("gather_rows", type, x, rows, nullptr, n_rows, h, out, false, where);
}

void scatter_rows(dtype type, const void* x, const std::int32_t* rows, std::int64_t n_rows, std::int64_t h, void* out, stream where) {
  copy("scatter_rows", type, x, nullptr, rows, n_rows, h, out, false, where);
}

void embed_backward(const std::int32_t* ids, const std::int32_t* begin, const std::int32_t* order, std::int64_t n_ids, const float* d_out,
                    std::int64_t h, float* grad, stream where) {
  if (n_ids == 0)
    return;
  embed_gradient<<<dim3(unsigned(n_ids), ceil_div(h, 256)), 256, 0, where>>>(ids, begin, order, d_out, int(h), grad);
  check(cudaGetLastError(), "embed_backward");
}

void bias_backward(dtype type, const void* dy, std::int64_t n, std::int64_t m, float* dbias, stream where) {
  if (n == 0 || m == 0)
    return;
  with_type(type, "bias_backward", [&](auto t) {
    using T = decltype(t);
    constexpr int pair = int(4 / sizeof(T)); // 4 bytes: narrow blocks, so that there are enough of them
    const dim3 threads(32, bias_lanes);
    const auto* in = static_cast<const T*>(dy);
    if (m % pair == 0)
      column_sums<T, pair><<<ceil_div(m, 32 * pair), threads, 0, where>>>(in, n, m, dbias);
    else
      column_sums<T, 1><<<ceil_div(m, 32), threads, 0, where>>>(in, n, m, dbias);
  });
  check(cudaGetLastError(), "bias_backward");
}

} // namespace troupe::cuda
