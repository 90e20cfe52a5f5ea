#include "model/cuda/arena.hpp"
#include <algorithm>

namespace troupe::cuda {

namespace {
constexpr std::size_t smallest_chunk = std::size_t{64} << 20;
}

void* arena::take(std::size_t bytes) {
  bytes = (std::max<std::size_t>(bytes, 1) + 255) / 256 * 256;
  while (chunk_ < chunks_.size() && used_ + bytes > chunks_[chunk_].size())
    ++chunk_, used_ = 0;
  if (chunk_ == chunks_.size()) {
    const std::size_t size = std::max(bytes, smallest_chunk);
    require_memory(size, "a pass of the model", "lower learner.ppo_max_token_len, rollout.max_num_seqs or --max-num-seqs");
    chunks_.emplace_back(size);
  }
  void* at = static_cast<std::byte*>(chunks_[chunk_].data()) + used_;
  used_ += bytes;
  return at;
}

void arena::reset() { chunk_ = used_ = 0; }

} // namespace troupe::cuda
