#include "model/kernels/cuda/attention_gradient.cuh"
#include "model/kernels/cuda/attention_loads.cuh"
#include <cmath>

// Gradients of attention: P = exp(s * scale - lse) again from queries and keys, then
// dV = P^T dO, dS = P (dO V^T - delta), dQ = dS K * scale, dK = dS^T Q * scale, with delta = dO . O of the row and head. Here all in f32.
namespace troupe::cuda {
namespace {

using namespace attention;

constexpr int n_warps = 4, max_chunks = 8, at_once = 4; // lane l holds columns l, l + 32, ...; pairs of rows whose sums overlap
constexpr int tile_rows = attention_gradient_plan::tile_rows;

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

// The warp's row: a CTA has n_warps of the 64 places of a tile.
struct place {
  int tile, slot, row;
  bool exists;
  __device__ __forceinline__ place(const gradient_arguments& a, int pair, int half) {
    tile = 2 * pair + half, slot = blockIdx.x % (tile_rows / n_warps) * n_warps + threadIdx.x / 32;
    row = a.plan.tile_begin[tile] + slot, exists = row < a.plan.tile_begin[tile + 1];
  }
};
__device__ __forceinline__ int tile_index() { return blockIdx.x / (tile_rows / n_warps); }

template <class T>
__global__ __launch_bounds__(n_warps * 32) void row_terms(const __grid_constant__ gradient_arguments a) {
  const place at(a, tile_index() / 2, tile_index() % 2);
  const int head = blockIdx.y, D = a.shape.head_dim;
  float lse = 0.f, delta = 0.f;
  if (at.exists) {
    columns x, y;
    x.load(out_gradient<T>(a, at.row, head), D);
    y.load(static_cast<const T*>(a.out) + (std::int64_t(at.row) * a.shape.n_heads + head) * D, D);
    delta = dot(x, y), lse = __fmul_rn(a.lse[std::int64_t(head) * a.plan.n_rows + at.row], CUDART_L2E_F);
  }
  float* const to = a.terms_of(head, at.tile) + at.slot;
  if (threadIdx.x % 32 == 0)
    to[0] = lse, to[tile_rows] = delta;
}

// The same for head_dim D and bf16: 16 bytes a lane, heads of a row after each other.
constexpr int wide_threads = 256, pairs_at_once = 4;
template <int D>
__global__ __launch_bounds__(wide_threads) void wide_row_terms(const __grid_constant__ gradient_arguments a) {
  constexpr int lanes = D / 8, step = wide_threads / lanes;
  const int tile = blockIdx.x, lane = threadIdx.x % lanes, n_heads = a.shape.n_heads;
  const int begin = a.plan.tile_begin[tile], n_rows = a.plan.tile_begin[tile + 1] - begin;
  const int first = blockIdx.y * pairs_at_once * step + threadIdx.x / lanes; // of (place of the tile, head) pairs
  const auto *const d_out = static_cast<const uint4*>(a.d_out), *const out = static_cast<const uint4*>(a.out);
  uint4 x[pairs_at_once] = {}, y[pairs_at_once] = {};
#pragma unroll
  for (int j = 0; j < pairs_at_once; ++j) {
    const int pair = first + j * step;
    const std::int64_t at = (std::int64_t(begin) * n_heads + pair) * lanes + lane;
    if (pair < n_rows * n_heads)
      x[j] = d_out[at], y[j] = out[at];
  }
#pragma unroll
  for (int j = 0; j < pairs_at_once; ++j) {
    const int pair = first + j * step, slot = pair / n_heads, head = pair % n_heads;
    const auto *const p = reinterpret_cast<const bf16*>(&x[j]), *const q = reinterpret_cast<const bf16*>(&y[j]);
    float delta = 0.f;
#pragma unroll
    for (int i = 0; i < 8; ++i)
      delta = __fmaf_rn(widen(p[i]), widen(q[i]), delta);
#pragma unroll
    for (int offset = lanes / 2; offset > 0; offset /= 2)
      delta = __fadd_rn(delta, __shfl_xor_sync(~0u, delta, offset));
    if (lane == 0 && slot < tile_rows) {
      float* const to = a.terms_of(head, tile) + slot;
      to[0] = slot < n_rows ? __fmul_rn(a.lse[std::int64_t(head) * a.plan.n_rows + begin + slot], CUDART_L2E_F) : 0.f;
      to[tile_rows] = delta;
    }
  }
}

// Which rows of the entry's tile the row sees, or is seen by; a bit each.
__device__ __forceinline__ unsigned long long visible(const gradient_arguments& a, const attention_entry& entry, const place& at, int half,
                                                      bool by_keys) {
  const int begin = a.plan.tile_begin[entry.tile], mask = entry.mask[half];
  const std::uint64_t seen = mask < 0 ? ~0ull : a.plan.masks[(mask * 2 + by_keys) * tile_rows + at.slot];
  if (a.shape.window == 0)
    return seen;
  unsigned near[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int row = min(begin + int(threadIdx.x % 32) + 32 * i, a.plan.n_rows - 1);
    near[i] = __ballot_sync(~0u, abs(a.plan.positions[row] - a.plan.positions[at.row]) < a.shape.window);
  }
  return seen & (near[0] | std::uint64_t(near[1]) << 32);
}
// The next rows of the tile, in ascending order, and how many they are; the last of them again where there are no more.
__device__ __forceinline__ int take_rows(unsigned long long& seen, int begin, int (&rows)[at_once]) {
  int n = 0;
#pragma unroll
  for (int j = 0; j < at_once; ++j) {
    rows[j] = seen ? begin + __ffsll(seen) - 1 : rows[j ? j - 1 : 0];
    n += seen != 0, seen &= seen - 1;
  }
  return n;
}

// A warp a (key row, kv head): over the rows that see it, each with the heads of the group.
template <class T>
__global__ __launch_bounds__(n_warps * 32) void key_gradients(const __grid_constant__ gradient_arguments a) {
  const attention_list list = a.plan.key_lists[tile_index() / 2];
  const int half = tile_index() % 2, kv_head = blockIdx.y, D = a.shape.head_dim, group = a.shape.n_heads / a.shape.n_kv_heads;
  const place at(a, list.pair, half);
  if (!at.exists)
    return;
  const float scale = a.scale * CUDART_L2E_F;
  columns k, v, dk{}, dv{};
  k.load(key<T>(a, at.row, kv_head), D), v.load(value<T>(a, at.row, kv_head), D);
  for (int e = list.begin; e < list.end; ++e) {
    const attention_entry entry = a.plan.key_entries[e];
    const int begin = a.plan.tile_begin[entry.tile];
    unsigned long long seen = visible(a, entry, at, half, true);
    for (int rows[at_once]; seen;) {
      const int n = take_rows(seen, begin, rows);
      for (int head = kv_head * group; head < (kv_head + 1) * group; ++head) {
        const float* const terms = a.terms_of(head, entry.tile);
        columns q[at_once], d[at_once];
#pragma unroll
        for (int j = 0; j < at_once; ++j)
          q[j].load(query<T>(a, rows[j], head), D), d[j].load(out_gradient<T>(a, rows[j], head), D);
#pragma unroll
        for (int j = 0; j < at_once; ++j) {
          const float p = probability(dot(q[j], k), scale, terms[rows[j] - begin]);
          const float ds = score_gradient(p, dot(d[j], v), terms[tile_rows + rows[j] - begin]);
          if (j < n)
            dv.add(p, d[j]), dk.add(ds, q[j]);
        }
      }
    }
  }
  float* const to = a.d_qkv + std::int64_t(at.row) * a.row + (a.shape.n_heads + kv_head) * D;
  dk.store_scaled(to, D, a.scale), dv.store_scaled(to + a.shape.n_kv_heads * D, D, 1.f);
}

// A warp a (row, head): over the keys that it sees.
template <class T>
__global__ __launch_bounds__(n_warps * 32) void query_gradients(const __grid_constant__ gradient_arguments a) {
  const attention_list list = a.plan.query_lists[tile_index() / 2];
  const int half = tile_index() % 2, head = blockIdx.y, kv_head = head / (a.shape.n_heads / a.shape.n_kv_heads), D = a.shape.head_dim;
  const place at(a, list.pair, half);
  if (!at.exists)
    return;
  const float scale = a.scale * CUDART_L2E_F;
  columns q, d, dq{};
  q.load(query<T>(a, at.row, head), D), d.load(out_gradient<T>(a, at.row, head), D);
  const float lse = a.terms_of(head, at.tile)[at.slot], delta = a.terms_of(head, at.tile)[tile_rows + at.slot];
  for (int e = list.begin; e < list.end; ++e) {
    const attention_entry entry = a.plan.query_entries[e];
    const int begin = a.plan.tile_begin[entry.tile];
    unsigned long long seen = visible(a, entry, at, half, false);
    for (int rows[at_once]; seen;) {
      const int n = take_rows(seen, begin, rows);
      columns k[at_once], v[at_once];
#pragma unroll
      for (int j = 0; j < at_once; ++j)
        k[j].load(key<T>(a, rows[j], kv_head), D), v[j].load(value<T>(a, rows[j], kv_head), D);
#pragma unroll
      for (int j = 0; j < at_once; ++j) {
        const float ds = score_gradient(probability(dot(q, k[j]), scale, lse), dot(d, v[j]), delta);
        if (j < n)
          dq.add(ds, k[j]);
      }
    }
  }
  dq.store_scaled(a.d_qkv + std::int64_t(at.row) * a.row + head * D, D, a.scale);
}

template <class T>
void launch_backward(const gradient_arguments& a, stream where) {
  const unsigned rows = unsigned(a.plan.n_pairs) * 2 * (tile_rows / n_warps), heads = unsigned(a.shape.n_heads);
  launch(row_terms<T>, {rows, heads}, n_warps * 32, 0, where, "attention backward", a);
  launch(key_gradients<T>, {rows, unsigned(a.shape.n_kv_heads)}, n_warps * 32, 0, where, "attention backward", a);
  launch(query_gradients<T>, {rows, heads}, n_warps * 32, 0, where, "attention backward", a);
}

#ifdef TROUPE_WGMMA
template <int D>
void launch_wide_terms(const gradient_arguments& a, stream where) {
  constexpr int pairs = wide_threads / (D / 8) * pairs_at_once; // a CTA
  launch(wide_row_terms<D>, {unsigned(a.plan.n_pairs) * 2, unsigned(tile_rows * a.shape.n_heads + pairs - 1) / pairs}, wide_threads, 0,
         where, "attention backward", a);
}
#endif

} // namespace

void attend_backward(dtype type, const attention_shape& shape, const attention_gradient_plan& plan, const void* qkv, const void* out,
                     const float* lse, const void* d_out, float* d_qkv, float* scratch, stream where) {
  check_attention(type, shape);
  if (plan.n_rows == 0)
    return;
  const gradient_arguments args{shape, plan, qkv, out, d_out, lse, d_qkv, scratch, 1.f / std::sqrt(float(shape.head_dim)), shape.row()};
#ifdef TROUPE_WGMMA
  if (has_fast_kernels(type, shape)) {
    shape.head_dim == 128 ? launch_wide_terms<128>(args, where) : launch_wide_terms<64>(args, where);
    return gradients_wgmma(args, where);
  }
#endif
  type == dtype::f32 ? launch_backward<float>(args, where) : launch_backward<bf16>(args, where);
}

} // namespace troupe::cuda
