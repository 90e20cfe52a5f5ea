#include "model/kernels/cuda/check.cuh"
#include "model/kernels/cuda/elementwise.hpp"
#include <algorithm>
#include <cuda_bf16.h>

namespace troupe::cuda {
namespace {

using bf16 = __nv_bfloat16;

constexpr int max_chunks = 8; // vectors of a row that one thread keeps in registers
constexpr int max_threads = 512;

// What one load moves: 16 bytes where rows are a multiple of that, else one element.
template <class T, int N>
struct alignas(sizeof(T) * N) vec {
  T at[N];
};

__device__ float widen(float v) { return v; }
__device__ float widen(bf16 v) { return __bfloat162float(v); }
__device__ void round_to(float& to, float v) { to = v; }
__device__ void round_to(bf16& to, float v) { to = __float2bfloat16_rn(v); }
template <class T>
__device__ float rounded(float v) {
  T t;
  round_to(t, v);
  return widen(t);
}

// Sum over the block, in an order that its size alone decides: a butterfly inside a warp, then the warps in ascending order.
__device__ float block_sum(float v) {
  __shared__ float warps[max_threads / 32];
  for (int offset = 16; offset > 0; offset /= 2)
    v += __shfl_xor_sync(0xffffffffu, v, offset);
  if (threadIdx.x % 32 == 0)
    warps[threadIdx.x / 32] = v;
  __syncthreads();
  float sum = 0.f;
  for (unsigned i = 0; i < blockDim.x / 32; ++i)
    sum += warps[i];
  return sum;
}

// One block a row. Thread t holds the vectors t, t + threads, t + 2 threads, ... of the row in registers between the passes.
template <class T, int N, int Chunks>
__global__ void __launch_bounds__(max_threads) add_rms_norm_rows(const T* x, T* residual, const T* w, float eps, int h, T* y) {
  using V = vec<T, N>;
  const int n_vectors = h / N;
  const std::int64_t row = std::int64_t(blockIdx.x) * h;
  V* const res = reinterpret_cast<V*>(residual + row);
  const V* const in = reinterpret_cast<const V*>(x ? x + row : nullptr);
  V* const out = reinterpret_cast<V*>(y + row);
  V kept[Chunks];
  float squares = 0.f;
#pragma unroll
  for (int c = 0; c < Chunks; ++c) {
    const int j = c * blockDim.x + threadIdx.x;
    if (j >= n_vectors)
      break;
    kept[c] = res[j];
    if (in) {
      const V add = in[j];
#pragma unroll
      for (int i = 0; i < N; ++i)
        round_to(kept[c].at[i], __fadd_rn(widen(kept[c].at[i]), widen(add.at[i])));
      res[j] = kept[c];
    }
#pragma unroll
    for (int i = 0; i < N; ++i)
      squares = __fmaf_rn(widen(kept[c].at[i]), widen(kept[c].at[i]), squares);
  }
  const float inverse = __frcp_rn(__fsqrt_rn(__fadd_rn(__fdiv_rn(block_sum(squares), float(h)), eps)));
#pragma unroll
  for (int c = 0; c < Chunks; ++c) {
    const int j = c * blockDim.x + threadIdx.x;
    if (j >= n_vectors)
      break;
    const V weight = reinterpret_cast<const V*>(w)[j];
#pragma unroll
    for (int i = 0; i < N; ++i)
      round_to(kept[c].at[i], __fmul_rn(widen(weight.at[i]), rounded<T>(__fmul_rn(widen(kept[c].at[i]), inverse))));
    out[j] = kept[c];
  }
}

template <class T, int N>
void launch(const T* x, T* residual, const T* w, float eps, std::int64_t n, std::int64_t h, T* y, stream where) {
  const std::int64_t n_vectors = h / N;
  if (h < 1 || n_vectors > std::int64_t(max_chunks) * max_threads)
    throw error(errc::bad_shape, "add_rms_norm: rows of " + std::to_string(h) + " elements; this kernel takes 1 to " +
                                     std::to_string(std::int64_t(max_chunks) * max_threads * N) + " of them");
  if (n == 0)
    return;
  // Two vectors a thread keep enough loads in flight; the widest rows take more. The choice depends on h alone.
  const int threads = int(std::min<std::int64_t>(max_threads, (n_vectors + 63) / 64 * 32));
  const int chunks = int((n_vectors + threads - 1) / threads);
  const auto kernel = chunks <= 2   ? add_rms_norm_rows<T, N, 2>
                      : chunks <= 4 ? add_rms_norm_rows<T, N, 4>
                                    : add_rms_norm_rows<T, N, max_chunks>;
  kernel<<<unsigned(n), threads, 0, where>>>(x, residual, w, eps, int(h), y);
  check(cudaGetLastError(), "add_rms_norm");
}

template <class T>
void typed(const void* x, void* residual, const void* w, float eps, std::int64_t n, std::int64_t h, void* y, stream where) {
  const auto* in = static_cast<const T*>(x);
  auto* res = static_cast<T*>(residual);
  const auto* weight = static_cast<const T*>(w);
  auto* out = static_cast<T*>(y);
  constexpr int wide = 16 / sizeof(T);
  if (h % wide == 0)
    launch<T, wide>(in, res, weight, eps, n, h, out, where);
  else
    launch<T, 1>(in, res, weight, eps, n, h, out, where);
}

} // namespace

void add_rms_norm(dtype type, const void* x, void* residual, const void* w, float eps, std::int64_t n, std::int64_t h, void* y,
                  stream where) {
  if (type == dtype::bf16)
    typed<bf16>(x, residual, w, eps, n, h, y, where);
  else if (type == dtype::f32)
    typed<float>(x, residual, w, eps, n, h, y, where);
  else
    throw error(errc::unsupported, "add_rms_norm: type " + std::string(name_of(type)) + "; this kernel takes F32 and BF16");
}

} // namespace troupe::cuda
