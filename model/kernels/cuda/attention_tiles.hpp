#pragma once
#include "model/kernels/attention.hpp"
#include "model/kernels/cuda/attention.hpp"
#include <cstdint>
#include <vector>

namespace troupe::cuda {

/// The arrays of attention_gradient_plan on the host.
struct attention_tiles {
  std::vector<std::int32_t> tile_begin, positions;
  std::vector<attention_list> key_lists, query_lists;
  std::vector<attention_entry> key_entries, query_entries;
  std::vector<std::uint64_t> masks;
  int n_pairs() const { return int(key_lists.size()); }
};

/// Cuts a batch's rows into tiles and finds which see which. Time: rows, plus segments and tiles times the tiles that they see.
/// Segments of 64 rows or more begin a tile, shorter ones share it.
attention_tiles find_attention_tiles(const token_batch& batch, const kernels::key_rows& keys);

} // namespace troupe::cuda
