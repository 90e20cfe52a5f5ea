#include "rollout/block_allocator.hpp"
#include "core/error.hpp"
#include <string>

namespace troupe {

block_allocator::block_allocator(std::int32_t n_blocks) : users_(std::size_t(n_blocks)) {
  for (std::int32_t b = n_blocks; b-- > 0;)
    free_.push_back(b);
}

std::int32_t block_allocator::allocate() {
  if (free_.empty())
    return -1;
  const std::int32_t b = free_.back();
  free_.pop_back();
  users_[std::size_t(b)] = 1;
  return b;
}

void block_allocator::share(std::int32_t block) {
  if (users_.at(std::size_t(block)) == 0)
    throw error{errc::failed, "block_allocator: block " + std::to_string(block) + " is shared but free"};
  ++users_[std::size_t(block)];
}

void block_allocator::release(std::int32_t block) {
  auto& n = users_.at(std::size_t(block));
  if (n == 0)
    throw error{errc::failed, "block_allocator: block " + std::to_string(block) + " is released but free"};
  if (--n == 0)
    free_.push_back(block);
}

void block_allocator::release(std::vector<std::int32_t>& table) {
  for (const auto b : table)
    release(b);
  table.clear();
}

} // namespace troupe
