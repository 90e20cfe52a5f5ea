#include "model/kernels/attention_amx.hpp"
#include "model/kernels/amx.hpp"
#include <algorithm>
#include <cmath>
#include <cstring>
#include <immintrin.h>
#include <limits>
#include <vector>

namespace troupe::kernels {

// Of the namespaces of per_isa.inl the one that goes with AMX.
#define RG_W 16
#define RG_TGT __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")))
#define RG_BF16_UNIT
namespace v16b {
#include "model/kernels/attention.inl"
} // namespace v16b
#undef RG_BF16_UNIT
#undef RG_TGT
#undef RG_W
#undef OP

namespace {

thread_local int tile_rows = 0; // rows configured in this thread, 0 = none

// Tiles 0-3: sums, 4-5: keys or values (16 rows), 6-7: queries or probabilities.
void configure(int rows) {
  if (tile_rows == rows)
    return;
  tile_configuration c;
  for (int t = 0; t < 8; ++t) {
    c.bytes[t] = 64;
    c.rows[t] = std::uint8_t(t == 4 || t == 5 ? 16 : rows);
  }
  load_tile_configuration(c);
  tile_rows = rows;
}

// One head's share of a block is one stretch of memory per kind; asking for it early hides the step from block to block.
void prefetch(const bf16* p, std::int64_t elements) {
  for (std::int64_t i = 0; i < elements; i += 32)
    _mm_prefetch(reinterpret_cast<const char*>(p + i), _MM_HINT_T0);
}

// Where a segment's keys (or values) of one head lie, from its block `begin` on.
struct head_blocks {
  const segment& seg;
  std::int64_t begin;
  const bf16* base;
  std::int64_t block_elements;
  const bf16* operator[](std::int64_t b) const { return base + seg.blocks[std::size_t(begin + b)] * block_elements; }
};

// S [rows][ld] = Q K^T for `blocks` blocks; Q as [step][rows][32].
void scores(const bf16* Q, int rows, std::int64_t steps, const head_blocks& keys, const head_blocks& values, std::int64_t blocks, float* S,
            std::int64_t ld) {
  const std::int64_t part = steps * 1024;
  TILE_LOAD(6, Q, 64);
  if (steps > 1)
    TILE_LOAD(7, Q + rows * 32, 64);
  prefetch(keys[0], part);
  for (std::int64_t b = 0; b < blocks; ++b) {
    const bf16* k = keys[b];
    if (b + 1 < blocks)
      prefetch(keys[b + 1], part);
    prefetch(values[b], part);
    TILE_ZERO(0);
    TILE_ZERO(1);
    for (std::int64_t s = 0; s < steps; ++s, k += 1024) {
      TILE_LOAD(4, k, 64);
      TILE_LOAD(5, k + 512, 64);
      if (s == 1) {
        TILE_DP(0, 7, 4);
        TILE_DP(1, 7, 5);
      } else {
        if (steps > 2) // two stay in their tiles, more are loaded again
          TILE_LOAD(6, Q + s * rows * 32, 64);
        TILE_DP(0, 6, 4);
        TILE_DP(1, 6, 5);
      }
    }
    TILE_STORE(0, S + b * 32, ld * 4);
    TILE_STORE(1, S + b * 32 + 16, ld * 4);
  }
}

// O [rows][64] = columns c .. c+63 of P V; the sums stay in their tiles over all blocks. P: [rows][ld].
void weighted_values(const bf16* P, std::int64_t ld, const head_blocks& values, std::int64_t blocks, std::int64_t c, bool four, float* O) {
  TILE_ZERO(0);
  TILE_ZERO(1);
  TILE_ZERO(2);
  TILE_ZERO(3);
  for (std::int64_t b = 0; b < blocks; ++b) {
    const bf16* v = values[b] + c / 16 * 512;
    TILE_LOAD(6, P + b * 32, ld * 2);
    TILE_LOAD(4, v, 64);
    TILE_DP(0, 6, 4);
    TILE_LOAD(5, v + 512, 64);
    TILE_DP(1, 6, 5);
    if (four) {
      TILE_LOAD(4, v + 1024, 64);
      TILE_DP(2, 6, 4);
      TILE_LOAD(5, v + 1536, 64);
      TILE_DP(3, 6, 5);
    }
  }
  TILE_STORE(0, O, 256);
  TILE_STORE(1, O + 16, 256);
  if (four) {
    TILE_STORE(2, O + 32, 256);
    TILE_STORE(3, O + 48, 256);
  }
}

// The rows of a call that go through the tiles together: (row, query head) pairs, row by row.
struct tile_rows_of {
  const attention_shape& sh;
  std::int32_t head, row0, first;
  std::int64_t row(int m) const { return row0 + (first + m) / sh.group(); }
  std::int64_t query_head(int m) const { return head * sh.group() + (first + m) % sh.group(); }
};

// Memory of one thread, aligned to a cache line.
char* scratch(std::size_t bytes) {
  static thread_local std::vector<char> memory;
  if (memory.size() < bytes + 64)
    memory.resize(bytes + 64);
  return reinterpret_cast<char*>((reinterpret_cast<std::uintptr_t>(memory.data()) + 63) & ~std::uintptr_t{63});
}

void attend_tile(const attention_shape& sh, const segment& seg, const tile_rows_of& at, int rows, const bf16* qkv, const bf16* cache,
                 bf16* out) {
  const std::int64_t d = sh.head_dim, steps = sh.steps(), part = steps * 1024;
  const auto position_of = [&](int m) { return std::int64_t(seg.position) + at.row(m) - seg.row_begin; };
  // Blocks that lie before every row's window are left out: their keys would add zeros.
  const std::int64_t begin = sh.first_key(position_of(0)) / 32, blocks = position_of(rows - 1) / 32 + 1 - begin;
  const std::int64_t ld = blocks * 32 + 16, ldp = blocks * 32 + 32; // of scores, of probabilities: rows in different cache sets
  auto* S = reinterpret_cast<float*>(scratch(std::size_t(rows * (ld * 4 + 256 + ldp * 2 + steps * 64))));
  float* O = S + rows * ld;
  auto* P = reinterpret_cast<bf16*>(O + rows * 64);
  bf16* Q = P + rows * ldp;
  for (int m = 0; m < rows; ++m)
    for (std::int64_t s = 0; s < steps; ++s)
      std::memcpy(Q + (s * rows + m) * 32, qkv + at.row(m) * sh.row() + at.query_head(m) * d + s * 32, 64);
  const bf16* own = cache + at.head * 2 * part;
  const head_blocks keys{seg, begin, own, sh.block_elements()}, values{seg, begin, own + part, sh.block_elements()};
  configure(rows);
  scores(Q, rows, steps, keys, values, blocks, S, ld);
  const float scale = 1.f / std::sqrt(float(d));
  float sums[16];
  for (int m = 0; m < rows; ++m)
    sums[m] = v16b::softmax_scores(S + m * ld, blocks, 32, sh.first_key(position_of(m)) - begin * 32, position_of(m) + 1 - begin * 32,
                                   scale, P + m * ldp);
  for (std::int64_t c = 0; c < d; c += 64) {
    weighted_values(P, ldp, values, blocks, c, d - c > 32, O);
    for (int m = 0; m < rows; ++m)
      v16b::divide_row(O + m * 64, sums[m], std::min<std::int64_t>(64, d - c), out + at.row(m) * sh.n_heads * d + at.query_head(m) * d + c);
  }
}

} // namespace

void attend_amx(const attention_shape& sh, const segment& seg, std::int32_t kv_head, std::int32_t row0, std::int32_t row1, const bf16* qkv,
                const bf16* cache, bf16* out) {
  const auto total = std::int32_t((row1 - row0) * sh.group());
  for (std::int32_t m = 0; m < total; m += 16)
    attend_tile(sh, seg, {sh, kv_head, row0, m}, std::min(16, total - m), qkv, cache, out);
}

void release_attention_tiles() {
  if (tile_rows)
    release_all_tiles();
  tile_rows = 0;
}

} // namespace troupe::kernels
