#include "core/error.hpp"
#include "rollout/block_allocator.hpp"
#include <gtest/gtest.h>
#include <map>
#include <rapidcheck/gtest.h>
#include <set>
#include <vector>

namespace troupe {
namespace {

TEST(block_allocator, gives_each_block_once_and_says_when_there_is_none) {
  block_allocator a(3);
  EXPECT_EQ(a.allocate(), 0);
  EXPECT_EQ(a.allocate(), 1);
  EXPECT_EQ(a.allocate(), 2);
  EXPECT_EQ(a.allocate(), -1);
  a.release(1);
  EXPECT_EQ(a.n_free(), 1);
  EXPECT_EQ(a.allocate(), 1);
}

TEST(block_allocator, misuse_is_an_error) {
  block_allocator a(2);
  EXPECT_THROW(a.release(0), error);
  EXPECT_THROW(a.share(1), error);
}

TEST(block_allocator, kept_blocks_are_taken_last_and_in_the_order_of_their_release) {
  block_allocator a(4);
  std::vector<std::int32_t> table = {a.allocate(), a.allocate(), a.allocate()};
  for (const auto b : table)
    a.keep(b);
  a.release(table); // the end first
  EXPECT_TRUE(table.empty());
  EXPECT_EQ(a.n_free(), 4);
  a.share(1); // found again, and released as the latest
  EXPECT_EQ(a.users(1), 1);
  EXPECT_EQ(a.n_free(), 3);
  a.release(1);
  for (const std::int32_t want : {3, 2, 0, 1, -1})
    EXPECT_EQ(a.allocate(), want);
  a.release(2);
  EXPECT_THROW(a.share(2), error); // taken since: kept no longer
}

TEST(block_allocator, forgotten_blocks_are_as_any) {
  block_allocator a(3);
  const auto x = a.allocate(), y = a.allocate();
  a.keep(x);
  a.keep(y);
  a.release(x);
  a.forget();
  EXPECT_THROW(a.share(x), error);
  a.release(y);
  EXPECT_THROW(a.share(y), error);
  EXPECT_EQ(a.n_free(), 3);
  EXPECT_THROW(a.keep(y), error);
}

RC_GTEST_PROP(block_allocator_property, a_block_is_free_when_its_last_user_released_it, ()) {
  block_allocator a(8);
  std::map<std::int32_t, int> users; // those with any
  std::vector<std::int32_t> kept;    // free ones, the next to be taken first
  std::set<std::int32_t> keeps;
  for (const auto op : *rc::gen::container<std::vector<int>>(80, rc::gen::inRange(0, 5))) {
    if (op == 0) {
      const auto b = a.allocate();
      RC_ASSERT((b < 0) == (users.size() == 8));
      if (b >= 0) {
        RC_ASSERT(users.emplace(b, 1).second);
        if (keeps.erase(b) > 0) {
          RC_ASSERT(users.size() + kept.size() == 9); // no other was left
          RC_ASSERT(b == kept.front());
          kept.erase(kept.begin());
        }
      }
    } else if (op == 1 && !kept.empty()) {
      const auto it = kept.begin() + *rc::gen::inRange<int>(0, int(kept.size()));
      a.share(*it);
      users[*it] = 1;
      kept.erase(it);
    } else if (!users.empty()) {
      const auto it = std::next(users.begin(), *rc::gen::inRange<int>(0, int(users.size())));
      if (op == 2) {
        a.share(it->first);
        ++it->second;
      } else if (op == 3) {
        a.keep(it->first);
        keeps.insert(it->first);
      } else {
        a.release(it->first);
        if (--it->second == 0) {
          if (keeps.count(it->first) != 0)
            kept.push_back(it->first);
          users.erase(it);
        }
      }
    }
    RC_ASSERT(a.n_free() == 8 - int(users.size()));
  }
}

} // namespace
} // namespace troupe
