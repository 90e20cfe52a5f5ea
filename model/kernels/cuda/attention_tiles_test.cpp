#include "model/kernels/cuda/attention_tiles.hpp"
#include "model/kernels/cuda/attention_tree_util.hpp"
#include <algorithm>
#include <gtest/gtest.h>
#include <random>

namespace {

using namespace troupe::cuda::test;
using troupe::cuda::attention_entry;
using troupe::cuda::attention_list;
using troupe::cuda::attention_tiles;
using troupe::cuda::find_attention_tiles;

constexpr int tile_rows = troupe::cuda::attention_gradient_plan::tile_rows;

using relation = std::vector<std::vector<int>>; // [n_rows]: keys that a row sees, ascending

relation expected(const forest& f) {
  relation seen(f.batch.positions.size());
  for (std::size_t s = 0; s < f.batch.segments.size(); ++s) {
    const auto& seg = f.batch.segments[s];
    for (int r = seg.row_begin; r < seg.row_end; ++r) {
      const auto& keys = f.keys.of_segment[s];
      seen[std::size_t(r)].assign(keys.begin(), keys.begin() + seg.position + r - seg.row_begin + 1);
      std::sort(seen[std::size_t(r)].begin(), seen[std::size_t(r)].end());
    }
  }
  return seen;
}

/// What the entries say; by_keys: the lists of keys, whose masks are by key.
relation listed(const attention_tiles& t, bool by_keys) {
  relation seen(t.positions.size());
  const auto& entries = by_keys ? t.key_entries : t.query_entries;
  const auto rows = [&](int tile) { return t.tile_begin[std::size_t(tile) + 1] - t.tile_begin[std::size_t(tile)]; };
  for (const attention_list& list : by_keys ? t.key_lists : t.query_lists)
    for (int e = list.begin; e < list.end; ++e)
      for (int half = 0; half < 2; ++half) {
        const attention_entry& entry = entries[std::size_t(e)];
        const int own = 2 * list.pair + half, mask = entry.mask[half];
        EXPECT_TRUE(mask >= 0 || (rows(own) == tile_rows && rows(entry.tile) == tile_rows));
        EXPECT_TRUE(e == list.begin || entries[std::size_t(e) - 1].tile < entry.tile);
        for (int i = 0; i < tile_rows; ++i)
          for (int j = 0; j < tile_rows; ++j)
            if (mask < 0 || t.masks[std::size_t((2 * mask + by_keys) * tile_rows + i)] >> j & 1) {
              const int mine = t.tile_begin[std::size_t(own)] + i, other = t.tile_begin[std::size_t(entry.tile)] + j;
              EXPECT_TRUE(i < rows(own) && j < rows(entry.tile));
              seen.at(std::size_t(by_keys ? other : mine)).push_back(by_keys ? mine : other);
            }
      }
  for (auto& keys : seen)
    std::sort(keys.begin(), keys.end());
  return seen;
}

void check(const forest& f) {
  const attention_tiles t = find_attention_tiles(f.batch, f.keys);
  ASSERT_EQ(t.tile_begin.size(), std::size_t(2 * t.n_pairs() + 1));
  ASSERT_EQ(t.query_lists.size(), t.key_lists.size());
  EXPECT_EQ(t.tile_begin.front(), 0);
  EXPECT_EQ(t.tile_begin.back(), int(f.batch.positions.size()));
  for (std::size_t i = 1; i < t.tile_begin.size(); ++i)
    EXPECT_TRUE(t.tile_begin[i] >= t.tile_begin[i - 1] && t.tile_begin[i] <= t.tile_begin[i - 1] + tile_rows);
  EXPECT_EQ(t.positions, f.batch.positions);
  EXPECT_EQ(listed(t, false), expected(f));
  EXPECT_EQ(listed(t, true), expected(f));
}

TEST(attention_tiles, list_what_each_row_sees) {
  check({});
  check({{1, {}}});
  check({{64, {}}, {128, {}}, {300, {}}, {5, {}}, {64, {64}}});
  check({{40, {9, 9, 9, 9, 9, 9, 9, 9, 9}}, {130, {200, 1, 70}}, {63, {1, 1, 1}}});
  std::mt19937 random(3);
  for (int round = 0; round < 20; ++round) {
    std::vector<tree> trees(1 + random() % 6);
    for (auto& t : trees) {
      t.prompt = 1 + int(random() % (random() % 2 ? 300 : 20));
      t.responses.resize(random() % 8);
      for (auto& n : t.responses)
        n = 1 + int(random() % (random() % 2 ? 200 : 10));
    }
    check(trees);
  }
}

TEST(attention_tiles, follow_sequences_in_chunks_and_branches_of_branches) {
  forest f;
  const int a = f.add(-1, 0, 70), b = f.add(a, 70, 30), c = f.add(b, 90, 100), d = f.add(a, 10, 20);
  f.add(c, 190, 7), f.add(d, 25, 65), f.add(b, 100, 1);
  check(f);
}

TEST(attention_tiles, are_few_where_responses_are_short) {
  const forest f({{100, std::vector<int>(16, 10)}});
  const attention_tiles t = find_attention_tiles(f.batch, f.keys);
  EXPECT_EQ(t.n_pairs(), 3); // of 260 rows: 64, 64, ... and 4
  const forest one({{4096, {}}});
  EXPECT_EQ(find_attention_tiles(one.batch, one.keys).masks.size(), std::size_t((1 + 64) * 2 * tile_rows)); // the diagonal's, and mask 0
}

} // namespace
