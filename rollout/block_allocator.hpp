#pragma once
#include <cstdint>
#include <vector>

namespace troupe {

/// Hands out the ids of a cache's blocks and counts who uses each: a prompt's full blocks belong to all its samples.
/// A block can be kept: once free it may be shared again, until it is taken because no other is free, the one that was
/// released first before the others. One thread.
class block_allocator {
public:
  explicit block_allocator(std::int32_t n_blocks);
  std::int32_t n_blocks() const { return std::int32_t(blocks_.size()); }
  /// Blocks without users, kept ones among them.
  std::int32_t n_free() const { return std::int32_t(unkept_.size()) + n_kept_free_; }
  std::int32_t users(std::int32_t block) const { return blocks_[std::size_t(block)].users; }
  /// A block with one user, kept no longer; -1 when none is free.
  std::int32_t allocate();
  void share(std::int32_t block);   // one user more; a block without users must be kept
  void release(std::int32_t block); // one user less; free at 0
  /// Releases all, the last first, and empties the table: of a kept sequence, the end is taken before the beginning.
  void release(std::vector<std::int32_t>& table);
  /// Keeps a block that has users.
  void keep(std::int32_t block);
  /// No block is kept any longer.
  void forget();

private:
  struct block {
    std::int32_t users = 0;
    bool kept = false;
    std::int32_t before = -1, after = -1; // among the free and kept ones, in the order of their release
  };
  block& used(std::int32_t id, const char* what);
  void append(std::int32_t id);
  void unlink(std::int32_t id);

  std::vector<block> blocks_;        // [n_blocks]
  std::vector<std::int32_t> unkept_; // free; the lowest id last at first
  std::int32_t first_ = -1, last_ = -1, n_kept_free_ = 0;
};

} // namespace troupe
