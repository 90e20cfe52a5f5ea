#include "model/kernels/cuda/check.cuh"
#include "model/kernels/cuda/elementwise.hpp"
#include "model/kernels/cuda/rms_norm.cuh"
#include <algorithm>

namespace troupe::cuda {
namespace {

constexpr int max_chunks = 8;     // vectors of a row that one thread keeps in registers
constexpr int max_partials = 256; // of the weight's gradient

// Where rows lie: n rows of `heads` heads of h elements, `ld` elements from row to row.
struct strided {
  std::int64_t ld, heads, h;
  __device__ std::int64_t operator()(unsigned row_and_head) const {
    if (heads == 1) // no division, which takes longer than all else here
      return row_and_head * ld;
    const unsigned n = unsigned(heads);
    return row_and_head / n * ld + row_and_head % n * h;
  }
};

// One block a row. Thread t holds the vectors t, t + threads, t + 2 threads, ... of the row in registers between the passes.
template <class T, int N, int Chunks>
__global__ void __launch_bounds__(norm_threads)
    add_rms_norm_rows(const T* x, const T* before, T* residual, const T* w, float eps, int h, T* y, strided from, strided to) {
  using V = vec<T, N>;
  let_successor_start();
  wait_for_predecessors();
  const int n_vectors = h / N;
  const std::int64_t at = from(blockIdx.x);
  const V* const in = reinterpret_cast<const V*>(x ? x + at : nullptr);
  V* const out = reinterpret_cast<V*>(y + to(blockIdx.x));
  V kept[Chunks];
  float squares = 0.f;
#pragma unroll
  for (int c = 0; c < Chunks; ++c) {
    const int j = c * blockDim.x + threadIdx.x;
    if (j >= n_vectors)
      break;
    kept[c] = reinterpret_cast<const V*>(before + at)[j];
    if (in) {
      const V add = in[j];
#pragma unroll
      for (int i = 0; i < N; ++i)
        round_to(kept[c].at[i], widen(kept[c].at[i]) + widen(add.at[i]));
      reinterpret_cast<V*>(residual + at)[j] = kept[c];
    }
    add_squares(squares, kept[c]);
  }
  const float inverse = inverse_root(block_sum(squares), eps, h);
#pragma unroll
  for (int c = 0; c < Chunks; ++c) {
    const int j = c * blockDim.x + threadIdx.x;
    if (j >= n_vectors)
      break;
    scale(kept[c], reinterpret_cast<const V*>(w)[j], inverse);
    out[j] = kept[c];
  }
}

struct row_cut {
  int threads, chunks;
};
row_cut cut(const char* what, std::int64_t h, int n) {
  const std::int64_t n_vectors = h / n;
  if (h < 1 || n_vectors > std::int64_t(max_chunks) * norm_threads)
    throw error(errc::bad_shape, std::string(what) + ": rows of " + std::to_string(h) + " elements; this kernel takes 1 to " +
                                     std::to_string(std::int64_t(max_chunks) * norm_threads * n) + " of them");
  const int threads = row_threads(n_vectors);
  return {threads, int((n_vectors + threads - 1) / threads)};
}

// Whether rows of that width are read by 16 bytes; they must then lie so.
bool by_vectors(const char* what, std::int64_t h, int n, std::initializer_list<std::int64_t> strides,
                std::initializer_list<const void*> pointers) {
  if (h % n != 0)
    return false;
  for (const auto ld : strides)
    if (ld % n != 0)
      throw error(errc::bad_shape,
                  std::string(what) + ": rows " + std::to_string(ld) + " elements apart; they must be a multiple of " + std::to_string(n));
  for (const auto* p : pointers)
    if (!aligned(p))
      throw error(errc::bad_shape, std::string(what) + ": a pointer that is not a multiple of 16; rows must begin at one");
  return true;
}

template <class T, int N>
void launch(const char* what, const void* x, const void* before, void* residual, const void* w, float eps, std::int64_t n_rows, void* y,
            strided from, strided to, stream where) {
  const row_cut c = cut(what, from.h, N);
  if (n_rows == 0)
    return;
  const auto kernel = c.chunks <= 2   ? add_rms_norm_rows<T, N, 2>
                      : c.chunks <= 4 ? add_rms_norm_rows<T, N, 4>
                                      : add_rms_norm_rows<T, N, max_chunks>;
  launch_early(what, kernel, unsigned(n_rows), unsigned(c.threads), 0, where, static_cast<const T*>(x), static_cast<const T*>(before),
               static_cast<T*>(residual), static_cast<const T*>(w), eps, int(from.h), static_cast<T*>(y), from, to);
}

// dx of one row a block: inv * (g - xhat * mean(g * xhat)), g = dy * w; its 1/sqrt goes to `inverses`.
template <class T, int N>
__global__ void __launch_bounds__(norm_threads) rms_norm_dx_rows(const float* dy, strided dy_at, const T* x, strided x_at, const T* w,
                                                                 float eps, int h, float* dx, strided dx_at, bool add, float* inverses) {
  using V = vec<T, N>;
  using F = vec<float, N>;
  const int n_vectors = h / N;
  const V* const in = reinterpret_cast<const V*>(x + x_at(blockIdx.x));
  const F* const d = reinterpret_cast<const F*>(dy + dy_at(blockIdx.x));
  float squares = 0.f;
  for (int j = threadIdx.x; j < n_vectors; j += blockDim.x) {
    add_squares(squares, in[j]);
  }
  const float inverse = inverse_root(block_sum(squares), eps, h);
  if (threadIdx.x == 0)
    inverses[blockIdx.x] = inverse;
  float dots = 0.f;
  for (int j = threadIdx.x; j < n_vectors; j += blockDim.x) {
    const V v = in[j], weight = reinterpret_cast<const V*>(w)[j];
    const F g = d[j];
#pragma unroll
    for (int i = 0; i < N; ++i)
      dots = __fmaf_rn(g.at[i] * widen(weight.at[i]), widen(v.at[i]) * inverse, dots);
  }
  const float mean = __fdiv_rn(block_sum(dots), float(h));
  F* const out = reinterpret_cast<F*>(dx + dx_at(blockIdx.x));
  for (int j = threadIdx.x; j < n_vectors; j += blockDim.x) {
    const V v = in[j], weight = reinterpret_cast<const V*>(w)[j];
    const F g = d[j];
    F sum = add ? out[j] : F();
#pragma unroll
    for (int i = 0; i < N; ++i)
      sum.at[i] += inverse * (g.at[i] * widen(weight.at[i]) - widen(v.at[i]) * inverse * mean);
    out[j] = sum;
  }
}

// partials [blocks of rows][h]: sums over the block's rows, ascending, of dy * xhat; a thread a column.
template <class T>
__global__ void rms_norm_dw_partials(const float* dy, strided dy_at, const T* x, strided x_at, const float* inverses, unsigned n_rows,
                                     unsigned per_block, int h, float* partials) {
  const int j = int(blockIdx.x * blockDim.x + threadIdx.x);
  if (j >= h)
    return;
  const unsigned begin = blockIdx.y * per_block, end = min(n_rows, begin + per_block);
  float sum = 0.f;
#pragma unroll 4
  for (unsigned r = begin; r < end; ++r)
    sum = __fmaf_rn(dy[dy_at(r) + j], widen(x[x_at(r) + j]) * inverses[r], sum);
  partials[std::int64_t(blockIdx.y) * h + j] = sum;
}

__global__ void add_partials(const float* partials, int n, int h, float* dw) {
  const int j = int(blockIdx.x * blockDim.x + threadIdx.x);
  if (j >= h)
    return;
  float sum = 0.f;
#pragma unroll 8
  for (int i = 0; i < n; ++i)
    sum += partials[std::int64_t(i) * h + j];
  dw[j] += sum;
}

} // namespace

void add_rms_norm(dtype type, const void* x, void* residual, const void* w, float eps, std::int64_t n, std::int64_t h, void* y,
                  stream where) {
  const char* const what = "add_rms_norm";
  with_type(type, what, [&](auto t) {
    using T = decltype(t);
    const strided rows{h, 1, h};
    if (by_vectors(what, h, wide<T>, {}, {x, residual, w, y}))
      launch<T, wide<T>>(what, x, residual, residual, w, eps, n, y, rows, rows, where);
    else
      launch<T, 1>(what, x, residual, residual, w, eps, n, y, rows, rows, where);
  });
}

void rms_norm_heads(dtype type, const void* x, std::int64_t ldx, const void* w, float eps, std::int64_t n, std::int64_t heads,
                    std::int64_t h, void* y, std::int64_t ldy, stream where) {
  const char* const what = "rms_norm_heads";
  with_type(type, what, [&](auto t) {
    using T = decltype(t);
    const strided from{ldx, heads, h}, to{ldy, heads, h};
    if (by_vectors(what, h, wide<T>, {ldx, ldy}, {x, w, y}))
      launch<T, wide<T>>(what, nullptr, x, nullptr, w, eps, n * heads, y, from, to, where);
    else
      launch<T, 1>(what, nullptr, x, nullptr, w, eps, n * heads, y, from, to, where);
  });
}

void rms_norm_backward(dtype type, const float* dy, std::int64_t lddy, const void* x, std::int64_t ldx, const void* w, float eps,
                       std::int64_t n, std::int64_t heads, std::int64_t h, float* dx, std::int64_t lddx, bool add, float* dw,
                       float* scratch, stream where) {
  const char* const what = "rms_norm_backward";
  const std::int64_t n_rows = n * heads;
  const strided dy_at{lddy, heads, h}, x_at{ldx, heads, h}, dx_at{lddx, heads, h};
  with_type(type, what, [&](auto t) {
    using T = decltype(t);
    const auto *in = static_cast<const T*>(x), *weight = static_cast<const T*>(w);
    const bool vectors = by_vectors(what, h, wide<T>, {lddy, ldx, lddx}, {dy, x, w, dx});
    const row_cut c = cut(what, h, vectors ? wide<T> : 1);
    if (n_rows == 0)
      return;
    const auto kernel = vectors ? rms_norm_dx_rows<T, wide<T>> : rms_norm_dx_rows<T, 1>;
    kernel<<<unsigned(n_rows), c.threads, 0, where>>>(dy, dy_at, in, x_at, weight, eps, int(h), dx, dx_at, add, scratch);
    if (!dw)
      return;
    const unsigned per_block = std::max(16u, ceil_div(n_rows, max_partials));
    const unsigned n_partials = ceil_div(n_rows, per_block), columns = ceil_div(h, 128);
    float* const partials = scratch + n_rows;
    rms_norm_dw_partials<T>
        <<<dim3(columns, n_partials), 128, 0, where>>>(dy, dy_at, in, x_at, scratch, unsigned(n_rows), per_block, int(h), partials);
    add_partials<<<columns, 128, 0, where>>>(partials, int(n_partials), int(h), dw);
  });
  check(cudaGetLastError(), what);
}

} // namespace troupe::cuda
