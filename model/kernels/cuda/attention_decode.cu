#include "model/kernels/cuda/attention_loads.cuh"
#include "model/kernels/cuda/launch.cuh"

// Decoding: the rows of the matrix instruction are the query heads of one kv head's group. Splits leave parts that are not divided by
// their sums; the last CTA of a (segment, kv head) merges them in ascending order.
namespace troupe::cuda::attention {
namespace {

constexpr int multiprocessors = 132;

// Parts of a (segment, kv head) in global or in shared memory: of each split o [group][D] and (m, l) [group].
template <int D>
struct parts {
  float* o;
  float2* ml;
  int group;
  std::int64_t o_stride, ml_stride; // from split to split

  __device__ static __forceinline__ parts global(const arguments& a, int segment, int kv_head) {
    const int group = a.shape.n_heads / a.shape.n_kv_heads;
    const std::int64_t splits = (a.plan.max_keys + split_keys - 1) / split_keys;
    const std::int64_t i = (std::int64_t(segment) * a.shape.n_kv_heads + kv_head) * splits * group;
    return {a.parts + i * D, reinterpret_cast<float2*>(a.ml) + i, group, group * D, group};
  }
  // W columns from col0 on.
  template <int W>
  __device__ __forceinline__ void store(int split, const state<W>& st, int lane, int col0, bool with_ml) const {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int r = h * 8 + lane / 4;
      const float l = quad_sum(st.l[h]);
      if (r >= group)
        continue;
      float2* const to = reinterpret_cast<float2*>(o + split * o_stride + r * D + col0) + (lane & 3);
#pragma unroll
      for (int i = 0; i < W / 8; ++i)
        to[i * 4] = make_float2(st.o[i][2 * h], st.o[i][2 * h + 1]);
      if (with_ml && (lane & 3) == 0)
        ml[split * ml_stride + r] = make_float2(st.m[h], l);
    }
  }
  // Global: from global memory, where another CTA may have written.
  template <bool Global, class T>
  __device__ static __forceinline__ T load(const T* from) {
    if constexpr (Global)
      return __ldcg(from);
    else
      return *from;
  }
};

// True in the last of the n_ctas CTAs of a (segment, kv head) to come here; then all their parts can be read.
__device__ __forceinline__ bool is_last(int* counter, int n_ctas) {
  __shared__ int last;
  if (n_ctas > 1) {
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
      last = atomicAdd(counter, 1) == n_ctas - 1;
      if (last)
        *counter = 0;
      __threadfence();
    }
  }
  __syncthreads();
  return n_ctas == 1 || last;
}

template <int D>
__device__ __forceinline__ std::int64_t out_offset(const arguments& a, int row, int head) {
  return (std::int64_t(row) * a.shape.n_heads + head) * D;
}

template <bool Global, int D, int NT>
__device__ __forceinline__ void merge(const arguments& a, const parts<D>& from, int segment, int kv_head, int n_splits) {
  constexpr int unroll = 8;
  const float c = a.scale * CUDART_L2E_F;
  for (int i = threadIdx.x; i < from.group * D / 4; i += NT) {
    const int r = i / (D / 4), col = i % (D / 4), head = kv_head * from.group + r;
    float M = -CUDART_INF_F, L = 0.f;
    float4 O = make_float4(0.f, 0.f, 0.f, 0.f);
    for (int s = 0; s < n_splits; s += unroll) {
      float4 o[unroll];
      float2 ml[unroll];
#pragma unroll
      for (int u = 0; u < unroll; ++u)
        if (s + u < n_splits) {
          o[u] = from.template load<Global>(reinterpret_cast<const float4*>(from.o + (s + u) * from.o_stride + r * D) + col);
          ml[u] = from.template load<Global>(from.ml + (s + u) * from.ml_stride + r);
        }
#pragma unroll
      for (int u = 0; u < unroll; ++u)
        if (s + u < n_splits) {
          float x, y;
          merge_factors(M, L, ml[u].x, ml[u].y, c, x, y);
          O.x = merge_value(O.x, x, o[u].x, y), O.y = merge_value(O.y, x, o[u].y, y);
          O.z = merge_value(O.z, x, o[u].z, y), O.w = merge_value(O.w, x, o[u].w, y);
        }
    }
    const float inv = __frcp_rn(L);
    const uint2 w = make_uint2(pack(finish(O.x, inv), finish(O.y, inv)), pack(finish(O.z, inv), finish(O.w, inv)));
    reinterpret_cast<uint2*>(static_cast<bf16*>(a.out) + out_offset<D>(a, segment, head))[col] = w;
    if (col == 0 && a.lse)
      a.lse[std::int64_t(head) * a.plan.n_tokens + segment] = finish_lse(M, L, a.scale);
  }
}

// A padding segment's row.
template <int D>
__device__ __forceinline__ void write_zeros(const arguments& a, int segment, int kv_head) {
  const int group = a.shape.n_heads / a.shape.n_kv_heads;
  uint2* const to = reinterpret_cast<uint2*>(static_cast<bf16*>(a.out) + out_offset<D>(a, segment, kv_head * group));
  for (int i = threadIdx.x; i < group * D / 4; i += blockDim.x)
    to[i] = make_uint2(0, 0);
  if (a.lse && int(threadIdx.x) < group)
    a.lse[std::int64_t(kv_head * group + threadIdx.x) * a.plan.n_tokens + segment] = 0.f;
}

template <int D>
__device__ __forceinline__ const bf16* queries(const arguments& a, int segment, int kv_head) {
  return static_cast<const bf16*>(a.qkv) + std::int64_t(segment) * a.row + kv_head * (a.shape.n_heads / a.shape.n_kv_heads) * D;
}

// Throughput: a warp owns a split.
template <int D, int KS, int Stages, int Warps>
__global__ __launch_bounds__(Warps * 32) void decode_splits(const __grid_constant__ arguments a) {
  extern __shared__ __align__(1024) std::uint8_t shared[];
  constexpr int ring = Stages * KS * D * 2; // bytes a warp
  static_assert(16 * D * 4 + 16 * 8 <= ring);
  let_successor_start();
  wait_for_predecessors();
  const int kv_head = blockIdx.y, segment = blockIdx.z, warp = threadIdx.x / 32, lane = threadIdx.x & 31;
  const int len = a.plan.n_keys[segment], n_blocks = (len + block_keys - 1) / block_keys;
  const int n_splits = (n_blocks + blocks_per_split - 1) / blocks_per_split;
  if (int(blockIdx.x) * Warps >= n_splits) {
    if (len == 0 && blockIdx.x == 0)
      write_zeros<D>(a, segment, kv_head);
    return;
  }
  const std::uint32_t q_s = __cvta_generic_to_shared(shared);
  const int group = a.shape.n_heads / a.shape.n_kv_heads;
  load_queries<D, 16>(q_s, queries<D>(a, segment, kv_head), D, group, threadIdx.x, Warps * 32);
  const int s0 = blockIdx.x * Warps + warp;
  const int b0 = min(s0 * blocks_per_split, n_blocks), b1 = min((s0 + 1) * blocks_per_split, n_blocks);
  const int pos[2] = {len - 1, len - 1};
  float* const rings = reinterpret_cast<float*>(shared + 16 * D * 2);
  const bool here = n_splits <= Warps; // a split's part goes where its warp's ring was
  const auto to =
      here ? parts<D>{rings, reinterpret_cast<float2*>(rings + 16 * D), group, ring / 4, ring / 8} : parts<D>::global(a, segment, kv_head);
  walk<D, 16, KS, Stages, 32>(a, q_s, q_s + 16 * D * 2 + warp * ring, segment, kv_head, lane, b0, b1, pos, len - 1, len - 1,
                              [&](const state<D>& st, int split) {
                                __syncwarp(); // all lanes have read the ring that the part may take the place of
                                to.store(split, st, lane, 0, true);
                              });
  if (here) {
    __syncthreads();
    merge<false, D, Warps * 32>(a, to, segment, kv_head, n_splits);
  } else if (is_last(a.counters + segment * a.shape.n_kv_heads + kv_head, (n_splits + Warps - 1) / Warps)) {
    merge<true, D, Warps * 32>(a, to, segment, kv_head, n_splits);
  }
}

template <int D>
struct wide_tiles {
  static constexpr int tile = block_keys * D * 2, bytes = 16 * D * 2 + 2 * blocks_per_split * tile;
  float block_max[blocks_per_split][16];
  float4 factors[blocks_per_split][32];
};

// Keys, then values of block b, a warp each; two groups of copies.
template <int D>
__device__ __forceinline__ void load_block(const arguments& a, std::uint32_t k_s, std::uint32_t v_s, int segment, int kv_head, int b,
                                           bool exists, int lane) {
  const pages<D> keys(a, segment, kv_head, false);
  const std::int64_t to_values = std::int64_t(a.shape.n_kv_heads) * page_tokens * D;
  const int page[2] = {exists ? keys.find(2 * b) : 0, exists ? keys.find(2 * b + 1) : 0};
#pragma unroll
  for (int part = 0; part < 2; ++part) {
#pragma unroll
    for (int i = 0; i < 2; ++i)
      if (exists)
        load_page<D, block_keys, 32>((part ? v_s : k_s) + i * page_tokens * 128, keys.base + (part ? to_values : 0) + page[i] * keys.stride,
                                     keys.len - b * block_keys - i * page_tokens, lane);
    copy_commit();
  }
}

// Scores and probabilities of the warp's block w of the split; P goes where the block's keys were.
template <int D>
__device__ __forceinline__ void wide_probabilities(const arguments& a, wide_tiles<D>& t, std::uint32_t q_s, std::uint32_t k_s, uint4* to,
                                                   int w, int b, bool exists, int len, int lane) {
  const int pos[2] = {len - 1, len - 1};
  float s[8][4], mx[2];
  if (exists) {
    scores<D, 16, block_keys>(s, 0, q_s, k_s, lane);
    if (b * block_keys + block_keys > len)
      mask_scores(s, b * block_keys + 2 * (lane & 3), pos);
#pragma unroll
    for (int h = 0; h < 2; ++h)
      t.block_max[w][h * 8 + lane / 4] = mx[h] = row_max(s, h);
  }
  __syncthreads();
  if (!exists)
    return;
  float alpha[2], l[2] = {0.f, 0.f};
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    float m = -CUDART_INF_F;
    for (int i = 0; i < w; ++i)
      m = fmaxf(m, t.block_max[i][h * 8 + lane / 4]);
    alpha[h] = softmax_row(m, l[h], s, h, mx[h], a.scale * CUDART_L2E_F);
  }
  std::uint32_t p[4][4];
  pack_probabilities(p, s);
  t.factors[w][lane] = make_float4(alpha[0], alpha[1], l[0], l[1]);
#pragma unroll
  for (int k = 0; k < 4; ++k)
    to[k * 32 + lane] = make_uint4(p[k][0], p[k][1], p[k][2], p[k][3]);
}

// Few splits of a (segment, kv head) are one cluster and meet in its first CTA's shared memory.
#ifdef TROUPE_WGMMA
constexpr unsigned most_together = 8;
#else
constexpr unsigned most_together = 1;
#endif
__device__ __forceinline__ bool together() { return gridDim.x <= most_together; }
// CTAs that have ended count as having arrived.
__device__ __forceinline__ void cluster_arrive() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
#endif
}
__device__ __forceinline__ void cluster_wait() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
#else
  __syncthreads();
#endif
}
template <class T>
__device__ __forceinline__ T* in_first_block(T* here) {
#if __CUDA_ARCH__ >= 900
  T* there;
  asm("mapa.u64 %0, %1, 0;" : "=l"(there) : "l"(here));
  return there;
#else
  return here;
#endif
}

// Latency: a CTA owns one split, a warp one of its blocks up to P, then a slice of the columns of O over all blocks.
template <int D>
__global__ __launch_bounds__(blocks_per_split * 32) void decode_wide(const __grid_constant__ arguments a) {
  constexpr int tile = block_keys * D * 2, W = D / blocks_per_split;
  extern __shared__ __align__(1024) std::uint8_t shared[];
  __shared__ wide_tiles<D> t;
  let_successor_start();
  wait_for_predecessors();
  const int split = blockIdx.x, kv_head = blockIdx.y, segment = blockIdx.z, w = threadIdx.x / 32, lane = threadIdx.x & 31;
  const int len = a.plan.n_keys[segment], n_blocks = (len + block_keys - 1) / block_keys;
  const int n_splits = (n_blocks + blocks_per_split - 1) / blocks_per_split;
  const int b = split * blocks_per_split + w, nb = min(blocks_per_split, n_blocks - split * blocks_per_split);
  if (split >= n_splits) {
    if (len == 0 && split == 0)
      write_zeros<D>(a, segment, kv_head);
    return;
  }
  if (together())
    cluster_arrive(); // to be waited for before the first CTA's memory is written
  const std::uint32_t k_s = __cvta_generic_to_shared(shared), v_s = k_s + blocks_per_split * tile, q_s = v_s + blocks_per_split * tile;
  const int group = a.shape.n_heads / a.shape.n_kv_heads;
  load_queries<D, 16>(q_s, queries<D>(a, segment, kv_head), D, group, threadIdx.x, blocks_per_split * 32);
  load_block<D>(a, k_s + w * tile, v_s + w * tile, segment, kv_head, b, w < nb, lane);
  copy_wait<1>();
  __syncthreads();
  wide_probabilities<D>(a, t, q_s, k_s + w * tile, reinterpret_cast<uint4*>(shared + w * tile), w, b, w < nb, len, lane);
  copy_wait<0>();
  __syncthreads();
  state<W> st;
  st.reset();
  for (int i = 0; i < nb; ++i) {
    const float4 x = t.factors[i][lane];
    const float alpha[2] = {x.x, x.y};
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      st.l[h] = __fmaf_rn(st.l[h], alpha[h], h ? x.w : x.z);
      st.m[h] = fmaxf(st.m[h], t.block_max[i][h * 8 + lane / 4]);
    }
    std::uint32_t p[4][4];
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const uint4 f = reinterpret_cast<const uint4*>(shared + i * tile)[k * 32 + lane];
      p[k][0] = f.x, p[k][1] = f.y, p[k][2] = f.z, p[k][3] = f.w;
    }
    rescale(st, alpha);
    add_values<W, block_keys>(st, p, 0, v_s + i * tile, lane, w * W / 16);
  }
  if (together()) {
    float* const first = reinterpret_cast<float*>(shared + wide_tiles<D>::bytes);
    const parts<D> here{first, reinterpret_cast<float2*>(first + gridDim.x * group * D), group, group * D, group};
    cluster_wait();
    const parts<D> there{in_first_block(here.o), in_first_block(here.ml), group, here.o_stride, here.ml_stride};
    there.store(split, st, lane, w * W, w == 0);
    cluster_arrive();
    if (split > 0)
      return;
    cluster_wait();
    merge<false, D, blocks_per_split * 32>(a, here, segment, kv_head, n_splits);
  } else {
    const auto all = parts<D>::global(a, segment, kv_head);
    all.store(split, st, lane, w * W, w == 0);
    if (is_last(a.counters + segment * a.shape.n_kv_heads + kv_head, n_splits))
      merge<true, D, blocks_per_split * 32>(a, all, segment, kv_head, n_splits);
  }
}

template <int D>
void launch_wide(const arguments& a, unsigned n_splits, stream where) {
  const bool together = n_splits <= most_together;
  const std::size_t group = a.shape.n_heads / a.shape.n_kv_heads, bytes = wide_tiles<D>::bytes + together * n_splits * group * (D + 2) * 4;
  check(cudaFuncSetAttribute(decode_wide<D>, cudaFuncAttributeMaxDynamicSharedMemorySize, int(bytes)), "decode attention");
  const dim3 grid(n_splits, unsigned(a.shape.n_kv_heads), unsigned(a.plan.n_single));
  launch_early_clusters("decode attention", decode_wide<D>, grid, together ? n_splits : 1, blocks_per_split * 32, bytes, where, a);
}

template <int D>
void launch_decode(const arguments& a, stream where) {
  constexpr int KS = D == 128 ? 32 : 64, stages = 3, warps = 4;
  constexpr std::int64_t room = std::int64_t(multiprocessors) * (D == 128 ? 1 : 3); // for wide CTAs
  const unsigned n_splits = unsigned(a.plan.max_keys + split_keys - 1) / split_keys;
  const unsigned heads = unsigned(a.shape.n_kv_heads), segments = unsigned(a.plan.n_single);
  if (std::int64_t(segments) * heads * n_splits <= room)
    launch_wide<D>(a, n_splits, where);
  else {
    constexpr int bytes = 16 * D * 2 + warps * stages * KS * D * 2;
    const auto kernel = decode_splits<D, KS, stages, warps>;
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes), "decode attention");
    launch_early("decode attention", kernel, {(n_splits + warps - 1) / warps, heads, segments}, warps * 32, bytes, where, a);
  }
}

} // namespace

void decode(const arguments& a, stream where) { a.shape.head_dim == 128 ? launch_decode<128>(a, where) : launch_decode<64>(a, where); }

} // namespace troupe::cuda::attention
