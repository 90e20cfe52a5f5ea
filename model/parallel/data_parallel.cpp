#include "model/parallel/data_parallel.hpp"
#include "model/parallel/reduce.hpp"
#include <algorithm>

namespace troupe {

replica_parts::replica_parts(const packed_batch& batch, int replicas) : n_targets_(batch.targets.size()) {
  if (replicas > 1 && !batch.tokens.ids.empty())
    parts_ = cut_batch(batch, replicas);
}

void replica_parts::forget_batches() {
  for (auto& p : parts_)
    p.batch = {};
}

std::vector<float> replica_parts::join(const std::vector<std::span<const float>>& from, std::size_t columns) const {
  if (parts_.empty())
    return {from[0].begin(), from[0].end()};
  std::vector<float> all(n_targets_ * columns);
  for (std::size_t d = 0; d < parts_.size(); ++d)
    for (std::size_t i = 0; i < parts_[d].targets.size(); ++i)
      std::copy_n(from[d].begin() + std::ptrdiff_t(i * columns), columns, all.begin() + parts_[d].targets[i] * std::ptrdiff_t(columns));
  return all;
}

std::vector<float> replica_parts::cut(std::size_t replica, std::span<const float> all, std::size_t columns) const {
  if (parts_.empty() || all.empty())
    return {all.begin(), all.end()};
  std::vector<float> own;
  for (const auto i : parts_[replica].targets)
    own.insert(own.end(), all.begin() + i * std::ptrdiff_t(columns), all.begin() + (i + 1) * std::ptrdiff_t(columns));
  return own;
}

void add_gradients_of_replicas(causal_lm& model, const rank_context& ranks, compute& where) {
  if (!ranks.dp)
    return;
  for (const parameter& p : model.parameters())
    if (p.trainable)
      all_reduce(*ranks.dp, where.pool(), p.grad.data(), std::int64_t(p.grad.size()), p.name);
}

} // namespace troupe
