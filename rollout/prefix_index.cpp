#include "rollout/prefix_index.hpp"
#include <algorithm>

namespace troupe {

std::uint64_t prefix_index::hash(chain before, std::span<const std::int32_t> tokens) {
  std::uint64_t h = before;
  for (const auto id : tokens) {
    h = (h ^ std::uint32_t(id)) * 0x9e3779b97f4a7c15u;
    h ^= h >> 32;
  }
  return h;
}

prefix_index::entry prefix_index::find(chain before, std::span<const std::int32_t> tokens) const {
  const auto [begin, end] = blocks_.equal_range(hash(before, tokens));
  for (auto it = begin; it != end; ++it) {
    const content& c = known_.at(it->second);
    if (c.before == before && std::equal(tokens.begin(), tokens.end(), c.tokens.begin(), c.tokens.end()))
      return {it->second, c.end};
  }
  return {};
}

prefix_index::chain prefix_index::add(chain before, std::span<const std::int32_t> tokens, std::int32_t block) {
  content& c = known_[block];
  c.before = before;
  c.end = ++last_;
  std::copy(tokens.begin(), tokens.end(), c.tokens.begin());
  blocks_.emplace(hash(before, tokens), block);
  return c.end;
}

void prefix_index::remove(std::int32_t block) {
  const auto known = known_.find(block);
  if (known == known_.end())
    return;
  auto [it, end] = blocks_.equal_range(hash(known->second.before, known->second.tokens));
  it = std::find_if(it, end, [&](const auto& b) { return b.second == block; });
  blocks_.erase(it);
  known_.erase(known);
}

void prefix_index::clear() {
  known_.clear();
  blocks_.clear();
}

} // namespace troupe
