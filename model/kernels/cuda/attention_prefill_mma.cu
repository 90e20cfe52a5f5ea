#include "model/kernels/cuda/attention_loads.cuh"

namespace troupe::cuda::attention {
namespace {

// Prefill with mma.sync: a CTA owns Warps * 16 query rows of one head.
template <int D, int Warps, int Stages>
__global__ __launch_bounds__(Warps * 32, 2) void prefill_tiles(const __grid_constant__ arguments a) {
  constexpr int rows_per_cta = Warps * 16;
  extern __shared__ __align__(1024) std::uint8_t shared[];
  const int head = blockIdx.x, segment = a.plan.n_single + blockIdx.y, wr = threadIdx.x / 32 * 16, lane = threadIdx.x & 31;
  const int n = a.plan.n_rows[segment], len = a.plan.n_keys[segment];
  const int tile = (n + rows_per_cta - 1) / rows_per_cta - 1 - int(blockIdx.z); // long rows first
  if (tile < 0 || len == 0)
    return;
  const int r0 = tile * rows_per_cta, rows = min(rows_per_cta, n - r0), first = len - n + r0 + wr;
  const std::int64_t row = a.plan.row_begin[segment] + r0, row_stride = a.row, out_stride = std::int64_t(a.shape.n_heads) * D;
  const std::uint32_t q_s = __cvta_generic_to_shared(shared);
  load_queries<D, rows_per_cta>(q_s, static_cast<const bf16*>(a.qkv) + row * row_stride + head * D, row_stride, rows, threadIdx.x,
                                Warps * 32);
  const int pos[2] = {first + lane / 4, first + lane / 4 + 8};
  const int n_blocks = (len - n + r0 + rows - 1) / block_keys + 1, kv_head = head / (a.shape.n_heads / a.shape.n_kv_heads);
  merged<D> out;
  walk<D, rows_per_cta, block_keys, Stages, Warps * 32>(a, q_s + wr * 128, q_s + rows_per_cta * D * 2, segment, kv_head, threadIdx.x, 0,
                                                        n_blocks, pos, first, first + 15, [&](const state<D>& st, int) {
                                                          out.factors(st, a.scale * CUDART_L2E_F);
                                                          out.values(st);
                                                        });
  float* const lse = a.lse ? a.lse + std::int64_t(head) * a.plan.n_tokens + row + wr : nullptr;
  out.store(static_cast<bf16*>(a.out) + (row + wr) * out_stride + head * D, out_stride, lse, a.scale, rows - wr, lane);
}

template <int D>
void launch_prefill(const arguments& a, stream where) {
  constexpr int warps = 4, stages = 4, rows = warps * 16;
  const dim3 grid(unsigned(a.shape.n_heads), unsigned(a.plan.n_segments - a.plan.n_single), unsigned(a.plan.max_rows + rows - 1) / rows);
  launch(prefill_tiles<D, warps, stages>, grid, warps * 32, rows * D * 2 + stages * block_keys * D * 2, where, "prefill attention", a);
}

} // namespace

void prefill_mma(const arguments& a, stream where) {
  a.shape.head_dim == 128 ? launch_prefill<128>(a, where) : launch_prefill<64>(a, where);
}

} // namespace troupe::cuda::attention
