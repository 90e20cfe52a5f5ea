#pragma once
#include "model/kernels/cuda/attention_arithmetic.cuh"
#include "model/kernels/cuda/few_rows_common.cuh"
#include "model/kernels/cuda/rms_norm.cuh"
#include <algorithm>

// Up to 16 rows of x: a warp has 16 rows of w, mma.sync with w as A and x as B.
namespace troupe::cuda::few_rows {

inline constexpr int pieces = 4; // of k, a stage's
inline constexpr int max_warps = 8, norm_warps = 8;

/// A block takes `warps` tiles of 16 rows of w at a time (a round), through all of k by stages of the ring, then every gridDim-th such.
struct layout {
  int n, m, k, warps, stages;
  int weight_bytes, x_bytes, stage_bytes; // of a stage: w, x, and both
  int round_stages, rounds;               // stages of a round; rounds of all blocks
  __device__ int own_rounds() const { return (rounds - int(blockIdx.x) + int(gridDim.x) - 1) / int(gridDim.x); }
};

template <class Output>
struct arguments {
  CUtensorMap w, x; // as [k / 64][rows][64]: a stage holds boxes of that shape
  layout l;
  const bf16 *in, *norm; // x, where it is normalised first
  float eps;
  Output out;
};

// A stage of the block's share: its round's first tile of w, and its number in the round.
struct place {
  int tile, stage = 0;
  __device__ explicit place(const layout& l) : tile(int(blockIdx.x) * l.warps) {}
  __device__ void next(const layout& l) {
    if (++stage == l.round_stages)
      stage = 0, tile += int(gridDim.x) * l.warps;
  }
};

// The thread that requests everything.
template <bool Norm, class Output>
struct producer {
  const arguments<Output>& a;
  __device__ void load(const ring& to, const place& p) const {
    const layout& l = a.l;
    barrier_expect(to.full_barrier(), l.weight_bytes);
    const int row = a.out.first(p.tile);
#pragma unroll
    for (int b = 0; b < Output::boxes; ++b)
      tile_copy(to.data + to.stage * l.stage_bytes + b * (l.weight_bytes / Output::boxes), &a.w, 0, row + b * a.out.apart(),
                p.stage * pieces, to.full_barrier());
  }
  __device__ void load_x(const ring& to, const place& p) const {
    if constexpr (!Norm) {
      barrier_expect(to.full_barrier(), a.l.x_bytes);
      tile_copy(to.data + to.stage * a.l.stage_bytes + a.l.weight_bytes, &a.x, 0, 0, p.stage * pieces, to.full_barrier());
    }
  }
  __device__ void run(const ring& begin) const {
    const layout& l = a.l;
    const int total = l.own_rounds() * l.round_stages, first = min(l.stages, total);
    prefetch_map(&a.w), prefetch_map(&a.x);
    let_successor_start();
    place at(l), x_at(l);
    ring to = begin;
    for (int i = 0; i < first; ++i, at.next(l), to.next(l.stages))
      load(to, at);
    wait_for_predecessors();
    to = begin;
    for (int i = 0; i < first; ++i, x_at.next(l), to.next(l.stages))
      load_x(to, x_at);
    to = begin;
    for (int i = first; i < total; ++i, at.next(l), to.next(l.stages)) {
      barrier_wait(to.empty_barrier(), to.parity);
      load(to, at);
      load_x(to, at);
    }
  }
};

// The operands of a piece's steps for NT tiles of eight tokens.
template <int NT>
struct fragments {
  std::uint32_t w[piece_steps][4], x[piece_steps][2 * NT];
};

// A warp with a tile of w.
template <int NT, bool Norm, class Output>
struct consumer {
  const layout& l;
  ring at;
  std::uint32_t w_offset, w_piece;   // the lane's row of w in a stage, and from piece to piece
  std::uint32_t x_offset, x_row[NT]; // of x: in a stage (or of all of x), and from the first row to that of a tile of eight
  int flip;                          // 16-byte chunk c of a row of 128 bytes lies at c ^ (row % 8)
  __device__ consumer(const layout& l, const ring& at, std::uint32_t all_x, int warp, int lane) : l(l), at(at), flip(lane % 8) {
    constexpr int rows = tile_rows / Output::boxes;
    const int group = lane / 8 % 2;
    w_offset = (warp * rows + lane % 8) * piece_bytes + group * (Output::boxes == 1 ? 8 * piece_bytes : l.weight_bytes / 2);
    w_piece = l.warps * rows * piece_bytes;
    x_offset = Norm ? all_x : l.weight_bytes;
#pragma unroll
    for (int t = 0; t < NT; ++t) {
      const int token = t * 8 + lane % 8; // of those that do not exist any value will do: they meet no other
      x_row[t] = Norm ? 0 : token * piece_bytes;
    }
  }
  __device__ std::uint32_t chunk(int c) const { return std::uint32_t(c ^ flip) << 4; }
  // Step s of piece p of the stage, piece i of the round.
  __device__ void load(fragments<NT>& f, int s, int p, int i, int lane) const {
    const std::uint32_t stage = at.data + at.stage * l.stage_bytes;
    attention::load_matrix(f.w[s], stage + w_offset + p * w_piece + chunk(2 * s + lane / 16));
    const std::uint32_t x = Norm ? x_offset + i * piece_bytes : stage + x_offset + p * (NT * 8 * piece_bytes);
    const auto place = [&](int c) { return Norm ? std::uint32_t(c) << 4 : chunk(c); };
    std::uint32_t r[4];
    if constexpr (NT == 1) {
      if (s % 2 != 0)
        return;
      attention::load_matrix(r, x + x_row[0] + place(2 * s + lane / 8)); // of two steps
      f.x[s][0] = r[0], f.x[s][1] = r[1], f.x[s + 1][0] = r[2], f.x[s + 1][1] = r[3];
    } else {
#pragma unroll
      for (int t = 0; t < NT; t += 2) {
        attention::load_matrix(r, x + (lane < 16 ? x_row[t] : x_row[t + 1]) + place(2 * s + lane / 8 % 2));
        f.x[s][2 * t] = r[0], f.x[s][2 * t + 1] = r[1], f.x[s][2 * t + 2] = r[2], f.x[s][2 * t + 3] = r[3];
      }
    }
  }
  __device__ void release(int lane) {
    __syncwarp();
    if (lane == 0)
      barrier_arrive(at.empty_barrier());
    at.next(l.stages);
  }
  // sum += all of k. The fragments of a piece are loaded between the steps of the one before.
  __device__ void round(float (&sum)[NT][4], int lane) {
    const int n_pieces = l.k / piece_columns;
    fragments<NT> f[2];
    barrier_wait(at.full_barrier(), at.parity);
#pragma unroll
    for (int s = 0; s < piece_steps; ++s)
      load(f[0], s, 0, 0, lane);
    for (int first = 0; first < n_pieces; first += pieces)
#pragma unroll
      for (int p = 0; p < pieces; ++p) {
        const int i = first + p;
        if (i >= n_pieces)
          break;
        const bool last = i + 1 == n_pieces;
        if (p == pieces - 1 || last) {
          release(lane);
          if (!last)
            barrier_wait(at.full_barrier(), at.parity);
        }
#pragma unroll
        for (int s = 0; s < piece_steps; ++s) {
#pragma unroll
          for (int t = 0; t < NT; ++t)
            attention::mma(sum[t], f[p % 2].w[s], f[p % 2].x[s][2 * t], f[p % 2].x[s][2 * t + 1]);
          load(f[1 - p % 2], s, (p + 1) % pieces, i + 1, lane); // after the last: of no use
        }
      }
  }
  __device__ void run(const Output& out, int warp, int lane) {
    for (int number = int(blockIdx.x); number < l.rounds; number += int(gridDim.x)) {
      const int tile = number * l.warps + warp, row = out.first(tile) + lane / 4;
      const auto token = [&](int t, int j) { return t * 8 + lane % 4 * 2 + j; };
      const bool exists = tile < l.m / tile_rows;
      typename Output::before before[NT][2]; // what its results meet, while there is time
#pragma unroll
      for (int t = 0; t < NT; ++t)
#pragma unroll
        for (int j = 0; j < 2; ++j)
          if (exists && token(t, j) < l.n)
            before[t][j] = out.load(row, token(t, j));
      float sum[NT][4] = {};
      round(sum, lane);
#pragma unroll
      for (int t = 0; t < NT; ++t)
#pragma unroll
        for (int j = 0; j < 2; ++j)
          if (exists && token(t, j) < l.n)
            out.store(row, token(t, j), sum[t][j], sum[t][2 + j], before[t][j]);
    }
  }
};

template <int NT, bool Norm, class Output>
__global__ void __launch_bounds__((max_warps + 1) * 32, 2) stream_rows(const __grid_constant__ arguments<Output> a) {
#if __CUDA_ARCH__ == 900
  extern __shared__ __align__(1024) std::uint8_t shared[];
  __shared__ __align__(8) std::uint64_t full[max_stages], empty[max_stages];
  const layout& l = a.l;
  const int warp = int(threadIdx.x / 32), lane = int(threadIdx.x % 32), producer_warp = int(blockDim.x / 32) - 1;
  const auto address = [](const void* p) { return std::uint32_t(__cvta_generic_to_shared(p)); };
  const ring at{address(shared), address(full), address(empty)};
  std::uint8_t* const all_x = shared + l.stages * l.stage_bytes;
  if (warp == producer_warp && lane < l.stages) {
    barrier_init(at.full + lane * 8, Norm ? 1 : 2);
    barrier_init(at.empty + lane * 8, l.warps);
    barriers_begun();
  }
  __syncthreads();
  if (warp == producer_warp) {
    if (lane == 0)
      producer<Norm, Output>{a}.run(at);
    return;
  }
  if constexpr (Norm)
    normalise_row<norm_warps>(a.in, a.norm, a.eps, l.k, all_x);
  else
    wait_for_predecessors();
  if (warp < l.warps)
    consumer<NT, Norm, Output>(l, at, address(all_x), warp, lane).run(a.out, warp, lane);
#endif
}

// tokens: rows of x in shared memory.
inline layout lay_out(const operands& a, int tokens, const streaming& how) {
  layout l{};
  l.n = int(a.n), l.m = int(a.m), l.k = int(a.k);
  l.warps = how.rows / tile_rows;
  l.weight_bytes = l.warps * tile_rows * pieces * piece_bytes;
  l.x_bytes = a.norm ? 0 : tokens * pieces * piece_bytes;
  l.stage_bytes = l.weight_bytes + l.x_bytes;
  l.round_stages = (l.k / piece_columns + pieces - 1) / pieces;
  l.rounds = (l.m / tile_rows + l.warps - 1) / l.warps;
  l.stages = std::clamp(how.ring_kib * 1024 / l.stage_bytes, 2, max_stages);
  return l;
}

template <int NT, bool Norm, class Output>
void launch_kernel(const operands& a, const Output& out, const streaming& how, stream where) {
  const layout l = lay_out(a, NT * 8, how);
  const std::size_t shared_bytes = std::size_t(l.stages) * l.stage_bytes + (Norm ? 2 * l.k + piece_bytes : 0);
  const auto kernel = stream_rows<NT, Norm, Output>;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, max_shared_bytes), "a product of few rows");
  const arguments<Output> args{map_of(a.w, a.m, a.k, l.warps * tile_rows / Output::boxes, pieces),
                               map_of(a.x, a.n, a.k, NT * 8, pieces),
                               l,
                               static_cast<const bf16*>(a.x),
                               static_cast<const bf16*>(a.norm),
                               a.eps,
                               out};
  const unsigned threads = unsigned((Norm ? norm_warps : l.warps) + 1) * 32;
  launch_early("a product of few rows", kernel, unsigned(std::min(l.rounds, multiprocessors())), threads, shared_bytes, where, args);
}

} // namespace troupe::cuda::few_rows
