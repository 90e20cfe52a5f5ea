#pragma once
#include "model/batch.hpp"
#include "model/compute.hpp"
#include "model/kernels/gemm.hpp"
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace troupe::kernels {

/// Heads of one layer's attention. qkv rows: n_heads queries, n_kv_heads keys, n_kv_heads values, head_dim each.
struct attention_shape {
  std::int64_t n_heads = 0, n_kv_heads = 0, head_dim = 0;
  std::int64_t window = 0; // keys a row attends to, its own the last of them; 0: all before it
  std::int64_t group() const { return n_heads / n_kv_heads; }
  std::int64_t row() const { return (n_heads + 2 * n_kv_heads) * head_dim; }
  std::int64_t steps() const { return (head_dim + 31) / 32; }
  std::int64_t first_key(std::int64_t position) const { return window > 0 ? std::max<std::int64_t>(0, position + 1 - window) : 0; }
  /// Elements of one block (32 tokens) of one layer: for each kv head keys, then values, in the GEMM's tile layout.
  std::int64_t block_elements() const { return n_kv_heads * 2 * steps() * 1024; }
};

/// Writes the batch's keys and values (rotated) into blocks. cache: [n_blocks][block_elements].
template <class T>
void write_keys_values(compute& where, const attention_shape& shape, const token_batch& batch, const T* qkv, T* cache);

/// out [n_tokens, n_heads * head_dim]: each row attends to positions first_key .. its own of its segment's blocks.
/// Bits: scores by the GEMM's order over head_dim, softmax over the whole row, probabilities rounded to T, values by the
/// GEMM's order over keys in blocks of 32 (docs/numerics.md). They depend on the sequence alone.
template <class T>
void attend(compute& where, const attention_shape& shape, const token_batch& batch, const T* qkv, const T* cache, T* out);

/// Which row of a batch holds the keys of each position of each segment; only for batches that hold whole sequences.
struct key_rows {
  std::vector<std::vector<std::int32_t>> of_segment; // [segments][positions]
  std::vector<std::vector<std::int32_t>> trees;      // segments that share a first row, in order
};
key_rows find_key_rows(const token_batch& batch);

/// d_qkv [n_tokens, row()] f32 is overwritten with the gradients of queries, keys and values (rotated). Deterministic: keys shared
/// by several segments add up in segment order.
template <class T>
void attend_backward(compute& where, const attention_shape& shape, const token_batch& batch, const key_rows& keys, const T* qkv,
                     const T* out, const float* d_out, float* d_qkv);

} // namespace troupe::kernels
