#pragma once
#include <cstdint>
#include <vector>

namespace troupe {

/// Hands out the ids of a cache's blocks and counts who uses each: a prompt's full blocks belong to all its samples.
/// One thread.
class block_allocator {
public:
  explicit block_allocator(std::int32_t n_blocks);
  std::int32_t n_blocks() const { return std::int32_t(users_.size()); }
  std::int32_t n_free() const { return std::int32_t(free_.size()); }
  std::int32_t users(std::int32_t block) const { return users_[std::size_t(block)]; }
  /// A block with one user, or -1 when none is free.
  std::int32_t allocate();
  void share(std::int32_t block);   // one user more
  void release(std::int32_t block); // one user less; free at 0
  /// Releases all and empties the table.
  void release(std::vector<std::int32_t>& table);

private:
  std::vector<std::int32_t> users_; // [n_blocks]
  std::vector<std::int32_t> free_;  // the lowest id last at first
};

} // namespace troupe
