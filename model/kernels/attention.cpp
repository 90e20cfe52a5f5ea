#include "model/kernels/attention.hpp"
#include "core/error.hpp"
#include "model/kernels/attention_amx.hpp"
#include "model/kernels/thread_pool.hpp"
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <immintrin.h>
#include <limits>
#include <map>

namespace troupe::kernels {

#define RG_SOURCE "model/kernels/attention.inl"
#include "model/kernels/per_isa.inl"

namespace {

// Places inside one kv head's part of a block: element i of head_dim, key slot s.
template <class T>
std::int64_t key_place(std::int64_t i, std::int64_t s) {
  if constexpr (sizeof(T) == 2)
    return i / 32 * 1024 + s / 16 * 512 + i % 32 / 2 * 32 + s % 16 * 2 + i % 2;
  else
    return i * 32 + s;
}
template <class T>
std::int64_t value_place(std::int64_t i, std::int64_t s) {
  if constexpr (sizeof(T) == 2)
    return i / 32 * 1024 + i % 32 / 16 * 512 + s / 2 * 32 + i % 16 * 2 + s % 2;
  else
    return i / 32 * 1024 + s * 32 + i % 32;
}

template <class T>
void write_row(const attention_shape& sh, const T* row, T* block, std::int64_t slot) {
  const std::int64_t d = sh.head_dim, part = sh.steps() * 1024;
  for (std::int64_t h = 0; h < sh.n_kv_heads; ++h) {
    const T *k = row + (sh.n_heads + h) * d, *v = k + sh.n_kv_heads * d;
    T *bk = block + h * 2 * part, *bv = bk + part;
    for (std::int64_t i = 0; i < d; ++i) {
      bk[key_place<T>(i, slot)] = k[i];
      bv[value_place<T>(i, slot)] = v[i];
    }
  }
}

// The same for whole steps of bf16: the pairs of a key together. Values of neighbouring slots share words, and neighbours may
// be written by two threads: half words, never whole ones.
void write_row_bf16(const attention_shape& sh, const bf16* row, bf16* block, std::int64_t slot) {
  const std::int64_t d = sh.head_dim, part = sh.steps() * 1024;
  for (std::int64_t h = 0; h < sh.n_kv_heads; ++h) {
    const bf16 *k = row + (sh.n_heads + h) * d, *v = k + sh.n_kv_heads * d;
    bf16* bk = block + h * 2 * part + slot / 16 * 512 + slot % 16 * 2;
    bf16* bv = block + (h * 2 + 1) * part + slot / 2 * 32 + slot % 2;
    for (std::int64_t s = 0; s < d / 32; ++s)
      for (std::int64_t i = 0; i < 16; ++i)
        std::memcpy(bk + s * 1024 + i * 32, k + s * 32 + i * 2, 4);
    for (std::int64_t t = 0; t < d / 16; ++t)
      for (std::int64_t i = 0; i < 16; ++i)
        bv[t * 512 + i * 2] = v[t * 16 + i];
  }
}

// One place where a row's keys and values go.
struct write {
  std::int32_t row, block, slot;
};

std::vector<write> writes_of(const token_batch& batch) {
  std::vector<write> writes;
  for (const auto& s : batch.segments)
    for (std::int32_t r = s.row_begin; r < s.row_end; ++r) {
      const std::int32_t p = s.position + r - s.row_begin;
      writes.push_back({r, s.blocks[std::size_t(p / kv_block_tokens)], p % kv_block_tokens});
    }
  for (const auto& c : batch.copies)
    writes.push_back({c.row, c.block, c.slot});
  return writes;
}

// Rows [row0, row1) of a segment, one kv head.
struct piece {
  std::int32_t segment, head, row0, row1;
};

std::vector<piece> pieces_of(const attention_shape& sh, const token_batch& batch) {
  constexpr std::int32_t rows = 32;
  std::vector<piece> pieces;
  for (std::size_t s = 0; s < batch.segments.size(); ++s)
    for (std::int32_t h = 0; h < std::int32_t(sh.n_kv_heads); ++h)
      for (std::int32_t r = batch.segments[s].row_begin; r < batch.segments[s].row_end; r += rows)
        pieces.push_back({std::int32_t(s), h, r, std::min(r + rows, batch.segments[s].row_end)});
  return pieces;
}

float* buffer(std::size_t floats) {
  static thread_local std::vector<float> memory;
  if (memory.size() < floats + 16)
    memory.resize(floats + 16);
  return (float*)(((std::uintptr_t)memory.data() + 63) & ~std::uintptr_t(63));
}

// The left operand of a micro-kernel: rows of `n` elements (padded to steps of 32) as `plan` wants them.
template <class T>
class left_operand {
public:
  left_operand(isa which, const micro& plan, int rows, std::int64_t steps, char* memory)
      : tiles_(sizeof(T) == 2 && which == isa::amx), rows_(rows), group_(std::min(rows, plan.group)), steps_(steps), memory_(memory) {}
  /// Offset of the second group of rows (AMX).
  std::int64_t second() const { return steps_ * group_ * 64; }
  /// Row r's 32 elements of step b, given as floats that T can hold exactly.
  void put(int r, std::int64_t b, const float* x) {
    if (tiles_) {
      const int g = r / 16, in_group = std::min(rows_ - g * 16, 16);
      auto* o = reinterpret_cast<bf16*>(memory_ + g * second() + (b * in_group + r % 16) * 64);
      for (int i = 0; i < 32; ++i)
        o[i] = bf16(std::bit_cast<std::uint32_t>(x[i]) >> 16);
    } else {
      auto* o = reinterpret_cast<float*>(memory_) + b * 32 * rows_ + r;
      for (int i = 0; i < 32; ++i)
        o[i * rows_] = x[i];
    }
  }

private:
  bool tiles_;
  int rows_, group_;
  std::int64_t steps_;
  char* memory_;
};

// The rows of a piece that go through the micro-kernels together: query heads of one kv head, row by row.
template <class T>
struct attend_task {
  isa which;
  const attention_shape& sh;
  const segment& seg;
  const T* qkv;
  const T* cache;
  T* out;

  void operator()(const piece& p) const {
    const micro plan = micro_plan<T>(which);
    const auto group = std::int32_t(sh.group());
    const std::int32_t total = (p.row1 - p.row0) * group;
    for (std::int32_t m = 0; m < total; m += plan.max_rows)
      block_of_rows(p, plan, m, std::min(plan.max_rows, total - m));
    release_tiles();
  }

  void block_of_rows(const piece& p, const micro& plan, std::int32_t m0, std::int32_t rows) const {
    const std::int64_t d = sh.head_dim, steps = sh.steps(), part = steps * 1024, group = sh.group();
    const auto row_of = [&](std::int32_t m) { return p.row0 + std::int32_t((m0 + m) / group); };
    const auto head_of = [&](std::int32_t m) { return p.head * group + (m0 + m) % group; };
    const auto position_of = [&](std::int32_t m) { return std::int64_t(seg.position) + row_of(m) - seg.row_begin; };
    // Blocks that lie before every row's window are left out: their keys would add zeros.
    const std::int64_t begin = sh.first_key(position_of(0)) / 32, blocks = position_of(rows - 1) / 32 + 1 - begin,
                       stride = std::int64_t(rows) * 32;
    float* S = buffer(std::size_t(blocks * stride + rows * (steps * 32 + 32) + steps * stride + 64));
    auto* a = reinterpret_cast<char*>(S + blocks * stride);
    float* o = S + blocks * stride + rows * (steps * 32 + 32);

    left_operand<T> q(which, plan, rows, steps, a);
    for (std::int32_t m = 0; m < rows; ++m) {
      const T* x = qkv + row_of(m) * sh.row() + head_of(m) * d;
      for (std::int64_t b = 0; b < steps; ++b) {
        float t[32] = {};
        for (std::int64_t i = 0; i < 32 && b * 32 + i < d; ++i)
          t[i] = widen(x[b * 32 + i]);
        q.put(m, b, t);
      }
    }
    const micro_kernel kernel = micro_for<T>(which, rows);
    for (std::int64_t b = 0; b < blocks; ++b) {
      const T* keys = cache + (seg.blocks[std::size_t(begin + b)] * sh.n_kv_heads + p.head) * 2 * part;
      kernel(rows, a, q.second(), (const char*)keys, steps, S + b * stride, true, (const char*)keys, 0);
    }
    const float scale = 1.f / std::sqrt(float(d));
    float sums[32];
    for (std::int32_t m = 0; m < rows; ++m)
      sums[m] = RG_CALL(which, softmax_scores<float>, S + m * 32, blocks, stride, sh.first_key(position_of(m)) - begin * 32,
                        position_of(m) + 1 - begin * 32, scale, S + m * 32);
    left_operand<T> probabilities(which, plan, rows, 1, a);
    for (std::int64_t b = 0; b < blocks; ++b) {
      for (std::int32_t m = 0; m < rows; ++m) {
        float t[32];
        RG_CALL(which, round_scores<T>, S + b * stride + m * 32, t);
        probabilities.put(m, 0, t);
      }
      const T* values = cache + (seg.blocks[std::size_t(begin + b)] * sh.n_kv_heads + p.head) * 2 * part + part;
      for (std::int64_t c = 0; c < steps; ++c)
        kernel(rows, a, probabilities.second(), (const char*)(values + c * 1024), 1, o + c * stride, b == 0, (const char*)values, 0);
    }
    for (std::int32_t m = 0; m < rows; ++m) {
      T* y = out + row_of(m) * sh.n_heads * d + head_of(m) * d;
      for (std::int64_t c = 0; c < steps; ++c)
        RG_CALL(which, divide_row, o + c * stride + m * 32, sums[m], std::min<std::int64_t>(32, d - c * 32), y + c * 32);
    }
  }
};

} // namespace

template <class T>
void write_keys_values(compute& where, const attention_shape& sh, const token_batch& batch, const T* qkv, T* cache) {
  const auto writes = writes_of(batch);
  const auto n = std::int64_t(writes.size());
  const std::int64_t part = sh.steps() * 1024;
  // A block begins at slot 0. Its values start as zeros, so that keys it does not hold yet add nothing; where head_dim does
  // not fill a step its keys are padded with zeros too.
  const bool whole = sh.head_dim % 32 == 0;
  where.pool().split(n, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
      if (writes[std::size_t(i)].slot != 0)
        continue;
      T* block = cache + writes[std::size_t(i)].block * sh.block_elements();
      for (std::int64_t h = 0; h < sh.n_kv_heads; ++h)
        std::memset(block + (h * 2 + (whole ? 1 : 0)) * part, 0, std::size_t(whole ? part : 2 * part) * sizeof(T));
    }
  });
  where.pool().split(n, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
      const write& w = writes[std::size_t(i)];
      const T* row = qkv + w.row * sh.row();
      T* block = cache + w.block * sh.block_elements();
      if constexpr (sizeof(T) == 2) {
        if (whole) {
          write_row_bf16(sh, row, block, w.slot);
          continue;
        }
      }
      write_row(sh, row, block, w.slot);
    }
  });
}

template <class T>
void attend(compute& where, const attention_shape& sh, const token_batch& batch, const T* qkv, const T* cache, T* out) {
  const auto pieces = pieces_of(sh, batch);
  if constexpr (sizeof(T) == 2) {
    if (where.which() == isa::amx && sh.head_dim % 32 == 0) {
      std::atomic<std::size_t> next{0};
      where.pool().run([&](int) {
        for (std::size_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < pieces.size();) {
          const piece& p = pieces[i];
          attend_amx(sh, batch.segments[std::size_t(p.segment)], p.head, p.row0, p.row1, qkv, cache, out);
        }
        release_attention_tiles();
      });
      return;
    }
  }
  where.pool().each(std::int64_t(pieces.size()), [&](std::int64_t i) {
    const piece& p = pieces[std::size_t(i)];
    // Configuring tiles costs more than a few rows of FMA, which give the same bits.
    const bool few = (p.row1 - p.row0) * sh.group() < 16;
    const isa which = where.which() == isa::amx && few ? isa::avx512 : where.which();
    attend_task<T>{which, sh, batch.segments[std::size_t(p.segment)], qkv, cache, out}(p);
  });
}

key_rows find_key_rows(const token_batch& batch) {
  std::vector<std::int32_t> row_at(std::size_t(batch.n_blocks) * kv_block_tokens, -1);
  for (const auto& w : writes_of(batch))
    row_at[std::size_t(w.block) * kv_block_tokens + std::size_t(w.slot)] = w.row;
  key_rows keys;
  std::map<std::int32_t, std::size_t> tree_of;
  for (std::size_t s = 0; s < batch.segments.size(); ++s) {
    const auto& seg = batch.segments[s];
    const std::int32_t n = seg.position + seg.row_end - seg.row_begin;
    std::vector<std::int32_t> rows;
    for (std::int32_t p = 0; p < n; ++p) {
      rows.push_back(
          row_at[std::size_t(seg.blocks[std::size_t(p / kv_block_tokens)]) * kv_block_tokens + std::size_t(p % kv_block_tokens)]);
      if (rows.back() < 0)
        throw error{errc::bad_shape,
                    "attention backward: position " + std::to_string(p) + " of segment " + std::to_string(s) + " has no row in the batch"};
    }
    const auto [it, fresh] = tree_of.try_emplace(rows.at(0), keys.trees.size());
    if (fresh)
      keys.trees.emplace_back();
    keys.trees[it->second].push_back(std::int32_t(s));
    keys.of_segment.push_back(std::move(rows));
  }
  return keys;
}

namespace {

// One kv head of the segments that share a prompt.
template <class T>
struct backward_task {
  isa which;
  const attention_shape& sh;
  const token_batch& batch;
  const key_rows& keys;
  const T* qkv;
  const T* out;
  const float* d_out;
  float* d_qkv;

  void operator()(const std::vector<std::int32_t>& tree, std::int64_t head) const {
    for (const std::int32_t s : tree)
      one_segment(std::size_t(s), head);
  }

  void one_segment(std::size_t s, std::int64_t head) const {
    const segment& seg = batch.segments[s];
    const auto& rows = keys.of_segment[s];
    const std::int64_t d = sh.head_dim, n = std::int64_t(rows.size()), padded = (n + 15) / 16 * 16, d16 = (d + 15) / 16 * 16;
    // Transposed [d][keys]: keys, values, their gradients; then one row's scores and dO V^T.
    float* kt = buffer(std::size_t(4 * d * padded + 2 * padded + 2 * d16));
    float *vt = kt + d * padded, *dkt = vt + d * padded, *dvt = dkt + d * padded, *scores = dvt + d * padded, *dp = scores + padded;
    float *o = dp + padded, *go = o + d16;
    std::fill(kt, go + d16, 0.f);
    for (std::int64_t j = 0; j < n; ++j) {
      const T* k = qkv + rows[std::size_t(j)] * sh.row() + (sh.n_heads + head) * d;
      for (std::int64_t i = 0; i < d; ++i) {
        kt[i * padded + j] = widen(k[i]);
        vt[i * padded + j] = widen(k[sh.n_kv_heads * d + i]);
      }
    }
    for (std::int32_t r = seg.row_begin; r < seg.row_end; ++r) {
      const std::int64_t n_keys = seg.position + r - seg.row_begin + 1, used = (n_keys + 15) / 16 * 16;
      for (std::int64_t g = 0; g < sh.group(); ++g) {
        const std::int64_t h = head * sh.group() + g;
        const T *q = qkv + r * sh.row() + h * d, *y = out + r * sh.n_heads * d + h * d;
        const float* dy = d_out + r * sh.n_heads * d + h * d;
        std::fill(scores, scores + used, 0.f);
        std::fill(dp, dp + used, 0.f);
        for (std::int64_t i = 0; i < d; ++i) {
          o[i] = widen(y[i]);
          go[i] = dy[i];
          RG_CALL(which, axpy, widen(q[i]), kt + i * padded, used, scores);
          RG_CALL(which, axpy, dy[i], vt + i * padded, used, dp);
        }
        const float delta = RG_CALL(which, dot, o, go, d16);
        RG_CALL(which, backward_scores, scores, dp, used, sh.first_key(n_keys - 1), n_keys, 1.f / std::sqrt(float(d)), delta);
        float* dq = d_qkv + r * sh.row() + h * d;
        for (std::int64_t i = 0; i < d; ++i) {
          dq[i] = RG_CALL(which, dot, dp, kt + i * padded, used);
          RG_CALL(which, axpy, widen(q[i]), dp, used, dkt + i * padded);
          RG_CALL(which, axpy, dy[i], scores, used, dvt + i * padded);
        }
      }
    }
    for (std::int64_t j = 0; j < n; ++j) {
      float* dk = d_qkv + rows[std::size_t(j)] * sh.row() + (sh.n_heads + head) * d;
      for (std::int64_t i = 0; i < d; ++i) {
        dk[i] += dkt[i * padded + j];
        dk[sh.n_kv_heads * d + i] += dvt[i * padded + j];
      }
    }
  }
};

} // namespace

template <class T>
void attend_backward(compute& where, const attention_shape& sh, const token_batch& batch, const key_rows& keys, const T* qkv, const T* out,
                     const float* d_out, float* d_qkv) {
  std::memset(d_qkv, 0, batch.ids.size() * std::size_t(sh.row()) * sizeof(float));
  const backward_task<T> task{where.which(), sh, batch, keys, qkv, out, d_out, d_qkv};
  where.pool().each(std::int64_t(keys.trees.size()) * sh.n_kv_heads,
                    [&](std::int64_t i) { task(keys.trees[std::size_t(i / sh.n_kv_heads)], i % sh.n_kv_heads); });
}

#define RG_INSTANCE(T)                                                                                                                     \
  template void write_keys_values(compute&, const attention_shape&, const token_batch&, const T*, T*);                                     \
  template void attend(compute&, const attention_shape&, const token_batch&, const T*, const T*, T*);                                      \
  template void attend_backward(compute&, const attention_shape&, const token_batch&, const key_rows&, const T*, const T*, const float*,   \
                                float*);
RG_INSTANCE(bf16)
RG_INSTANCE(float)

} // namespace troupe::kernels
