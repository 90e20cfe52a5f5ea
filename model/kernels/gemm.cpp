// Row-invariant GEMM. The bits of an output element depend on its row of X, its row of W, k and the order (docs/numerics.md).
#include "model/kernels/gemm.hpp"
#include "core/error.hpp"
#include "model/kernels/amx.hpp"
#include "model/kernels/thread_pool.hpp"
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <immintrin.h>
#include <new>
#include <sys/mman.h>
#include <unistd.h>
#include <utility>
#include <vector>

namespace troupe::kernels {

#define RG_BF16_UNIT_TOO
#define RG_SOURCE "model/kernels/gemm.inl"
#include "model/kernels/per_isa.inl"

namespace {

// ---- AMX: tiles 0-3 = C (two row tiles x two column tiles), 4-5 = W, 6-7 = X. Row tiles have exactly the rows there are. ----
thread_local int tile_rows = 0; // rows configured in this thread, 0 = none

void configure_tiles(int rows) {
  if (tile_rows == rows)
    return;
  tile_configuration c;
  const int r0 = std::min(rows, 16), r1 = std::max(rows - 16, 1);
  const int r[8] = {r0, r0, r1, r1, 16, 16, r0, r1};
  for (int i = 0; i < 8; i++) {
    c.bytes[i] = 64;
    c.rows[i] = std::uint8_t(r[i]);
  }
  load_tile_configuration(c);
  tile_rows = rows;
}

inline void prefetch_lines(const char* p, std::int64_t bytes) {
  for (std::int64_t o = 0; o < bytes; o += 64)
    _mm_prefetch(p + o, _MM_HINT_T0);
}

template <int MT>
void amx_rows(int rows, const char* A, std::int64_t a2, const char* B, std::int64_t nk, float* C, bool first, const char* pf,
              std::int64_t pfs) {
  configure_tiles(rows);
  if (first) {
    TILE_ZERO(0);
    TILE_ZERO(1);
    if constexpr (MT == 2) {
      TILE_ZERO(2);
      TILE_ZERO(3);
    }
  } else {
    TILE_LOAD(0, C, 128);
    TILE_LOAD(1, C + 16, 128);
    if constexpr (MT == 2) {
      TILE_LOAD(2, C + 512, 128);
      TILE_LOAD(3, C + 528, 128);
    }
  }
  const char* A2 = A + a2;
  const std::int64_t s1 = 64 * (MT == 2 ? 16 : rows), s2 = 64 * (rows - 16);
  for (; nk; nk--, B += 2048, A += s1, A2 += s2, pf += pfs) {
    // A tile load that misses the L1 cache holds up those behind it, so with two row tiles the next step's lines are asked for
    // between this step's instructions: a quarter to a third faster. One row tile waits for memory instead.
    if constexpr (MT == 2)
      prefetch_lines(B + 2048, 1024);
    TILE_LOAD(4, B, 64);
    TILE_LOAD(6, A, 64);
    TILE_DP(0, 6, 4);
    if constexpr (MT == 2)
      prefetch_lines(A + s1, s1);
    TILE_LOAD(5, B + 1024, 64);
    TILE_DP(1, 6, 5);
    if constexpr (MT == 2) {
      prefetch_lines(A2 + s2, s2);
      TILE_LOAD(7, A2, 64);
      TILE_DP(2, 7, 4);
      prefetch_lines(B + 3072, 1024);
      TILE_DP(3, 7, 5);
    }
    for (std::int64_t o = 0; o < pfs; o += 64)
      _mm_prefetch(pf + o, _MM_HINT_T1);
  }
  TILE_STORE(0, C, 128);
  TILE_STORE(1, C + 16, 128);
  if constexpr (MT == 2) {
    TILE_STORE(2, C + 512, 128);
    TILE_STORE(3, C + 528, 128);
  }
}

template <template <int> class F, int... I>
micro_kernel pick(int rows, std::integer_sequence<int, I...>) {
  static constexpr micro_kernel table[] = {F<I + 1>::fn...};
  return table[rows - 1];
}
#define RG_FAMILY(name, f)                                                                                                                 \
  template <int R>                                                                                                                         \
  struct name {                                                                                                                            \
    static constexpr micro_kernel fn = f<R>;                                                                                               \
  }
RG_FAMILY(F16, v16::f32_rows);
RG_FAMILY(F8, v8::f32_rows);
RG_FAMILY(F1, v1::f32_rows);
RG_FAMILY(B16, v16::b32_rows);
RG_FAMILY(B8, v8::b32_rows);
RG_FAMILY(B1, v1::b32_rows);
#undef RG_FAMILY

// Speed only, never bits.
struct tuning {
  std::int64_t l2 = std::max<std::int64_t>(1 << 18, sysconf(_SC_LEVEL2_CACHE_SIZE) / 2); // bytes of packed X kept in the L2 cache
  std::int64_t mc = 256;                                                                 // rows a chunk
  std::int64_t ahead = 8192;   // prefetch distance when one row block reads the weights
  std::int64_t ahead2 = 32768; // ... when several do
  std::int64_t ki = 256;       // k a pass over the rows, so that a slice of W stays in the L1 cache,
  std::int64_t ki_whole = 640; // unless k is small: sums that wait in memory cost more
  std::int64_t group = 4;      // panels gathered before Y is written in long runs (small k, many rows)
};
const tuning tune;

template <class T>
auto epilogue_for(isa which) {
  switch (which) {
  case isa::scalar:
    return v1::epilogue<T>;
  case isa::avx2:
    return v8::epilogue<T>;
  case isa::avx512:
    return v16::epilogue<T>;
  default:
    return v16b::epilogue<T>;
  }
}

// Up to 16 rows of up to 64 bytes -> their transpose in dwords, 16 rows of 16 dwords, ds bytes apart.
void transpose16(const char* s, std::int64_t lds, int rows, int bytes, char* d, std::int64_t ds) {
  std::uint32_t t[16][16] = {};
  for (int i = 0; i < rows; i++)
    std::memcpy(t[i], s + i * lds, std::size_t(bytes));
  for (int j = 0; j < 16; j++) {
    std::uint32_t o[16];
    for (int i = 0; i < 16; i++)
      o[i] = t[i][j];
    std::memcpy(d + j * ds, o, 64);
  }
}

// X's rows m0 .. m1-1 (m0 the first of a group) as the kernels read them: groups of `group` rows, inside a group [k][row]
// dwords (AMX: [k/32][row][16]), zero padded in k.
template <class T>
void pack_x(isa which, const micro& pl, const T* X, std::int64_t ldx, std::int64_t m0, std::int64_t m1, std::int64_t M, std::int64_t k,
            std::int64_t kb, char* out) {
  const std::int64_t row = kb * pl.dwords * 4;
  for (std::int64_t g0 = m0; g0 < m1; g0 += pl.group) {
    const std::int64_t rg = std::min<std::int64_t>(pl.group, M - g0);
    char* d = out + g0 * row;
    for (std::int64_t r = 0; r < rg; r++) {
      const T* x = X + (g0 + r) * ldx;
      if constexpr (sizeof(T) == 2) {
        if (which == isa::amx) {
          for (std::int64_t b = 0; b < kb; b++) {
            char* o = d + (b * rg + r) * 64;
            const std::int64_t n = std::min<std::int64_t>(32, k - b * 32);
            if (n < 32)
              std::memset(o, 0, 64);
            std::memcpy(o, x + b * 32, std::size_t(n) * 2);
          }
          continue;
        }
      }
      auto* f = reinterpret_cast<float*>(d) + r;
      for (std::int64_t i = 0; i < k; i++) {
        if constexpr (sizeof(T) == 2)
          f[i * rg] = widen(x[i]);
        else
          f[i * rg] = x[i];
      }
      for (std::int64_t i = k; i < kb * 32; i++)
        f[i * rg] = 0.f;
    }
  }
}

// How a call is cut: in time and over the caches, never over the order of a sum.
struct blocking {
  bool one; // one row block
  std::int64_t mc, kc, ki, group;
};

template <class T>
blocking cut(const micro& pl, std::int64_t M, const packed_weight<T>& W, std::int64_t row) {
  blocking b{};
  b.one = M <= pl.max_rows;
  b.mc = (std::min(M, tune.mc) + pl.max_rows - 1) / pl.max_rows * pl.max_rows;
  const std::int64_t kb = W.k_steps(), parts = b.one ? 1 : (b.mc * row + tune.l2 - 1) / tune.l2;
  b.kc = (kb + parts - 1) / parts; // k is cut in time, the sums wait in float32
  b.ki = b.one || W.k() <= tune.ki_whole ? b.kc : std::min(b.kc, std::max<std::int64_t>(1, tune.ki / 32));
  b.group = W.k() <= 1024 && M >= 256 && b.kc == kb ? tune.group : 1;
  return b;
}

} // namespace

template <class T>
packed_weight<T>::packed_weight(std::int64_t n, std::int64_t k, bool gated) : n_(n), k_(k), gated_(gated) {
  // 2 MB pages: a thread's share is one linear stream. Kernels prefetch past the end, which is harmless.
  const std::size_t huge = std::size_t{1} << 21, size = (bytes() + 4096 + huge - 1) & ~(huge - 1);
  void* p = bytes() < huge / 4 ? std::aligned_alloc(4096, (bytes() + 8191) & ~std::size_t{4095}) : std::aligned_alloc(huge, size);
  if (!p)
    throw std::bad_alloc();
  if (bytes() >= huge / 4)
    madvise(p, size, MADV_HUGEPAGE);
  std::memset(p, 0, bytes());
  data_ = std::shared_ptr<T[]>(static_cast<T*>(p), [](T* q) { std::free(q); });
}

template <class T>
packed_weight<T> packed_weight<T>::ungated() const {
  packed_weight v = *this;
  if (gated_) {
    v.n_ = panels() * 32;
    v.gated_ = false;
  }
  return v;
}

template <class T>
void pack(thread_pool& pool, packed_weight<T>& P, const T* W, std::int64_t ldw, std::int64_t rows, std::int64_t col, int part) {
  if (col % 16)
    throw error{errc::bad_shape, "gemm: a weight's columns start at a multiple of 16, not at " + std::to_string(col)};
  const std::int64_t tiles = (rows + 15) / 16, step = P.gated() ? 2 : 1, k16 = 64 / std::int64_t(sizeof(T)), per = sizeof(T) / 2;
  pool.split(tiles, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t j = begin; j < end; j++)
      for (std::int64_t b = 0; b < P.k_steps(); b++)
        for (std::int64_t h = 0; h < per; h++) {
          const std::int64_t k0 = b * 32 + h * k16, left = std::clamp<std::int64_t>(P.k() - k0, 0, k16);
          T* d = P.tile((col / 16 + j) * step + part, b) + h * 512;
          transpose16((const char*)(W + j * 16 * ldw + k0), ldw * std::int64_t(sizeof(T)), int(std::min<std::int64_t>(16, rows - j * 16)),
                      int(left * std::int64_t(sizeof(T))), (char*)d, sizeof(T) == 2 ? 64 : 128);
        }
  });
}

template <class T>
void pack_rows(thread_pool& pool, packed_weight<T>& P, const T* S, std::int64_t lds, std::int64_t row0, std::int64_t rows) {
  if (row0 % 32)
    throw error{errc::bad_shape, "gemm: rows to be summed over start at a multiple of 32, not at " + std::to_string(row0)};
  const std::int64_t tiles = (P.n() + 15) / 16, steps = (rows + 31) / 32;
  pool.split(steps, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t b = begin; b < end; b++)
      for (std::int64_t c = 0; c < tiles; c++) {
        const auto n_rows = std::min<std::int64_t>(32, rows - b * 32), cols = std::min<std::int64_t>(16, P.n() - c * 16);
        const T* s = S + b * 32 * lds + c * 16;
        if constexpr (sizeof(T) == 2) {
          auto* d = reinterpret_cast<std::uint32_t*>(P.tile(c, row0 / 32 + b));
          for (std::int64_t p = 0; p < 16; p++, d += 16) {
            bf16 lo[16] = {}, hi[16] = {};
            if (2 * p < n_rows)
              std::memcpy(lo, s + 2 * p * lds, std::size_t(cols) * 2);
            if (2 * p + 1 < n_rows)
              std::memcpy(hi, s + (2 * p + 1) * lds, std::size_t(cols) * 2);
            for (int i = 0; i < 16; i++)
              d[i] = std::uint32_t(lo[i]) | std::uint32_t(hi[i]) << 16;
          }
        } else {
          T* d = P.tile(c, row0 / 32 + b);
          for (std::int64_t r = 0; r < 32; r++, d += 32) {
            std::memset(d, 0, 64);
            if (r < n_rows)
              std::memcpy(d, s + r * lds, std::size_t(cols) * 4);
          }
        }
      }
  });
}

template <class T>
micro micro_plan(isa which) {
  constexpr bool f = std::is_same_v<T, float>;
  switch (which) {
  case isa::amx:
    return f ? micro{12, 12, 32} : micro{32, 16, 16};
  case isa::avx512:
    return f ? micro{12, 12, 32} : micro{6, 6, 32};
  case isa::avx2:
    return {6, 6, 32};
  default:
    return {1, 1, 32};
  }
}

template <class T>
micro_kernel micro_for(isa which, int rows) {
  constexpr bool f = std::is_same_v<T, float>;
  switch (which) {
  case isa::amx:
    if constexpr (!f)
      return rows > 16 ? amx_rows<2> : amx_rows<1>;
    [[fallthrough]];
  case isa::avx512:
    if constexpr (f)
      return pick<F16>(rows, std::make_integer_sequence<int, 12>());
    else
      return pick<B16>(rows, std::make_integer_sequence<int, 6>());
  case isa::avx2:
    if constexpr (f)
      return pick<F8>(rows, std::make_integer_sequence<int, 6>());
    else
      return pick<B8>(rows, std::make_integer_sequence<int, 6>());
  default:
    if constexpr (f)
      return pick<F1>(rows, std::make_integer_sequence<int, 1>());
    else
      return pick<B1>(rows, std::make_integer_sequence<int, 1>());
  }
}

void release_tiles() {
  if (tile_rows)
    release_all_tiles();
  tile_rows = 0;
}

template <class T, class TO>
void gemm(thread_pool& pool, isa which, const T* X, std::int64_t ldx, std::int64_t M, const packed_weight<T>& W, TO* Y, std::int64_t ldy,
          std::type_identity_t<gemm_epilogue<TO>> e) {
  if (M == 0)
    return;
  const micro pl = micro_plan<T>(which);
  const std::int64_t kb = W.k_steps(), row = kb * pl.dwords * 4, step = 1024 * std::int64_t(sizeof(T)), cols = W.gated() ? 16 : 32;
  char* A = pool.scratch(std::size_t(M * row + 64));
  if (M * row < (1 << 15) || pool.size() == 1)
    pack_x(which, pl, X, ldx, 0, M, M, W.k(), kb, A);
  else
    pool.split((M + pl.group - 1) / pl.group, [&](std::int64_t begin, std::int64_t end) {
      pack_x(which, pl, X, ldx, begin * pl.group, std::min(M, end * pl.group), M, W.k(), kb, A);
    });
  const blocking bl = cut<T>(pl, M, W, row);
  const auto epi = epilogue_for<TO>(which);
  pool.split(W.panels(), [&](std::int64_t p0, std::int64_t p1) {
    static thread_local std::vector<float> buffer;
    const auto need = std::size_t((bl.kc < kb ? p1 - p0 : 1) * bl.mc * 32 + 16 + (bl.group > 1 ? bl.mc * bl.group * 32 : 0));
    if (buffer.size() < need)
      buffer.resize(need);
    auto* C = (float*)(((std::uintptr_t)buffer.data() + 63) & ~std::uintptr_t(63));
    TO* gathered = (TO*)(C + bl.mc * 32);
    for (std::int64_t mb = 0; mb < M; mb += bl.mc) {
      const std::int64_t me = std::min(M, mb + bl.mc), blocks = (me - mb + pl.max_rows - 1) / pl.max_rows, pfs = (step / blocks + 63) & ~63;
      for (std::int64_t b = 0; b < kb; b += bl.kc)
        for (std::int64_t p = p0; p < p1; p++) {
          const std::int64_t be = std::min(kb, b + bl.kc), c0 = p * cols;
          const int nc = int(std::min(cols, W.n() - c0));
          const char* B = (const char*)W.data() + p * kb * step;
          const char* pf = B + b * step + (bl.one ? tune.ahead : bl.kc < kb ? kb * step : std::min(kb * step, tune.ahead2));
          for (std::int64_t i = b; i < be; i += bl.ki)
            for (std::int64_t m = mb; m < me; m += pl.max_rows) {
              const int rows = int(std::min<std::int64_t>(pl.max_rows, me - m));
              const std::int64_t nk = std::min(bl.ki, be - i), rg = std::min<std::int64_t>(pl.group, M - m),
                                 rg2 = std::min<std::int64_t>(pl.group, M - m - pl.group), off = i * pl.dwords * 4;
              float* c = C + (bl.kc < kb ? (p - p0) * bl.mc + m - mb : bl.ki < bl.kc ? m - mb : 0) * 32;
              micro_for<T>(which, rows)(rows, A + m * row + off * rg, pl.group * row + off * (rg2 - rg), B + i * step, nk, c, i == 0, pf,
                                        pfs);
              pf += nk * pfs;
              if (i + nk < kb)
                continue;
              TO* y = bl.group > 1 ? gathered + (m - mb) * bl.group * cols + (p - p0) % bl.group * cols : Y + m * ldy + c0;
              const std::int64_t ys = bl.group > 1 ? bl.group * cols : ldy;
              epi(rows, c, y, ys, nc, e.bias ? e.bias + p * 32 : nullptr, e.residual ? e.residual + m * e.ldr + c0 : nullptr, e.ldr,
                  W.gated());
            }
          if (bl.group > 1 && ((p - p0) % bl.group == bl.group - 1 || p == p1 - 1)) {
            const std::int64_t g = (p - p0) % bl.group, n = g * cols + nc;
            for (std::int64_t m = mb; m < me; m++)
              std::memcpy(Y + m * ldy + c0 - g * cols, gathered + (m - mb) * bl.group * cols, std::size_t(n) * sizeof(TO));
          }
        }
    }
    release_tiles();
  });
}

#define RG_INSTANCE(T)                                                                                                                     \
  template class packed_weight<T>;                                                                                                         \
  template void pack(thread_pool&, packed_weight<T>&, const T*, std::int64_t, std::int64_t, std::int64_t, int);                            \
  template void pack_rows(thread_pool&, packed_weight<T>&, const T*, std::int64_t, std::int64_t, std::int64_t);                            \
  template micro micro_plan<T>(isa);                                                                                                       \
  template micro_kernel micro_for<T>(isa, int);
RG_INSTANCE(bf16)
RG_INSTANCE(float)
template void gemm(thread_pool&, isa, const bf16*, std::int64_t, std::int64_t, const packed_weight<bf16>&, bf16*, std::int64_t,
                   gemm_epilogue<bf16>);
template void gemm(thread_pool&, isa, const bf16*, std::int64_t, std::int64_t, const packed_weight<bf16>&, float*, std::int64_t,
                   gemm_epilogue<float>);
template void gemm(thread_pool&, isa, const float*, std::int64_t, std::int64_t, const packed_weight<float>&, float*, std::int64_t,
                   gemm_epilogue<float>);

} // namespace troupe::kernels
