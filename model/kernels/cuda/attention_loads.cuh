#pragma once
#include "model/kernels/cuda/attention_arithmetic.cuh"
#include "model/kernels/cuda/attention_kernels.hpp"
#include "model/kernels/cuda/check.cuh"

// From global to shared memory; none of this decides bits.
namespace troupe::cuda::attention {

__device__ inline float widen(float v) { return v; }
__device__ inline float widen(bf16 v) { return __bfloat162float(v); }
__device__ inline void store(float* to, float v) { *to = v; }
__device__ inline void store(bf16* to, float v) { *to = __float2bfloat16_rn(v); }

// Sum over a warp, the same in every lane.
__device__ inline float warp_sum(float v) {
  for (int offset = 16; offset > 0; offset /= 2)
    v = __fadd_rn(v, __shfl_xor_sync(~0u, v, offset));
  return v;
}

// Keys or values of one kv head in the cache: 32 consecutive tokens a page.
template <int D>
struct pages {
  const bf16* base; // of the head, in block 0
  const int* blocks;
  std::int64_t stride; // elements of a block
  int len;
  __device__ __forceinline__ pages(const arguments& a, int segment, int kv_head, bool values)
      : base(static_cast<const bf16*>(a.cache) + (values * a.shape.n_kv_heads + kv_head) * page_tokens * D),
        blocks(a.plan.blocks + std::int64_t(segment) * a.plan.max_blocks), stride(std::int64_t(2) * a.shape.n_kv_heads * page_tokens * D),
        len(a.plan.n_keys[segment]) {}
  // Page that holds keys from 32 * i on, or the first page where there are no such keys.
  __device__ __forceinline__ int find(int i) const { return blocks[i * page_tokens < len ? i : 0]; }
};

// 32 rows of a tile of R rows by NT threads; rows of the page from n on become zero. dst: of the first of the 32 rows.
template <int D, int R, int NT>
__device__ __forceinline__ void load_page(std::uint32_t dst, const bf16* src, int n, int tid) {
  constexpr int chunks = D / 8, step = NT / chunks; // chunks a row, rows a turn
  static_assert(NT % chunks == 0 && (page_tokens % step == 0 || step > page_tokens));
  const int r0 = tid / chunks, ch = tid % chunks;
  if (step > page_tokens && r0 >= page_tokens)
    return;
  src += r0 * D + ch * 8;
  const std::uint32_t first = tile_offset<R>(r0, ch);
  const bool all = n >= page_tokens;
#pragma unroll
  for (int r = 0; r < page_tokens; r += step) {
    const std::uint32_t to = dst + (step % 8 ? tile_offset<R>(r0 + r, ch) : first + r * 128);
    copy_16(to, src + r * D, all || r0 + r < n);
  }
}

// R rows of queries into a tile: row r comes from q + r * stride; rows from n on are zero.
template <int D, int R>
__device__ __forceinline__ void load_queries(std::uint32_t tile, const bf16* q, std::int64_t stride, int n, int tid, int n_threads) {
  for (int i = tid; i < R * (D / 8); i += n_threads) {
    const int r = i / (D / 8), ch = i % (D / 8);
    copy_16(tile + tile_offset<R>(r, ch), q + (r < n ? r : 0) * stride + ch * 8, r < n);
  }
  copy_commit();
}

// NT threads (one warp, or the CTA) stream K(b0) V(b0) K(b0+1) ... of blocks b0 .. b1-1 through Stages stages of KS keys.
template <int D, int KS, int Stages, int NT>
struct ring {
  static constexpr int parts = block_keys / KS, stage_bytes = KS * D * 2;
  pages<D> from;
  std::int64_t to_values;
  std::uint32_t base, put = 0, get = 0;
  int tid, b, b1, part = 0, page[2] = {0, 0};
  __device__ __forceinline__ ring(const arguments& a, std::uint32_t base, int segment, int kv_head, int tid, int b0, int b1)
      : from(a, segment, kv_head, false), to_values(std::int64_t(a.shape.n_kv_heads) * page_tokens * D), base(base), tid(tid), b(b0),
        b1(b1) {
    find();
    for (int i = 0; i < Stages - 1; ++i)
      issue();
  }
  __device__ __forceinline__ void find() { // the pages of block b; read one block ahead of their use
    if (b < b1)
      page[0] = from.find(2 * b), page[1] = from.find(2 * b + 1);
  }
  __device__ __forceinline__ void issue() {
    if (b < b1) {
      const bf16* const src = from.base + (part < parts ? 0 : to_values);
      const int key = (part % parts) * KS;
      const std::uint32_t dst = base + put * stage_bytes;
#pragma unroll
      for (int k = 0; k < KS; k += page_tokens) {
        const int p = KS == block_keys ? k / page_tokens : part % parts;
        load_page<D, KS, NT>(dst + k * 128, src + (p ? page[1] : page[0]) * from.stride, from.len - b * block_keys - key - k, tid);
      }
      if (++part == 2 * parts)
        part = 0, ++b, find();
    }
    copy_commit();
    put = put + 1 == Stages ? 0 : put + 1;
  }
  __device__ __forceinline__ std::uint32_t next() { // waits for the oldest stage, refills the one before it
    copy_wait<Stages - 2>();
    if constexpr (NT == 32)
      __syncwarp();
    else
      __syncthreads();
    issue();
    const std::uint32_t at = base + get * stage_bytes;
    get = get + 1 == Stages ? 0 : get + 1;
    return at;
  }
};

// Blocks b0 .. b1-1 for one warp; end(state, split) is called after the last block of each split. The first barrier is for the queries.
// QR: rows of the queries' tile. The warp's rows are at positions pos_min .. pos_max, its lanes' at pos.
template <int D, int QR, int KS, int Stages, int NT, class End>
__device__ __forceinline__ void walk(const arguments& a, std::uint32_t q_s, std::uint32_t ring_s, int segment, int kv_head, int tid, int b0,
                                     int b1, const int (&pos)[2], int pos_min, int pos_max, End end) {
  const int lane = threadIdx.x & 31;
  ring<D, KS, Stages, NT> tiles(a, ring_s, segment, kv_head, tid, b0, b1);
  copy_wait<Stages - 1>();
  __syncthreads();
  state<D> st;
  st.reset();
  for (int b = b0; b < b1; ++b) {
    const bool live = b * block_keys <= pos_max; // some row of this warp sees a key of the block
    float s[8][4], alpha[2];
    std::uint32_t p[4][4];
#pragma unroll
    for (int i = 0; i < block_keys / KS; ++i) {
      const std::uint32_t k_s = tiles.next();
      if (live)
        scores<D, QR, KS>(s, i * (KS / 8), q_s, k_s, lane);
    }
    if (live) {
      softmax_block(st, s, alpha, a.scale * CUDART_L2E_F, b * block_keys + block_keys - 1 > pos_min, b * block_keys + 2 * (lane & 3), pos);
      pack_probabilities(p, s);
      rescale(st, alpha);
    }
#pragma unroll
    for (int i = 0; i < block_keys / KS; ++i) {
      const std::uint32_t v_s = tiles.next();
      if (live)
        add_values<D, KS>(st, p, i * (KS / 16), v_s, lane);
    }
    if (b + 1 == b1 || (b + 1) % blocks_per_split == 0)
      end(st, b / blocks_per_split), st.reset();
  }
}

// Launches a kernel with `bytes` of shared memory of its own.
template <class... Parameters, class... Values>
void launch(void (*kernel)(Parameters...), dim3 grid, int threads, int bytes, stream where, const char* what, Values... values) {
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes), what);
  kernel<<<grid, threads, bytes, where>>>(values...);
  check(cudaGetLastError(), what);
}

} // namespace troupe::cuda::attention
