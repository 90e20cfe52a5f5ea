#pragma once
#include "core/dtype.hpp"
#include "core/error.hpp"
#include <cstdint>
#include <cuda_bf16.h>
#include <string>

// Arithmetic of the row kernels, the twin of model/kernels/vec.inl. This folder is compiled with -fmad=false: what is fused is named.
namespace troupe::cuda {

using bf16 = __nv_bfloat16;

/// What one access moves: 16 bytes at most at a time, where addresses are multiples of that; else one element.
template <class T, int N>
struct alignas(sizeof(T) * N < 16 ? sizeof(T) * N : 16) vec {
  T at[N];
};
/// Elements of 16 bytes.
template <class T>
inline constexpr int wide = 16 / sizeof(T);

__device__ inline float widen(float v) { return v; }
__device__ inline float widen(bf16 v) { return __bfloat162float(v); }
__device__ inline void round_to(float& to, float v) { to = v; }
__device__ inline void round_to(bf16& to, float v) { to = __float2bfloat16_rn(v); }
template <class T>
__device__ float rounded(float v) {
  T t;
  round_to(t, v);
  return widen(t);
}

__device__ inline float clamp(float x, float lo, float hi) {
  const float y = x > lo ? x : lo;
  return y < hi ? y : hi;
}
/// e^x for -87 <= x <= 87: vec.inl's polynomial.
__device__ inline float exp_core(float x) {
  const float n = rintf(x * 1.44269504f);
  const float r = __fmaf_rn(n, -1.42860677e-6f, __fmaf_rn(n, -0.693145752f, x));
  float p = 1.f / 720;
  p = __fmaf_rn(p, r, 1.f / 120);
  p = __fmaf_rn(p, r, 1.f / 24);
  p = __fmaf_rn(p, r, 1.f / 6);
  p = __fmaf_rn(p, r, .5f);
  p = __fmaf_rn(p, r, 1.f);
  p = __fmaf_rn(p, r, 1.f);
  return p * __int_as_float((__float2int_rn(n) + 127) << 23);
}
/// e^x for x <= 0; exactly 0 below -87, and for -inf.
__device__ inline float exp_negative(float x) { return x >= -87.f ? exp_core(clamp(x, -87.f, 87.f)) : 0.f; }
/// 1 / (1 + e^-x)'s denominator.
__device__ inline float one_plus_exp_minus(float x) { return 1.f + exp_core(clamp(-x, -87.f, 87.f)); }
__device__ inline float silu(float x) { return __fdiv_rn(x, one_plus_exp_minus(x)); }

/// Sum over a warp: a butterfly, every lane the same bits.
__device__ inline float warp_sum(float v) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2)
    v += __shfl_xor_sync(0xffffffffu, v, offset);
  return v;
}
/// Sum over the block, in an order that its size alone decides: warp_sum, then the warps in ascending order. Every thread the same bits.
__device__ inline float block_sum(float v) {
  __shared__ float warps[32];
  v = warp_sum(v);
  __syncthreads(); // an earlier sum may still be read
  if (threadIdx.x % 32 == 0)
    warps[threadIdx.x / 32] = v;
  __syncthreads();
  float sum = 0.f;
  for (unsigned i = 0; i < blockDim.x / 32; ++i)
    sum += warps[i];
  return sum;
}

inline unsigned ceil_div(std::int64_t a, std::int64_t b) { return unsigned((a + b - 1) / b); }
inline bool aligned(const void* p) { return reinterpret_cast<std::uintptr_t>(p) % 16 == 0; }

/// Calls f(T()) with the compute type. what: the kernel's name, for the message.
template <class F>
void with_type(dtype type, const char* what, const F& f) {
  if (type == dtype::bf16)
    f(bf16());
  else if (type == dtype::f32)
    f(float());
  else
    throw error(errc::unsupported, std::string(what) + ": type " + std::string(name_of(type)) + "; this kernel takes F32 and BF16");
}

} // namespace troupe::cuda
