#include "model/kernels/cuda/attention_loads.cuh"
#include "model/kernels/cuda/attention_wgmma.cuh"

// Prefill with Hopper's wgmma, whose bits are those of mma.sync m16n8k16 (attention_test.cpp holds it).
namespace troupe::cuda::attention {
namespace {

constexpr int tile_rows = 64, n_threads = 128;

// What a CTA does: 64 query rows of one head.
struct work {
  int head, kv_head, segment, n_rows, len, r0, rows, first, n_blocks; // first: position of the first row
  std::int64_t row;                                                   // of the pass
  // False where there is nothing to do.
  __device__ __forceinline__ bool find(const arguments& a) {
    head = blockIdx.x, segment = a.plan.n_single + blockIdx.y, kv_head = head / (a.shape.n_heads / a.shape.n_kv_heads);
    n_rows = a.plan.n_rows[segment], len = a.plan.n_keys[segment];
    const int tile = (n_rows + tile_rows - 1) / tile_rows - 1 - int(blockIdx.z); // long rows first
    r0 = tile * tile_rows, rows = min(tile_rows, n_rows - r0), first = len - n_rows + r0;
    n_blocks = (first + rows - 1) / block_keys + 1, row = a.plan.row_begin[segment] + r0;
    return tile >= 0 && len > 0;
  }
};

// Stages blocks of keys and of values each in flight; group g of copies is V(g-1), K(g).
template <int D, int Stages>
struct block_loads {
  static constexpr int tile = block_keys * D * 2;
  pages<D> from;
  std::int64_t to_values;
  std::uint32_t k_s, v_s;
  int n_blocks, page[2];
  __device__ __forceinline__ block_loads(const arguments& a, const work& w, std::uint32_t k_s)
      : from(a, w.segment, w.kv_head, false), to_values(std::int64_t(a.shape.n_kv_heads) * page_tokens * D), k_s(k_s),
        v_s(k_s + Stages * tile), n_blocks(w.n_blocks), page{0, 0} {}
  __device__ __forceinline__ void load(const bf16* src, std::uint32_t dst, int b) {
#pragma unroll
    for (int i = 0; i < 2; ++i)
      load_page<D, block_keys, n_threads>(dst + b % Stages * tile + i * page_tokens * 128, src + page[i] * from.stride,
                                          from.len - b * block_keys - i * page_tokens, threadIdx.x);
  }
  // Groups ascend by one from 0.
  __device__ __forceinline__ void issue(int g) {
    if (g > 0 && g <= n_blocks)
      load(from.base + to_values, v_s, g - 1);
    if (g < n_blocks) {
      page[0] = from.find(2 * g), page[1] = from.find(2 * g + 1);
      load(from.base, k_s, g);
    }
    copy_commit();
  }
};

__device__ __forceinline__ void arrived() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
  __syncthreads();
}

// A CTA (one warpgroup) owns 64 query rows of one head. P V of block b-1 runs while the softmax of block b works;
// CTAs that share a multiprocessor fill each other's gaps.
template <int D, int Stages, int Ctas>
__global__ __launch_bounds__(n_threads, Ctas) void prefill_warpgroup(const __grid_constant__ arguments a) {
  extern __shared__ __align__(1024) std::uint8_t shared[];
  work w;
  if (!w.find(a))
    return;
  const int lane = threadIdx.x & 31, wr = threadIdx.x / 32 * 16;
  const std::uint32_t q_s = __cvta_generic_to_shared(shared);
  block_loads<D, Stages> loads(a, w, q_s + tile_rows * D * 2);
  const int pos[2] = {w.first + wr + lane / 4, w.first + wr + lane / 4 + 8};
  const float c = a.scale * CUDART_L2E_F;
  constexpr int tile = block_keys * D * 2;
  const std::uint64_t qd = descriptor(q_s, 16), kd = descriptor(loads.k_s, 16), vd = descriptor(loads.v_s, block_keys * 128);
  state<D> st;
  st.reset();
  merged<D> out;
  float alpha[2];
  std::uint32_t p[4][4];
  const auto softmax = [&](float(&s)[8][4], int b) {
    softmax_block(st, s, alpha, c, b * block_keys + block_keys - 1 > w.first, b * block_keys + 2 * (lane & 3), pos);
  };
  load_queries<D, tile_rows>(q_s, static_cast<const bf16*>(a.qkv) + w.row * a.row + w.head * D, a.row, w.rows, threadIdx.x, n_threads);
  for (int g = 0; g < Stages; ++g)
    loads.issue(g);
  copy_wait<Stages - 1>(), arrived();
  {
    float s[8][4];
    issue_scores<D>(s, qd, kd);
    wgmma_wait<0>(), keep(s);
    softmax(s, 0), pack_probabilities(p, s);
  }
  for (int b = 1; b < w.n_blocks; ++b) {
    float s[8][4];
    copy_wait<Stages - 2>(), arrived(); // K(b), V(b-1)
    issue_scores<D>(s, qd, kd + b % Stages * (tile / 16)), issue_values(st.o, p, vd + (b - 1) % Stages * (tile / 16));
    loads.issue(b + Stages - 1);
    wgmma_wait<1>(), keep(s);
    const bool fresh = b % blocks_per_split == 0;
    if (fresh)
      out.factors(st, c), st.m[0] = st.m[1] = -CUDART_INF_F, st.l[0] = st.l[1] = 0.f;
    softmax(s, b);
    wgmma_wait<0>(), keep(st.o);
    if (fresh)
      out.values(st), alpha[0] = alpha[1] = 0.f; // O = 0, as after reset
    pack_probabilities(p, s), rescale(st, alpha);
  }
  copy_wait<Stages - 2>(), arrived();
  issue_values(st.o, p, vd + (w.n_blocks - 1) % Stages * (tile / 16));
  wgmma_wait<0>(), keep(st.o);
  out.factors(st, c), out.values(st);
  const std::int64_t out_stride = std::int64_t(a.shape.n_heads) * D;
  float* const lse = a.lse ? a.lse + std::int64_t(w.head) * a.plan.n_tokens + w.row + wr : nullptr;
  out.store(static_cast<bf16*>(a.out) + (w.row + wr) * out_stride + w.head * D, out_stride, lse, a.scale, w.rows - wr, lane);
}

template <int D>
void launch_prefill(const arguments& a, stream where) {
  constexpr int stages = D == 128 ? 2 : 3, ctas = D == 128 ? 2 : 4;
  const dim3 grid(unsigned(a.shape.n_heads), unsigned(a.plan.n_segments - a.plan.n_single),
                  unsigned(a.plan.max_rows + tile_rows - 1) / tile_rows);
  launch(prefill_warpgroup<D, stages, ctas>, grid, n_threads, tile_rows * D * 2 + 2 * stages * block_keys * D * 2, where,
         "prefill attention", a);
}

} // namespace

void prefill_wgmma(const arguments& a, stream where) {
  a.shape.head_dim == 128 ? launch_prefill<128>(a, where) : launch_prefill<64>(a, where);
}

} // namespace troupe::cuda::attention
