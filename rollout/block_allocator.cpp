#include "rollout/block_allocator.hpp"
#include "core/error.hpp"
#include <string>

namespace troupe {

block_allocator::block_allocator(std::int32_t n_blocks) : blocks_(std::size_t(n_blocks)) {
  for (std::int32_t b = n_blocks; b-- > 0;)
    unkept_.push_back(b);
}

block_allocator::block& block_allocator::used(std::int32_t id, const char* what) {
  block& b = blocks_.at(std::size_t(id));
  if (b.users == 0)
    throw error{errc::failed, "block_allocator: block " + std::to_string(id) + " is " + what + " but free"};
  return b;
}

void block_allocator::append(std::int32_t id) {
  block& b = blocks_[std::size_t(id)];
  b.before = last_;
  b.after = -1;
  (last_ < 0 ? first_ : blocks_[std::size_t(last_)].after) = id;
  last_ = id;
  ++n_kept_free_;
}

void block_allocator::unlink(std::int32_t id) {
  const block& b = blocks_[std::size_t(id)];
  (b.before < 0 ? first_ : blocks_[std::size_t(b.before)].after) = b.after;
  (b.after < 0 ? last_ : blocks_[std::size_t(b.after)].before) = b.before;
  --n_kept_free_;
}

std::int32_t block_allocator::allocate() {
  std::int32_t id = first_;
  if (!unkept_.empty()) {
    id = unkept_.back();
    unkept_.pop_back();
  } else if (id >= 0) {
    unlink(id);
  } else {
    return -1;
  }
  blocks_[std::size_t(id)].users = 1;
  blocks_[std::size_t(id)].kept = false;
  return id;
}

void block_allocator::share(std::int32_t id) {
  block& b = blocks_.at(std::size_t(id));
  if (b.users == 0 && b.kept)
    unlink(id);
  else
    used(id, "shared");
  ++b.users;
}

void block_allocator::release(std::int32_t id) {
  block& b = used(id, "released");
  if (--b.users > 0)
    return;
  if (b.kept)
    append(id);
  else
    unkept_.push_back(id);
}

void block_allocator::release(std::vector<std::int32_t>& table) {
  for (auto it = table.rbegin(); it != table.rend(); ++it)
    release(*it);
  table.clear();
}

void block_allocator::keep(std::int32_t id) { used(id, "kept").kept = true; }

void block_allocator::forget() {
  for (auto id = first_; id >= 0; id = blocks_[std::size_t(id)].after)
    unkept_.push_back(id);
  first_ = last_ = -1;
  n_kept_free_ = 0;
  for (auto& b : blocks_)
    b.kept = false;
}

} // namespace troupe
