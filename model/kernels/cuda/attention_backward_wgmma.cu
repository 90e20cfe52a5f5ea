#include "model/kernels/cuda/attention_gradient.cuh"
#include "model/kernels/cuda/attention_loads.cuh"
#include "model/kernels/cuda/attention_wgmma.cuh"
#include "model/kernels/cuda/tma.cuh"

// Gradients with Hopper's wgmma. A CTA has two tiles of 64 rows, a warpgroup each, and walks over the tiles that they see, or that see
// them: as keys over (queries, head of the group): S^T = K Q^T, dP^T = V dO^T, dV += P^T dO, dK += dS^T Q; as queries over keys: S = Q K^T,
// dP = dO V^T, dQ += dS K. P and dS are rounded to bf16, sums are f32. Every sum is of one warp, in one order: bits repeat.
namespace troupe::cuda::attention {
namespace {

constexpr int tile_rows = attention_gradient_plan::tile_rows, n_groups = 2, n_threads = n_groups * 128;

// Shared memory: two tiles a warpgroup that stay, then stages of two tiles and the terms of 64 rows.
template <int D>
struct layout {
  static constexpr int tile = tile_rows * D * 2, n_stages = 4, ahead = 2, terms = 2 * tile_rows * 4;
  static constexpr int stages = 2 * n_groups * tile, of_terms = stages + n_stages * 2 * tile, barriers = of_terms + n_stages * terms;
  static constexpr int bytes = barriers + (1 + 2 * n_stages) * 8;
  std::uint32_t base;
  __device__ __forceinline__ std::uint32_t own(int group, int i) const { return base + (2 * group + i) * tile; }
  __device__ __forceinline__ std::uint32_t stage(int s, int i) const { return base + stages + (2 * s + i) * tile; }
  __device__ __forceinline__ std::uint32_t stage_terms(int s) const { return base + of_terms + s * terms; }
  __device__ __forceinline__ barrier own_full() const { return {base + barriers}; }
  __device__ __forceinline__ barrier full(int s) const { return {base + barriers + 8 + 8 * s}; }
  __device__ __forceinline__ barrier empty(int s) const { return {base + barriers + 8 + 8 * (n_stages + s)}; }
  __device__ __forceinline__ void init() const {
    if (threadIdx.x == 0) {
      own_full().init(1);
      for (int s = 0; s < n_stages; ++s)
        full(s).init(1), empty(s).init(n_threads / 32);
      publish_barriers();
    }
    __syncthreads();
  }
};

// 64 rows from `row` on, of the head that begins at `column`.
template <int D>
__device__ __forceinline__ void copy_tile(std::uint32_t to, const CUtensorMap& from, int row, int column, barrier done) {
#pragma unroll
  for (int i = 0; i < D / 64; ++i)
    copy_box(to + i * tile_rows * 128, from, row, column + 64 * i, done);
}

// What a CTA does, and its copies, which one thread issues. Keys: the CTA's tiles are keys of kv head `head`; else queries of `head`.
template <int D, bool Keys>
struct work {
  const gradient_arguments& a;
  const CUtensorMap &qkv, &d_out;
  layout<D> at;
  int head, kv_head, group, pair, n_heads; // n_heads: of queries that a step's tile serves in turn
  const attention_entry* entries;
  int n; // steps

  __device__ __forceinline__ work(const gradient_arguments& a, const CUtensorMap& qkv, const CUtensorMap& d_out, layout<D> at, int index,
                                  int head)
      : a(a), qkv(qkv), d_out(d_out), at(at), head(head), group(a.shape.n_heads / a.shape.n_kv_heads) {
    const attention_list list = (Keys ? a.plan.key_lists : a.plan.query_lists)[index];
    kv_head = Keys ? head : head / group, n_heads = Keys ? group : 1, pair = list.pair;
    entries = (Keys ? a.plan.key_entries : a.plan.query_entries) + list.begin, n = (list.end - list.begin) * n_heads;
  }
  __device__ __forceinline__ int key_column() const { return (a.shape.n_heads + kv_head) * D; }
  __device__ __forceinline__ int value_column() const { return key_column() + a.shape.n_kv_heads * D; }
  __device__ __forceinline__ void copy_keys(std::uint32_t to, std::uint32_t to_values, int row, barrier done) const {
    copy_tile<D>(to, qkv, row, key_column(), done), copy_tile<D>(to_values, qkv, row, value_column(), done);
  }
  __device__ __forceinline__ void copy_queries(std::uint32_t to, std::uint32_t to_gradients, int row, int head, barrier done) const {
    copy_tile<D>(to, qkv, row, head * D, done), copy_tile<D>(to_gradients, d_out, row, head * D, done);
  }
  __device__ __forceinline__ void copy_own() const {
    at.own_full().expect(2 * n_groups * layout<D>::tile);
    for (int g = 0; g < n_groups; ++g) {
      const int row = a.plan.tile_begin[2 * pair + g];
      if constexpr (Keys)
        copy_keys(at.own(g, 0), at.own(g, 1), row, at.own_full());
      else
        copy_queries(at.own(g, 0), at.own(g, 1), row, head, at.own_full());
    }
  }
  __device__ __forceinline__ void copy_step(int i) const {
    constexpr int n_stages = layout<D>::n_stages;
    const int s = i % n_stages, tile = entries[i / n_heads].tile, row = a.plan.tile_begin[tile];
    if (i >= n_stages)
      at.empty(s).wait((i / n_stages - 1) & 1);
    at.full(s).expect(2 * layout<D>::tile + (Keys ? layout<D>::terms : 0));
    if constexpr (Keys) {
      const int query_head = kv_head * group + i % n_heads;
      copy_queries(at.stage(s, 0), at.stage(s, 1), row, query_head, at.full(s));
      copy_bytes(at.stage_terms(s), a.terms_of(query_head, tile), layout<D>::terms, at.full(s));
    } else {
      copy_keys(at.stage(s, 0), at.stage(s, 1), row, at.full(s));
    }
  }
};

// Scores that the lane's rows (row, row + 8 of the tile) do not see become -inf.
template <bool Keys>
__device__ __forceinline__ void hide(float (&s)[8][4], const gradient_arguments& a, int mask, int row) {
  const std::uint64_t* const bits = a.plan.masks + (2 * mask + Keys) * tile_rows + row;
  const std::uint64_t seen[2] = {bits[0] >> (2 * (threadIdx.x & 3)), bits[8] >> (2 * (threadIdx.x & 3))};
#pragma unroll
  for (int i = 0; i < 32; ++i)
    if (!(seen[i % 4 / 2] >> (i / 4 * 8 + i % 2) & 1))
      s[i / 4][i % 4] = -CUDART_INF_F;
}

// The terms of queries: of the lane's two rows, or of its columns of the stage.
struct row_terms {
  float of[2];
  __device__ __forceinline__ float operator()(int, int i) const { return of[i / 2]; }
};
struct column_terms {
  std::uint32_t at;
  float2 now;
  __device__ __forceinline__ float operator()(int j, int i) {
    if (i == 0)
      asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(now.x), "=f"(now.y) : "r"(at + j * 32));
    return i % 2 ? now.y : now.x;
  }
};
template <class Terms>
__device__ __forceinline__ void probabilities(float (&s)[8][4], float scale, Terms lse) {
#pragma unroll
  for (int j = 0; j < 8; ++j)
#pragma unroll
    for (int i = 0; i < 4; ++i)
      s[j][i] = probability(s[j][i], scale, lse(j, i));
}
template <class Terms>
__device__ __forceinline__ void score_gradients(float (&s)[8][4], const float (&dp)[8][4], Terms delta) {
#pragma unroll
  for (int j = 0; j < 8; ++j)
#pragma unroll
    for (int i = 0; i < 4; ++i)
      s[j][i] = score_gradient(s[j][i], dp[j][i], delta(j, i));
}

// Rows of the warpgroup's tile; to: of the lane's first row and column.
template <int N>
__device__ __forceinline__ void store_rows(const float (&x)[N][4], float* to, std::int64_t stride, int row, int n_rows, float scale) {
#pragma unroll
  for (int h = 0; h < 2; ++h)
    if (row + 8 * h < n_rows)
#pragma unroll
      for (int j = 0; j < N; ++j)
        *reinterpret_cast<float2*>(to + 8 * h * stride + 8 * j) =
            make_float2(__fmul_rn(x[j][2 * h], scale), __fmul_rn(x[j][2 * h + 1], scale));
}

template <int D, bool Keys>
__device__ __forceinline__ void walk_tiles(const work<D, Keys>& w) {
  constexpr int n_stages = layout<D>::n_stages, ahead = layout<D>::ahead, stage_step = 2 * layout<D>::tile / 16;
  const gradient_arguments& a = w.a;
  const int group = threadIdx.x / 128, lane = threadIdx.x & 31, row = threadIdx.x % 128 / 32 * 16 + lane / 4;
  const int tile = 2 * w.pair + group;
  const float scale = a.scale * CUDART_L2E_F;
  const std::uint64_t own0 = descriptor(w.at.own(group, 0), 16), own1 = descriptor(w.at.own(group, 1), 16);
  const std::uint64_t other0 = descriptor(w.at.stage(0, 0), 16), other1 = descriptor(w.at.stage(0, 1), 16);
  const std::uint64_t sum0 = descriptor(w.at.stage(0, 0), tile_rows * 128), sum1 = descriptor(w.at.stage(0, 1), tile_rows * 128);
  row_terms lse, delta;
  if constexpr (!Keys) {
    const float* const terms = a.terms_of(w.head, tile) + row;
    lse = {terms[0], terms[8]}, delta = {terms[tile_rows], terms[tile_rows + 8]};
  }
  float x[D / 8][4] = {}, y[Keys ? D / 8 : 1][4] = {}; // dQ; or dK and dV
  std::uint32_t p[4][4] = {}, ds[4][4] = {};
  w.at.own_full().wait(0);
  for (int i = 0; i < w.n; ++i) { // x gains the step before's dS, which is 0 before the first
    const int stage = i % n_stages, before = max(i - 1, 0) % n_stages, mask = w.entries[i / w.n_heads].mask[group];
    float s[8][4], dp[8][4];
    w.at.full(stage).wait(i / n_stages & 1);
    issue_scores<D>(s, own0, other0 + stage * stage_step);
    issue_values(x, ds, sum0 + before * stage_step);
    issue_scores<D>(dp, own1, other1 + stage * stage_step);
    if (threadIdx.x == 0 && i + ahead < w.n)
      w.copy_step(i + ahead);
    __syncwarp();
    wgmma_wait<2>(), keep(s);
    if (mask >= 0)
      hide<Keys>(s, a, mask, row);
    const std::uint32_t terms = w.at.stage_terms(stage) + 8 * (lane & 3);
    if constexpr (Keys) {
      probabilities(s, scale, column_terms{terms});
      pack_probabilities(p, s), issue_values(y, p, sum1 + stage * stage_step);
      wgmma_wait<1>(), keep(ds), keep(dp);
      score_gradients(s, dp, column_terms{terms + tile_rows * 4});
    } else {
      probabilities(s, scale, lse);
      wgmma_wait<0>(), keep(ds), keep(dp);
      score_gradients(s, dp, delta);
    }
    __syncwarp();
    if (i > 0 && lane == 0)
      w.at.empty(before).arrive();
    pack_probabilities(ds, s);
    wgmma_wait<0>(), keep(p);
  }
  issue_values(x, ds, sum0 + max(w.n - 1, 0) % n_stages * stage_step);
  wgmma_wait<0>(), keep(ds), keep(x);
  const int begin = a.plan.tile_begin[tile], n_rows = a.plan.tile_begin[tile + 1] - begin;
  float* const to = a.d_qkv + (begin + row) * a.row + 2 * (lane & 3);
  store_rows(x, to + (Keys ? w.key_column() : w.head * D), a.row, row, n_rows, a.scale);
  if constexpr (Keys)
    keep(y), store_rows(y, to + w.value_column(), a.row, row, n_rows, 1.f);
}

template <int D, bool Keys>
__device__ __forceinline__ void run(const work<D, Keys>& w) {
  if (threadIdx.x == 0) {
    w.copy_own();
    for (int i = 0; i < min(w.n, layout<D>::ahead); ++i)
      w.copy_step(i);
  }
  __syncwarp();
  walk_tiles(w);
}

// The CTAs of keys first, which take longest.
template <int D>
__global__ __launch_bounds__(n_threads, 1) void gradients(const __grid_constant__ gradient_arguments a,
                                                          const __grid_constant__ CUtensorMap qkv,
                                                          const __grid_constant__ CUtensorMap d_out) {
  extern __shared__ __align__(1024) std::uint8_t shared[];
  const layout<D> at{std::uint32_t(__cvta_generic_to_shared(shared))};
  at.init();
  const int of_keys = a.plan.n_pairs * a.shape.n_kv_heads, i = int(blockIdx.x) - of_keys;
  if (i < 0)
    run(work<D, true>(a, qkv, d_out, at, blockIdx.x / a.shape.n_kv_heads, blockIdx.x % a.shape.n_kv_heads));
  else
    run(work<D, false>(a, qkv, d_out, at, i / a.shape.n_heads, i % a.shape.n_heads));
}

template <int D>
void launch_gradients(const gradient_arguments& a, stream where) {
  const CUtensorMap qkv = tensor_map(a.qkv, a.plan.n_rows, a.row, tile_rows);
  const CUtensorMap d_out = tensor_map(a.d_out, a.plan.n_rows, std::int64_t(a.shape.n_heads) * D, tile_rows);
  launch(gradients<D>, unsigned(a.plan.n_pairs * (a.shape.n_kv_heads + a.shape.n_heads)), n_threads, layout<D>::bytes, where,
         "attention backward", a, qkv, d_out);
}

} // namespace

void gradients_wgmma(const gradient_arguments& a, stream where) {
  a.shape.head_dim == 128 ? launch_gradients<128>(a, where) : launch_gradients<64>(a, where);
}

} // namespace troupe::cuda::attention
