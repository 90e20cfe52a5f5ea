#include "rollout/prefix_index.hpp"
#include <gtest/gtest.h>
#include <map>
#include <rapidcheck/gtest.h>
#include <vector>

namespace troupe {
namespace {

using tokens = std::vector<std::int32_t>;

tokens block_of(std::int32_t last) {
  tokens t(kv_block_tokens, 7);
  t.back() = last;
  return t;
}

TEST(prefix_index, a_block_is_known_by_its_tokens_and_all_before) {
  prefix_index index;
  const auto a = index.add(0, block_of(1), 10);
  const auto b = index.add(a, block_of(2), 11);
  EXPECT_EQ(index.find(0, block_of(1)).block, 10);
  EXPECT_EQ(index.find(0, block_of(1)).end, a);
  EXPECT_EQ(index.find(a, block_of(2)).end, b);
  EXPECT_EQ(index.find(0, block_of(2)).block, -1);
  EXPECT_EQ(index.find(a, block_of(1)).block, -1);
  EXPECT_EQ(index.find(b, block_of(2)).block, -1);
}

TEST(prefix_index, chains_of_before_are_never_found_again) {
  prefix_index index;
  const auto old = index.add(0, block_of(1), 10);
  index.remove(10);
  index.remove(10);
  EXPECT_EQ(index.find(0, block_of(1)).block, -1);
  const auto again = index.add(0, block_of(1), 12);
  EXPECT_NE(again, old);
  index.clear();
  EXPECT_EQ(index.size(), 0u);
  EXPECT_NE(index.add(0, block_of(1), 12), again);
}

// Against a map from whole contents to blocks.
RC_GTEST_PROP(prefix_index_property, finds_what_a_map_of_whole_contents_finds, ()) {
  prefix_index index;
  std::map<std::vector<tokens>, std::int32_t> known; // contents of a chain -> its last block
  std::vector<std::pair<std::vector<tokens>, prefix_index::chain>> chains = {{{}, 0}};
  std::int32_t next = 0;
  for (int i = 0; i < 60; ++i) {
    const auto [before, chain] = chains[*rc::gen::inRange<std::size_t>(0, chains.size())];
    if (!before.empty() && known.count(before) == 0)
      continue; // removed: nothing follows it
    auto content = before;
    content.push_back(block_of(*rc::gen::inRange(0, 3)));
    const auto found = index.find(chain, content.back());
    const auto want = known.find(content);
    RC_ASSERT(found.block == (want == known.end() ? -1 : want->second));
    if (found.block < 0) {
      chains.emplace_back(content, index.add(chain, content.back(), next));
      known[content] = next++;
    } else if (*rc::gen::inRange(0, 4) == 0) {
      index.remove(found.block);
      const auto begins = [&](const auto& c) {
        return c.size() >= content.size() && std::equal(content.begin(), content.end(), c.begin());
      };
      std::erase_if(known, [&](const auto& k) { return begins(k.first); });
      std::erase_if(chains, [&](const auto& c) { return begins(c.first); });
    }
  }
}

} // namespace
} // namespace troupe
