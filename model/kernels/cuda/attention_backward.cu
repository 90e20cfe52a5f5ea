#include "model/kernels/cuda/attention_loads.cuh"
#include <climits>
#include <cmath>

// Gradients of attention: P = exp(s * scale - lse) again from queries and keys, then
// dV = P^T dO, dS = P (dO V^T - delta), dQ = dS K * scale, dK = dS^T Q * scale, with delta = dO . O of the row and head. All in f32.
namespace troupe::cuda {
namespace {

using namespace attention;

constexpr int n_warps = 4, max_chunks = 8, at_once = 4; // lane l holds columns l, l + 32, ...; pairs of rows whose sums overlap

struct gradient_arguments {
  attention_shape shape;
  attention_gradient_plan plan;
  const void *qkv, *out, *d_out;
  const float* lse;
  float* d_qkv;
  float scale;
  std::int64_t row;
};

// One row of one head, over the lanes of a warp; columns from D on are 0.
struct columns {
  float at[max_chunks];
  template <class T>
  __device__ __forceinline__ void load(const T* from, int D) {
    const int lane = threadIdx.x & 31;
#pragma unroll
    for (int i = 0; i < max_chunks; ++i)
      at[i] = lane + 32 * i < D ? widen(from[lane + 32 * i]) : 0.f;
  }
  __device__ __forceinline__ void store_scaled(float* to, int D, float scale) const {
    const int lane = threadIdx.x & 31;
#pragma unroll
    for (int i = 0; i < max_chunks; ++i)
      if (lane + 32 * i < D)
        to[lane + 32 * i] = at[i] * scale;
  }
  __device__ __forceinline__ void add(float factor, const columns& x) {
#pragma unroll
    for (int i = 0; i < max_chunks; ++i)
      at[i] = __fmaf_rn(factor, x.at[i], at[i]);
  }
};
__device__ __forceinline__ float dot(const columns& x, const columns& y) {
  float sum = 0.f;
#pragma unroll
  for (int i = 0; i < max_chunks; ++i)
    sum = __fmaf_rn(x.at[i], y.at[i], sum);
  return warp_sum(sum);
}

template <class T>
__device__ __forceinline__ const T* query(const gradient_arguments& a, std::int64_t row, int head) {
  return static_cast<const T*>(a.qkv) + row * a.row + head * a.shape.head_dim;
}
// Keys are heads n_heads .., values n_heads + n_kv_heads .. of a row.
template <class T>
__device__ __forceinline__ const T* key(const gradient_arguments& a, std::int64_t row, int kv_head) {
  return query<T>(a, row, a.shape.n_heads + kv_head);
}
template <class T>
__device__ __forceinline__ const T* value(const gradient_arguments& a, std::int64_t row, int kv_head) {
  return query<T>(a, row, a.shape.n_heads + a.shape.n_kv_heads + kv_head);
}
template <class T>
__device__ __forceinline__ const T* out_gradient(const gradient_arguments& a, std::int64_t row, int head) {
  return static_cast<const T*>(a.d_out) + (row * a.shape.n_heads + head) * a.shape.head_dim;
}
// Where delta waits: the first element of what will be the query's gradient.
__device__ __forceinline__ float* delta_of(const gradient_arguments& a, std::int64_t row, int head) {
  return a.d_qkv + row * a.row + head * a.shape.head_dim;
}
__device__ __forceinline__ float lse_of(const gradient_arguments& a, std::int64_t row, int head) {
  return a.lse[std::int64_t(head) * a.plan.n_rows + row];
}

// The warp's number in the grid.
__device__ __forceinline__ int warp_index() { return blockIdx.x * n_warps + threadIdx.x / 32; }

template <class T>
__global__ __launch_bounds__(n_warps * 32) void deltas(const __grid_constant__ gradient_arguments a) {
  const int row = warp_index(), head = blockIdx.y, D = a.shape.head_dim;
  if (row >= a.plan.n_rows)
    return;
  columns x, y;
  x.load(out_gradient<T>(a, row, head), D);
  y.load(static_cast<const T*>(a.out) + (std::int64_t(row) * a.shape.n_heads + head) * D, D);
  const float sum = dot(x, y);
  if (threadIdx.x % 32 == 0)
    *delta_of(a, row, head) = sum;
}

// P and dS of a (query, key).
struct probability {
  float p, ds;
};
__device__ __forceinline__ probability probability_of(float s, float dp, float lse, float delta, float scale) {
  const float p = ex2(__fmul_rn(__fmaf_rn(s, scale, -lse), CUDART_L2E_F));
  return {p, __fmul_rn(p, __fsub_rn(dp, delta))};
}

// A warp a (key row, kv head): over the rows that see it, each with the heads of the group.
template <class T>
__global__ __launch_bounds__(n_warps * 32) void key_gradients(const __grid_constant__ gradient_arguments a) {
  const int row = warp_index(), kv_head = blockIdx.y, D = a.shape.head_dim, group = a.shape.n_heads / a.shape.n_kv_heads;
  if (row >= a.plan.n_rows)
    return;
  const int window = a.shape.window > 0 ? a.shape.window : INT_MAX;
  columns k, v, dk{}, dv{};
  k.load(key<T>(a, row, kv_head), D), v.load(value<T>(a, row, kv_head), D);
  const int* const queries = a.plan.query_rows + a.plan.query_begin[row];
  const int n = (a.plan.query_begin[row + 1] - a.plan.query_begin[row]) * group;
  for (int i = 0; i < n; i += at_once) {
    columns q[at_once], d[at_once];
#pragma unroll
    for (int j = 0; j < at_once; ++j) {
      const int x = min(i + j, n - 1), head = kv_head * group + x % group;
      q[j].load(query<T>(a, queries[x / group], head), D), d[j].load(out_gradient<T>(a, queries[x / group], head), D);
    }
#pragma unroll
    for (int j = 0; j < at_once; ++j) {
      const int x = min(i + j, n - 1), head = kv_head * group + x % group, r = queries[x / group];
      const probability t = probability_of(dot(q[j], k), dot(d[j], v), lse_of(a, r, head), *delta_of(a, r, head), a.scale);
      if (i + j < n && a.plan.n_keys[r] - a.plan.n_keys[row] < window)
        dv.add(t.p, d[j]), dk.add(t.ds, q[j]);
    }
  }
  float* const to = a.d_qkv + std::int64_t(row) * a.row + (a.shape.n_heads + kv_head) * D;
  dk.store_scaled(to, D, a.scale), dv.store_scaled(to + a.shape.n_kv_heads * D, D, 1.f);
}

// A warp a (row, head): over the keys that it sees. Last, since it overwrites its delta.
template <class T>
__global__ __launch_bounds__(n_warps * 32) void query_gradients(const __grid_constant__ gradient_arguments a) {
  const int row = warp_index(), head = blockIdx.y, kv_head = head / (a.shape.n_heads / a.shape.n_kv_heads), D = a.shape.head_dim;
  if (row >= a.plan.n_rows)
    return;
  columns q, d, dq{};
  q.load(query<T>(a, row, head), D), d.load(out_gradient<T>(a, row, head), D);
  const float lse = lse_of(a, row, head), delta = *delta_of(a, row, head);
  __syncwarp();
  const int* const keys = a.plan.key_rows + a.plan.key_begin[row];
  const int n = a.plan.n_keys[row], first = a.shape.window > 0 ? max(0, n - a.shape.window) : 0;
  for (int i = first; i < n; i += at_once) {
    columns k[at_once], v[at_once];
#pragma unroll
    for (int j = 0; j < at_once; ++j) {
      const int r = keys[min(i + j, n - 1)];
      k[j].load(key<T>(a, r, kv_head), D), v[j].load(value<T>(a, r, kv_head), D);
    }
#pragma unroll
    for (int j = 0; j < at_once; ++j) {
      const probability t = probability_of(dot(q, k[j]), dot(d, v[j]), lse, delta, a.scale);
      if (i + j < n)
        dq.add(t.ds, k[j]);
    }
  }
  dq.store_scaled(delta_of(a, row, head), D, a.scale);
}

template <class T>
void launch_backward(const gradient_arguments& a, stream where) {
  const unsigned rows = unsigned(a.plan.n_rows + n_warps - 1) / n_warps, heads = unsigned(a.shape.n_heads);
  launch(deltas<T>, {rows, heads}, n_warps * 32, 0, where, "attention backward", a);
  launch(key_gradients<T>, {rows, unsigned(a.shape.n_kv_heads)}, n_warps * 32, 0, where, "attention backward", a);
  launch(query_gradients<T>, {rows, heads}, n_warps * 32, 0, where, "attention backward", a);
}

} // namespace

void attend_backward(dtype type, const attention_shape& shape, const attention_gradient_plan& plan, const void* qkv, const void* out,
                     const float* lse, const void* d_out, float* d_qkv, stream where) {
  check_attention(type, shape);
  if (plan.n_rows == 0)
    return;
  const gradient_arguments args{shape, plan, qkv, out, d_out, lse, d_qkv, 1.f / std::sqrt(float(shape.head_dim)), shape.row()};
  type == dtype::f32 ? launch_backward<float>(args, where) : launch_backward<bf16>(args, where);
}

} // namespace troupe::cuda
