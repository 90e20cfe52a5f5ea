#include "core/error.hpp"
#include "model/kernels/cuda/check.cuh"
#include "model/kernels/cuda/sum_parts.hpp"
#include <algorithm>
#include <string>

namespace troupe::cuda {

namespace {

constexpr int threads = 256;
constexpr std::int64_t most_blocks = 16 * 132;

/// bf16 as its bits: rounding is kernels::narrow's, NaN included.
struct half_bits {
  std::uint16_t bits;
};

__device__ float widen(float v) { return v; }
__device__ float widen(half_bits v) { return __uint_as_float(std::uint32_t(v.bits) << 16); }
__device__ void round_to(float& to, float v) { to = v; }
__device__ void round_to(half_bits& to, float v) {
  const std::uint32_t u = __float_as_uint(v);
  to.bits = v != v ? std::uint16_t(0x7fc0) : std::uint16_t((u + ((u >> 16) & 1u) + 0x7fffu) >> 16);
}

/// Subnormal numbers count as zero, as on the CPU.
__device__ float add(float a, float b) {
  asm("add.rn.ftz.f32 %0, %0, %1;" : "+f"(a) : "f"(b));
  return a;
}

template <class T, int N>
struct alignas(sizeof(T) * N) vec {
  T at[N];
};

/// N elements a thread at a time; n: vectors of a part.
template <class T, int N>
__global__ void sum_parts_kernel(const vec<T, N>* parts, int n_parts, std::int64_t n, vec<T, N>* out) {
  for (std::int64_t i = blockIdx.x * std::int64_t(threads) + threadIdx.x; i < n; i += std::int64_t(gridDim.x) * threads) {
    float sum[N];
    vec<T, N> v = parts[i];
#pragma unroll
    for (int k = 0; k < N; ++k)
      sum[k] = widen(v.at[k]);
    for (int p = 1; p < n_parts; ++p) {
      v = parts[p * n + i];
#pragma unroll
      for (int k = 0; k < N; ++k)
        sum[k] = add(sum[k], widen(v.at[k]));
    }
#pragma unroll
    for (int k = 0; k < N; ++k)
      round_to(v.at[k], sum[k]);
    out[i] = v;
  }
}

template <class T, int N>
void launch(const void* parts, int n_parts, std::int64_t count, void* out, stream where) {
  const std::int64_t n = count / N;
  const auto blocks = unsigned(std::clamp<std::int64_t>((n + threads - 1) / threads, 1, most_blocks));
  sum_parts_kernel<T, N><<<blocks, threads, 0, where>>>(static_cast<const vec<T, N>*>(parts), n_parts, n, static_cast<vec<T, N>*>(out));
  check(cudaGetLastError(), "launching the sum of parts");
}

template <class T>
void choose(const void* parts, int n_parts, std::int64_t count, void* out, stream where) {
  constexpr int wide = 16 / sizeof(T);
  const bool aligned = (reinterpret_cast<std::uintptr_t>(parts) | reinterpret_cast<std::uintptr_t>(out)) % 16 == 0;
  if (aligned && count % wide == 0)
    launch<T, wide>(parts, n_parts, count, out, where);
  else
    launch<T, 1>(parts, n_parts, count, out, where);
}

} // namespace

void sum_parts(dtype type, const void* parts, int n_parts, std::int64_t count, void* out, stream where) {
  if (type != dtype::f32 && type != dtype::bf16)
    throw error(errc::unsupported, "sum of parts: type " + std::string(name_of(type)) + "; this kernel takes F32 and BF16");
  if (count == 0)
    return;
  if (type == dtype::f32)
    choose<float>(parts, n_parts, count, out, where);
  else
    choose<half_bits>(parts, n_parts, count, out, where);
}

} // namespace troupe::cuda
