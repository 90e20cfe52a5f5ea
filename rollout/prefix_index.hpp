#pragma once
#include "model/batch.hpp"
#include <array>
#include <cstdint>
#include <span>
#include <unordered_map>

namespace troupe {

/// Finds full blocks by what they hold: the tokens of a block and of all before it, compared in full, so that nothing is ever
/// taken for something else. It knows one version of the weights: clear it when they change. One thread.
class prefix_index {
public:
  /// Names a sequence of full blocks; 0 is the empty one.
  using chain = std::uint64_t;
  struct entry {
    std::int32_t block = -1; // -1: none
    chain end = 0;           // the chain with this block
  };
  /// The block that holds `tokens` [kv_block_tokens] after `before`.
  entry find(chain before, std::span<const std::int32_t> tokens) const;
  /// Enters a block of which find knows no equal. -> the chain with it.
  chain add(chain before, std::span<const std::int32_t> tokens, std::int32_t block);
  /// Another content is coming: forgets the block if it is known.
  void remove(std::int32_t block);
  void clear();
  std::size_t size() const { return known_.size(); }

private:
  struct content {
    chain before = 0, end = 0;
    std::array<std::int32_t, kv_block_tokens> tokens{};
  };
  static std::uint64_t hash(chain before, std::span<const std::int32_t> tokens);

  std::unordered_map<std::int32_t, content> known_; // by block
  std::unordered_multimap<std::uint64_t, std::int32_t> blocks_;
  chain last_ = 0; // never given twice
};

} // namespace troupe
