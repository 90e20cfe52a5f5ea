#include "model/kernels/cuda/attention_tiles.hpp"
#include <algorithm>
#include <utility>

namespace troupe::cuda {

namespace {

constexpr std::int32_t tile_rows = attention_gradient_plan::tile_rows;

struct seen_tile {
  std::int32_t tile, mask;
};
using tile_lists = std::vector<std::vector<seen_tile>>; // [n_tiles], ascending

/// Keys of consecutive positions that lie in consecutive rows.
struct key_run {
  std::int32_t row, position, n;
};
std::vector<key_run> runs_of(const std::vector<std::int32_t>& rows) {
  std::vector<key_run> runs;
  for (std::int32_t p = 0; p < std::int32_t(rows.size()); ++p) {
    const std::int32_t row = rows[std::size_t(p)];
    if (runs.empty() || runs.back().row + runs.back().n != row)
      runs.push_back({row, p, 0});
    ++runs.back().n;
  }
  return runs;
}

/// Rows q_begin .. q_end-1 of one tile see the first n_first, n_first + 1, ... of keys k_begin .. k_end-1 of another.
struct view {
  std::int32_t tile, q_begin, q_end, k_begin, k_end, n_first;
  bool whole() const { return n_first >= k_end - k_begin; }
  std::int64_t size() const { return std::int64_t(q_end - q_begin) * (k_end - k_begin); }
};

std::uint64_t first_bits(std::int32_t n) { return n >= 64 ? ~std::uint64_t(0) : (std::uint64_t(1) << n) - 1; }

class tile_finder {
public:
  tile_finder(const token_batch& batch, const kernels::key_rows& keys) : batch_(batch) {
    cut();
    for (const auto& rows : keys.of_segment)
      runs_.push_back(runs_of(rows));
    queries_.resize(std::size_t(n_tiles())), keys_.resize(std::size_t(n_tiles()));
    out_.masks.resize(std::size_t(2 * tile_rows)); // mask 0: nothing
    std::size_t s = 0;
    for (std::int32_t t = 0; t < n_tiles(); ++t)
      s = add_queries(t, s);
  }

  attention_tiles take() {
    list_pairs(queries_, out_.query_lists, out_.query_entries);
    list_pairs(keys_, out_.key_lists, out_.key_entries);
    return std::move(out_);
  }

private:
  std::int32_t n_tiles() const { return std::int32_t(out_.tile_begin.size()) - 1; }
  std::int32_t begin(std::int32_t tile) const { return out_.tile_begin[std::size_t(tile)]; }
  bool full(std::int32_t tile) const { return begin(tile + 1) - begin(tile) == tile_rows; }

  // Segments of two tiles and more begin a pair of tiles, if need be after an empty one.
  void cut() {
    auto& to = out_.tile_begin;
    std::int32_t start = 0, n_rows = 0;
    for (const segment& seg : batch_.segments) {
      const std::int32_t n = seg.row_end - seg.row_begin;
      if (n >= tile_rows && start < seg.row_begin)
        to.push_back(std::exchange(start, seg.row_begin));
      if (n >= 2 * tile_rows && to.size() % 2 == 1)
        to.push_back(start);
      for (n_rows = seg.row_end; n_rows - start >= tile_rows; start += tile_rows)
        to.push_back(start);
      for (std::int32_t i = 0; i < n; ++i)
        out_.positions.push_back(seg.position + i);
    }
    if (start < n_rows)
      to.push_back(start);
    if (to.size() % 2 == 1)
      to.push_back(n_rows);
    to.push_back(n_rows);
    for (std::int32_t t = 0; t < n_tiles(); ++t)
      tile_of_.resize(std::size_t(begin(t + 1)), t);
  }

  // What the tile's rows see; s: a segment at or before the tile's first row. Returns such a one of the next tile.
  std::size_t add_queries(std::int32_t tile, std::size_t s) {
    views_.clear();
    const std::int32_t end = begin(tile + 1);
    while (s < batch_.segments.size() && batch_.segments[s].row_end <= begin(tile))
      ++s;
    const std::size_t first = s;
    for (; s < batch_.segments.size() && batch_.segments[s].row_begin < end; ++s) {
      const segment& seg = batch_.segments[s];
      const std::int32_t q_begin = std::max(begin(tile), seg.row_begin), q_end = std::min(end, seg.row_end);
      for (const key_run& run : runs_[s])
        add_run(run, q_begin, q_end, seg.position + q_begin - seg.row_begin);
    }
    std::stable_sort(views_.begin(), views_.end(), [](const view& a, const view& b) { return a.tile < b.tile; });
    for (std::size_t i = 0, j = 0; i < views_.size(); i = j) {
      while (j < views_.size() && views_[j].tile == views_[i].tile)
        ++j;
      const std::int32_t key_tile = views_[i].tile, mask = mask_of(tile, i, j);
      queries_[std::size_t(tile)].push_back({key_tile, mask}), keys_[std::size_t(key_tile)].push_back({tile, mask});
    }
    return first;
  }

  void add_run(const key_run& run, std::int32_t q_begin, std::int32_t q_end, std::int32_t position) {
    const std::int32_t end = run.row + std::min(run.n, position + q_end - q_begin - run.position);
    for (std::int32_t row = run.row; row < end;) {
      const std::int32_t tile = tile_of_[std::size_t(row)], k_end = std::min(end, begin(tile + 1));
      views_.push_back({tile, q_begin, q_end, row, k_end, position + 1 - (run.position + row - run.row)});
      row = k_end;
    }
  }

  // Of views i .. j-1, which are of one tile of keys.
  std::int32_t mask_of(std::int32_t tile, std::size_t i, std::size_t j) {
    const std::int32_t key_tile = views_[i].tile;
    std::int64_t n_seen = 0;
    for (std::size_t v = i; v < j; ++v)
      n_seen += views_[v].whole() ? views_[v].size() : 0;
    if (n_seen == std::int64_t(tile_rows) * tile_rows)
      return -1;
    const std::size_t at = out_.masks.size();
    out_.masks.resize(at + std::size_t(2 * tile_rows));
    std::uint64_t *const of_query = out_.masks.data() + at, *const of_key = of_query + tile_rows;
    for (std::size_t v = i; v < j; ++v) {
      const view& seen = views_[v];
      const std::int32_t n_queries = seen.q_end - seen.q_begin, n_keys = seen.k_end - seen.k_begin;
      const std::int32_t q0 = seen.q_begin - begin(tile), k0 = seen.k_begin - begin(key_tile);
      for (std::int32_t q = 0; q < n_queries; ++q)
        of_query[q0 + q] |= first_bits(std::clamp(seen.n_first + q, 0, n_keys)) << k0;
      for (std::int32_t k = 0; k < n_keys; ++k) { // all queries but the first n_blind
        const std::int32_t n_blind = std::clamp(k + 1 - seen.n_first, 0, n_queries);
        of_key[k0 + k] |= (first_bits(n_queries) & ~first_bits(n_blind)) << q0;
      }
    }
    return std::int32_t(at / std::size_t(2 * tile_rows));
  }

  // Merges the lists of the two tiles of a pair; the longest list first.
  void list_pairs(const tile_lists& of_tile, std::vector<attention_list>& lists, std::vector<attention_entry>& entries) const {
    for (std::int32_t p = 0; p < n_tiles() / 2; ++p) {
      const auto &a = of_tile[std::size_t(2 * p)], &b = of_tile[std::size_t(2 * p + 1)];
      const auto first = std::int32_t(entries.size());
      for (std::size_t i = 0, j = 0; i < a.size() || j < b.size();) {
        const std::int32_t tile = j == b.size() || (i < a.size() && a[i].tile < b[j].tile) ? a[i].tile : b[j].tile;
        attention_entry entry{tile, {0, 0}};
        if (i < a.size() && a[i].tile == tile)
          entry.mask[0] = a[i++].mask;
        if (j < b.size() && b[j].tile == tile)
          entry.mask[1] = b[j++].mask;
        entries.push_back(entry);
      }
      lists.push_back({p, first, std::int32_t(entries.size())});
    }
    std::stable_sort(lists.begin(), lists.end(),
                     [](const attention_list& x, const attention_list& y) { return x.end - x.begin > y.end - y.begin; });
  }

  const token_batch& batch_;
  std::vector<std::vector<key_run>> runs_; // [n_segments]
  std::vector<std::int32_t> tile_of_;      // [n_rows]
  std::vector<view> views_;                // of one tile
  tile_lists queries_, keys_;
  attention_tiles out_;
};

} // namespace

attention_tiles find_attention_tiles(const token_batch& batch, const kernels::key_rows& keys) { return tile_finder(batch, keys).take(); }

} // namespace troupe::cuda
