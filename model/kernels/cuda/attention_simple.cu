#include "model/kernels/cuda/attention_loads.cuh"

// One definition for every row, whatever the pass: a warp a (row, head); keys in blocks of 64 from position 0 on, online softmax in f32.
namespace troupe::cuda::attention {
namespace {

constexpr int n_warps = 8, max_chunks = 8; // lane l holds columns l, l + 32, ... of a row

__device__ float warp_max(float v) {
  for (int offset = 16; offset > 0; offset /= 2)
    v = fmaxf(v, __shfl_xor_sync(~0u, v, offset));
  return v;
}
// Keys or values of a block into [64][head_dim + 1]; rows from key `end` on are zero.
template <class T>
__device__ void load_block(const arguments& a, float* tile, int segment, int kv_head, bool values, int b, int end) {
  const int D = a.shape.head_dim;
  const int* const blocks = a.plan.blocks + std::int64_t(segment) * a.plan.max_blocks;
  const T* const cache = static_cast<const T*>(a.cache) + std::int64_t(values * a.shape.n_kv_heads + kv_head) * page_tokens * D;
  for (int i = threadIdx.x; i < block_keys * D; i += n_warps * 32) {
    const int k = i / D, d = i % D, key = b * block_keys + k;
    tile[k * (D + 1) + d] =
        key < end
            ? widen(cache[std::int64_t(2) * a.shape.n_kv_heads * page_tokens * D * blocks[key / page_tokens] + key % page_tokens * D + d])
            : 0.f;
  }
}

struct running {
  float m, l, o[max_chunks]; // l: this lane's keys only
};

// Scores of keys lane and lane + 32 of the block, to probabilities in p[64]; rescales what was.
__device__ void softmax(running& r, const float* q, const float* tile, float* p, int D, int key0, int first, int pos, float c) {
  const int lane = threadIdx.x & 31;
  float s[2];
  for (int h = 0; h < 2; ++h) {
    const int k = lane + 32 * h;
    float sum = 0.f;
    for (int d = 0; d < D; ++d)
      sum = __fmaf_rn(q[d], tile[k * (D + 1) + d], sum);
    s[h] = key0 + k < first || key0 + k > pos ? -CUDART_INF_F : sum;
  }
  const float m = fmaxf(r.m, warp_max(fmaxf(s[0], s[1])));
  const float safe = m == -CUDART_INF_F ? 0.f : m, alpha = ex2(__fmul_rn(__fsub_rn(r.m, safe), c));
  for (int h = 0; h < 2; ++h)
    p[lane + 32 * h] = s[h] = ex2(__fmul_rn(__fsub_rn(s[h], safe), c));
  r.m = m, r.l = __fmaf_rn(r.l, alpha, __fadd_rn(s[0], s[1]));
#pragma unroll
  for (int i = 0; i < max_chunks; ++i)
    r.o[i] = __fmul_rn(r.o[i], alpha);
  __syncwarp();
}

__device__ void add_values(running& r, const float* tile, const float* p, int D, int from, int to) {
  const int lane = threadIdx.x & 31;
  for (int k = from; k < to; ++k)
#pragma unroll
    for (int i = 0; i < max_chunks; ++i)
      if (lane + 32 * i < D)
        r.o[i] = __fmaf_rn(p[k], tile[k * (D + 1) + lane + 32 * i], r.o[i]);
  __syncwarp();
}

template <class T>
__device__ void finish_row(const arguments& a, const running& r, std::int64_t row, int head) {
  const int lane = threadIdx.x & 31, D = a.shape.head_dim;
  const float l = warp_sum(r.l), inv = l > 0.f ? __frcp_rn(l) : 0.f; // 0: a padding segment's row
  T* const out = static_cast<T*>(a.out) + (row * a.shape.n_heads + head) * D;
#pragma unroll
  for (int i = 0; i < max_chunks; ++i)
    if (lane + 32 * i < D)
      store(out + lane + 32 * i, finish(r.o[i], inv));
  if (a.lse && lane == 0)
    a.lse[std::int64_t(head) * a.plan.n_tokens + row] = l > 0.f ? finish_lse(r.m, l, a.scale) : 0.f;
}

// blockIdx: (8 of the segment's (row, head of the group), kv head, segment).
template <class T>
__global__ __launch_bounds__(n_warps * 32) void attend_rows(const __grid_constant__ arguments a) {
  extern __shared__ float shared[];
  const int kv_head = blockIdx.y, segment = blockIdx.z, warp = threadIdx.x / 32, lane = threadIdx.x & 31;
  const int D = a.shape.head_dim, group = a.shape.n_heads / a.shape.n_kv_heads, len = a.plan.n_keys[segment];
  const bool single = segment < a.plan.n_single;
  const int n_items = len == 0 && !single ? 0 : (single ? 1 : a.plan.n_rows[segment]) * group;
  const int item0 = blockIdx.x * n_warps, item = item0 + warp;
  if (item0 >= n_items)
    return;
  float *const tile = shared, *const q = tile + block_keys * (D + 1) + warp * D,
               *const p = tile + block_keys * (D + 1) + n_warps * D + warp * 64;
  const int position0 = len - n_items / group; // of the segment's first row
  const int pos = position0 + item / group, head = kv_head * group + item % group;
  const std::int64_t row = (single ? segment : a.plan.row_begin[segment]) + item / group;
  if (item < n_items)
    for (int d = lane; d < D; d += 32)
      q[d] = widen(static_cast<const T*>(a.qkv)[row * a.row + head * D + d]);
  const int window = a.shape.window > 0 ? a.shape.window : len, first = max(0, pos + 1 - window);
  const int begin = max(0, position0 + item0 / group + 1 - window) / block_keys;
  const int end = min(len, position0 + (item0 + n_warps - 1) / group + 1); // keys that some row of the CTA sees
  running r{-CUDART_INF_F, 0.f, {}};
  for (int b = begin; b * block_keys < end; ++b) {
    const int key0 = b * block_keys;
    const bool live = item < n_items && key0 <= pos && key0 + block_keys > first;
    __syncthreads();
    load_block<T>(a, tile, segment, kv_head, false, b, end);
    __syncthreads();
    if (live)
      softmax(r, q, tile, p, D, key0, first, pos, a.scale * CUDART_L2E_F);
    __syncthreads();
    load_block<T>(a, tile, segment, kv_head, true, b, end);
    __syncthreads();
    if (live)
      add_values(r, tile, p, D, max(0, first - key0), min(block_keys, pos + 1 - key0));
  }
  if (item < n_items)
    finish_row<T>(a, r, row, head);
}

} // namespace

void simple(dtype type, const arguments& a, stream where) {
  const std::int64_t group = a.shape.n_heads / a.shape.n_kv_heads;
  const dim3 grid(unsigned((a.plan.max_rows * group + n_warps - 1) / n_warps), unsigned(a.shape.n_kv_heads), unsigned(a.plan.n_segments));
  if (grid.x == 0 || grid.z == 0)
    return;
  const int bytes = (block_keys * (a.shape.head_dim + 1) + n_warps * (a.shape.head_dim + 64)) * int(sizeof(float));
  launch(type == dtype::f32 ? attend_rows<float> : attend_rows<bf16>, grid, n_warps * 32, bytes, where, "attention", a);
}

} // namespace troupe::cuda::attention
