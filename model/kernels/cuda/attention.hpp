#pragma once
#include "core/dtype.hpp"
#include "model/kernels/cuda/memory.hpp"
#include <cstddef>
#include <cstdint>

namespace troupe::cuda {

/// Heads of one layer. qkv rows: n_heads queries, n_kv_heads keys, n_kv_heads values, head_dim each.
struct attention_shape {
  int n_heads = 0, n_kv_heads = 0, head_dim = 0;
  int window = 0; // keys a row attends to, its own the last of them; 0: all before it
  int row() const { return (n_heads + 2 * n_kv_heads) * head_dim; }
  /// Elements of one cache block of one layer: [keys, values][n_kv_heads][32 tokens][head_dim].
  std::int64_t block_elements() const { return std::int64_t(2) * n_kv_heads * 32 * head_dim; }
};

/// The segments of a pass (model/batch.hpp) as the kernels read them; all arrays are the device's, [n_segments] unless said.
/// The first n_single segments have one row each (decoding), and are rows 0 .. n_single-1 of the pass.
struct attention_plan {
  int n_segments = 0, n_single = 0, n_tokens = 0;
  const int* row_begin = nullptr; // first row of the pass
  const int* n_rows = nullptr;
  const int* n_keys = nullptr;    // the last row sees so many keys: its position + 1. 0: a padding segment, skipped
  const int* blocks = nullptr;    // [n_segments][max_blocks] cache blocks of 32 tokens, in order of positions
  int max_blocks = 0;             // stride of `blocks`
  int max_rows = 0, max_keys = 0; // bounds over the segments, for the grid; they change no bit
};

/// Bytes of scratch that `attend` needs for passes within these bounds. Zeroed once by the owner, left zero where it must be.
std::size_t attention_scratch_bytes(const attention_shape& shape, int max_segments, int max_keys);

/// out [n_tokens, n_heads * head_dim] of `type`; lse [n_heads, n_tokens] f32 natural log, may be null. Each row attends to its segment's
/// keys up to its own position. qkv [n_tokens, row()]: rotated. cache: this layer's blocks. The row's bits depend on its sequence alone:
/// the same whether it is decoded, prefilled in any chunks or scored.
void attend(dtype type, const attention_shape& shape, const attention_plan& plan, const void* qkv, const void* cache, void* out, float* lse,
            void* scratch, stream where);

/// The slow definition that `attend` is tested against where it has faster kernels: any head_dim up to 256, f32 and bf16, windows.
void attend_reference(dtype type, const attention_shape& shape, const attention_plan& plan, const void* qkv, const void* cache, void* out,
                      float* lse, stream where);

/// A tile of rows that the pair of tiles looks at (as queries at keys, or keys at queries), and what each of the two sees of it.
struct alignas(16) attention_entry {
  std::int32_t tile;
  std::int32_t mask[2]; // -1: all of it; else which of `masks`. Mask 0: nothing
};
/// The entries of tiles 2 * pair and 2 * pair + 1.
struct alignas(16) attention_list {
  std::int32_t pair, begin, end;
};

/// Which queries of a batch see which keys, for the gradient; arrays of the device, made by find_attention_tiles. A batch's rows hold whole
/// sequences; tiles of up to 64 consecutive rows cover them. Windows do not count here.
struct attention_gradient_plan {
  static constexpr int tile_rows = 64;
  int n_rows = 0, n_pairs = 0;
  const std::int32_t* tile_begin = nullptr;                               // [2 * n_pairs + 1] rows; a tile may be empty
  const std::int32_t* positions = nullptr;                                // [n_rows]
  const attention_list *key_lists = nullptr, *query_lists = nullptr;      // [n_pairs], the longest first
  const attention_entry *key_entries = nullptr, *query_entries = nullptr; // tiles of queries, and of keys; ascending
  const std::uint64_t* masks = nullptr; // [][2][64]: of each row as a query bits of keys, then of each row as a key bits of queries
  /// f32 values of scratch that attend_backward needs.
  std::size_t scratch_size(const attention_shape& shape) const { return std::size_t(shape.n_heads) * std::size_t(n_pairs) * 4 * tile_rows; }
};
/// d_qkv [n_tokens, row()] f32 overwritten with the gradients of (rotated) queries, keys and values. Deterministic: a key's gradient adds
/// up its queries in the plan's order. out, lse: as attend gave them; d_out [n_tokens, n_heads * head_dim] of `type`.
void attend_backward(dtype type, const attention_shape& shape, const attention_gradient_plan& plan, const void* qkv, const void* out,
                     const float* lse, const void* d_out, float* d_qkv, float* scratch, stream where);

} // namespace troupe::cuda
