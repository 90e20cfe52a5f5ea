#pragma once
#include "model/kernels/isa.hpp"
#include <bit>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <type_traits>

namespace troupe {

class thread_pool;

namespace kernels {

using bf16 = std::uint16_t;

/// A weight [n, k] laid out for the processor: panels of 32 columns (outputs), each a linear stream over k in steps of 32.
/// bf16: two tiles [k/2][16 columns][2]; float: [k][32 columns]; zero padded. Gated: even tiles gate, odd tiles up; n counts outputs.
template <class T>
class packed_weight {
public:
  packed_weight() = default;
  packed_weight(std::int64_t n, std::int64_t k, bool gated = false); // zeros
  std::int64_t n() const { return n_; }
  std::int64_t k() const { return k_; }
  std::int64_t k_steps() const { return (k_ + 31) / 32; }
  std::int64_t panels() const { return gated_ ? (n_ + 15) / 16 : (n_ + 31) / 32; }
  bool gated() const { return gated_; }
  std::size_t bytes() const { return std::size_t(panels() * k_steps() * 1024) * sizeof(T); }
  const T* data() const { return data_.get(); }
  /// Tile c (16 columns) of k step b; a tile's rows are 64 bytes (bf16) or 128 bytes (float) apart.
  T* tile(std::int64_t c, std::int64_t b) const {
    return data_.get() + ((c / 2) * k_steps() + b) * 1024 + (c % 2) * (sizeof(T) == 2 ? 512 : 16);
  }
  /// Gated weights without the gating: 2 n outputs, gate and up in turn, 16 each. Shares the memory.
  packed_weight ungated() const;

private:
  std::int64_t n_ = 0, k_ = 0;
  bool gated_ = false;
  std::shared_ptr<T[]> data_;
};

/// Puts W [rows, k] (row stride ldw) into columns col .. col+rows-1 (col a multiple of 16). Gated: part 0 gate, part 1 up.
template <class T>
void pack(thread_pool& pool, packed_weight<T>& P, const T* W, std::int64_t ldw, std::int64_t rows, std::int64_t col = 0, int part = 0);

/// Packs S [P.k, P.n] (row stride lds) so that its ROWS are what is summed over: W for dX = dY W, X for dW = dY^T X.
/// row0: S's first row goes to k = row0 (a multiple of 32); rows: how many.
template <class T>
void pack_rows(thread_pool& pool, packed_weight<T>& P, const T* S, std::int64_t lds, std::int64_t row0, std::int64_t rows);

/// What is done to a finished sum: + bias (float32, before rounding), rounding to TO, gating, + residual (rounded again).
template <class TO>
struct gemm_epilogue {
  const float* bias = nullptr;
  const TO* residual = nullptr; // may be Y itself
  std::int64_t ldr = 0;
};

/// Y [M, W.n] = X [M, W.k] W^T. T, TO: bf16 or float. A row's bits depend on its row of X, on W and on the epilogue alone:
/// not on M, its place, threads or instruction set. Sums: docs/numerics.md ("block32" for bf16, one chain for float32).
template <class T, class TO>
void gemm(thread_pool& pool, isa which, const T* X, std::int64_t ldx, std::int64_t M, const packed_weight<T>& W, TO* Y, std::int64_t ldy,
          std::type_identity_t<gemm_epilogue<TO>> e = {});

/// The inner kernel, for attention. A: `rows` packed rows (see `micro`), B: nk steps of a panel, C: [rows][32] sums, continued unless
/// `first`.
using micro_kernel = void (*)(int rows, const char* A, std::int64_t a2, const char* B, std::int64_t nk, float* C, bool first,
                              const char* pf, std::int64_t pfs);
/// How a path wants its left operand: at most max_rows a call; dwords: 4-byte words a row and 32 k (16: bf16 as it is, [row][32];
/// 32: floats, [k][row]).
struct micro {
  int max_rows, group, dwords;
};
template <class T>
micro micro_plan(isa which);
template <class T>
micro_kernel micro_for(isa which, int rows);
/// After the last AMX kernel of a task; harmless elsewhere.
void release_tiles();

inline float widen(float x) { return x; }
inline float widen(bf16 b) { return std::bit_cast<float>(std::uint32_t(b) << 16); }
/// Round to nearest even; NaN stays NaN.
inline bf16 narrow(float x) {
  const auto u = std::bit_cast<std::uint32_t>(x);
  return x != x ? bf16(0x7fc0) : bf16((u + ((u >> 16) & 1u) + 0x7fffu) >> 16);
}

} // namespace kernels
} // namespace troupe
