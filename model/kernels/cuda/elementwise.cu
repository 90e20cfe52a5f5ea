#include "model/kernels/cuda/check.cuh"
#include "model/kernels/cuda/elementwise.hpp"
#include "model/kernels/cuda/launch.cuh"
#include "model/kernels/cuda/numeric.cuh"

namespace troupe::cuda {
namespace {

constexpr int threads = 256;

// f.vector<N>(i) for the vectors of N elements of `count`; f.vector<1> for what is left over.
template <int N, class F>
__global__ void __launch_bounds__(threads) by_elements(F f, std::int64_t count) {
  const std::int64_t i = (std::int64_t(blockIdx.x) * threads + threadIdx.x) * N;
  if (i + N <= count)
    f.template vector<N>(i);
  else
    for (std::int64_t j = i; j < count; ++j)
      f.template vector<1>(j);
}

// f.vector<N>(row, column) for n rows of `width` elements, a multiple of N: no division by the width.
template <int N, class F>
__global__ void __launch_bounds__(threads) by_rows(F f, std::int64_t width) {
  let_successor_start();
  wait_for_predecessors();
  const std::int64_t column = (std::int64_t(blockIdx.y) * threads + threadIdx.x) * N;
  if (column < width)
    f.template vector<N>(blockIdx.x, column);
}

template <int N, class F>
void for_rows(const char* what, std::int64_t n, std::int64_t width, bool vectors, const F& f, stream where) {
  if (n == 0 || width == 0)
    return;
  if (vectors && width % N == 0)
    launch_early(what, by_rows<N, F>, dim3(unsigned(n), ceil_div(width, std::int64_t(threads) * N)), threads, 0, where, f, width);
  else
    launch_early(what, by_rows<1, F>, dim3(unsigned(n), ceil_div(width, threads)), threads, 0, where, f, width);
}

template <int N, class F>
void for_each(const char* what, std::int64_t count, bool vectors, const F& f, stream where) {
  if (count == 0)
    return;
  if (vectors)
    by_elements<N><<<ceil_div(count, std::int64_t(threads) * N), threads, 0, where>>>(f, count);
  else
    by_elements<1><<<ceil_div(count, threads), threads, 0, where>>>(f, count);
  check(cudaGetLastError(), what);
}

template <int N, class T>
__device__ const vec<T, N>& load(const T* p) {
  return *reinterpret_cast<const vec<T, N>*>(p);
}
template <int N, class T>
__device__ void store(T* p, const vec<T, N>& v) {
  *reinterpret_cast<vec<T, N>*>(p) = v;
}

template <class T>
struct silu_mul_of {
  const T* gate_up;
  std::int64_t inter;
  T* act;
  template <int N>
  __device__ void vector(std::int64_t row, std::int64_t column) const {
    const std::int64_t at = row * 2 * inter + column;
    const auto g = load<N>(gate_up + at), u = load<N>(gate_up + at + inter);
    vec<T, N> out;
#pragma unroll
    for (int k = 0; k < N; ++k)
      round_to(out.at[k], rounded<T>(silu(widen(g.at[k]))) * widen(u.at[k]));
    store<N>(act + row * inter + column, out);
  }
};

template <class T>
struct silu_mul_gradient {
  const T* gate_up;
  const float* d_act;
  std::int64_t inter;
  T* d_gate_up;
  template <int N>
  __device__ void vector(std::int64_t row, std::int64_t column) const {
    const std::int64_t at = row * 2 * inter + column;
    const auto gates = load<N>(gate_up + at), ups = load<N>(gate_up + at + inter);
    const auto d = load<N>(d_act + row * inter + column);
    vec<T, N> d_gates, d_ups;
#pragma unroll
    for (int k = 0; k < N; ++k) {
      const float g = widen(gates.at[k]), u = widen(ups.at[k]), da = d.at[k];
      const float s = __fdiv_rn(1.f, one_plus_exp_minus(g));
      round_to(d_gates.at[k], da * u * (s * (1.f + g * (1.f - s))));
      round_to(d_ups.at[k], da * (g * s));
    }
    store<N>(d_gate_up + at, d_gates);
    store<N>(d_gate_up + at + inter, d_ups);
  }
};

template <class T>
struct relu_of {
  T* x;
  template <int N>
  __device__ void vector(std::int64_t i) const {
    auto v = load<N>(x + i);
#pragma unroll
    for (int k = 0; k < N; ++k)
      if (widen(v.at[k]) <= 0.f)
        round_to(v.at[k], 0.f);
    store<N>(x + i, v);
  }
};

template <class T>
struct relu_gradient {
  const T* y;
  float* d;
  template <int N>
  __device__ void vector(std::int64_t i) const {
    const auto v = load<N>(y + i);
    auto g = load<N>(d + i);
#pragma unroll
    for (int k = 0; k < N; ++k)
      if (widen(v.at[k]) == 0.f)
        g.at[k] = 0.f;
    store<N>(d + i, g);
  }
};

template <class From, class To>
struct converted {
  const From* x;
  To* y;
  template <int N>
  __device__ void vector(std::int64_t i) const {
    const auto v = load<N>(x + i);
    vec<To, N> out;
#pragma unroll
    for (int k = 0; k < N; ++k)
      round_to(out.at[k], widen(v.at[k]));
    store<N>(y + i, out);
  }
};

template <class T>
struct sum_of {
  T* y;
  const T* x;
  template <int N>
  __device__ void vector(std::int64_t i) const {
    auto sum = load<N>(y + i);
    const auto v = load<N>(x + i);
#pragma unroll
    for (int k = 0; k < N; ++k)
      round_to(sum.at[k], widen(sum.at[k]) + widen(v.at[k]));
    store<N>(y + i, sum);
  }
};

} // namespace

void silu_mul(dtype type, const void* gate_up, std::int64_t n, std::int64_t inter, void* act, stream where) {
  with_type(type, "silu_mul", [&](auto t) {
    using T = decltype(t);
    for_rows<wide<T>>("silu_mul", n, inter, aligned(gate_up) && aligned(act),
                      silu_mul_of<T>{static_cast<const T*>(gate_up), inter, static_cast<T*>(act)}, where);
  });
}

void silu_mul_backward(dtype type, const void* gate_up, const float* d_act, std::int64_t n, std::int64_t inter, void* d_gate_up,
                       stream where) {
  with_type(type, "silu_mul_backward", [&](auto t) {
    using T = decltype(t);
    for_rows<wide<T>>("silu_mul_backward", n, inter, aligned(gate_up) && aligned(d_act) && aligned(d_gate_up),
                      silu_mul_gradient<T>{static_cast<const T*>(gate_up), d_act, inter, static_cast<T*>(d_gate_up)}, where);
  });
}

void relu(dtype type, void* x, std::int64_t count, stream where) {
  with_type(type, "relu", [&](auto t) {
    using T = decltype(t);
    for_each<wide<T>>("relu", count, aligned(x), relu_of<T>{static_cast<T*>(x)}, where);
  });
}

void relu_backward(dtype type, const void* y, float* d, std::int64_t count, stream where) {
  with_type(type, "relu_backward", [&](auto t) {
    using T = decltype(t);
    for_each<wide<T>>("relu_backward", count, aligned(y) && aligned(d), relu_gradient<T>{static_cast<const T*>(y), d}, where);
  });
}

void convert(const float* x, std::int64_t count, dtype type, void* y, stream where) {
  with_type(type, "convert", [&](auto t) {
    using T = decltype(t);
    for_each<wide<T>>("convert", count, aligned(x) && aligned(y), converted<float, T>{x, static_cast<T*>(y)}, where);
  });
}

void widen(dtype type, const void* x, std::int64_t count, float* y, stream where) {
  with_type(type, "widen", [&](auto t) {
    using T = decltype(t);
    for_each<wide<T>>("widen", count, aligned(x) && aligned(y), converted<T, float>{static_cast<const T*>(x), y}, where);
  });
}

void add(dtype type, void* y, const void* x, std::int64_t count, stream where) {
  with_type(type, "add", [&](auto t) {
    using T = decltype(t);
    for_each<wide<T>>("add", count, aligned(y) && aligned(x), sum_of<T>{static_cast<T*>(y), static_cast<const T*>(x)}, where);
  });
}

} // namespace troupe::cuda
