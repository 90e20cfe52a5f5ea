#include "core/error.hpp"
#include "rollout/block_allocator.hpp"
#include <gtest/gtest.h>
#include <map>
#include <rapidcheck/gtest.h>

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

RC_GTEST_PROP(block_allocator_property, a_block_is_free_when_its_last_user_released_it, ()) {
  block_allocator a(8);
  std::map<std::int32_t, int> users;
  for (const auto op : *rc::gen::container<std::vector<int>>(60, rc::gen::inRange(0, 3))) {
    if (op == 0) {
      const auto b = a.allocate();
      RC_ASSERT((b < 0) == (users.size() == 8));
      if (b >= 0)
        RC_ASSERT(users.emplace(b, 1).second);
    } else if (!users.empty()) {
      const auto it = std::next(users.begin(), *rc::gen::inRange<int>(0, int(users.size())));
      if (op == 1) {
        a.share(it->first);
        ++it->second;
      } else {
        a.release(it->first);
        if (--it->second == 0)
          users.erase(it);
      }
    }
    RC_ASSERT(a.n_free() == 8 - int(users.size()));
  }
}

} // namespace
} // namespace troupe
