#pragma once
#include "model/batch.hpp"
#include "model/causal_lm.hpp"
#include "model/compute.hpp"
#include "model/parallel/communicator.hpp"
#include <span>
#include <vector>

namespace troupe {

/// How data-parallel replicas share a batch: consecutive prompts each. Pure.
class replica_parts {
public:
  replica_parts(const packed_batch& batch, int replicas);
  std::size_t size() const { return parts_.empty() ? 1 : parts_.size(); } // fewer than replicas when there are fewer prompts
  std::size_t n_targets() const { return n_targets_; }
  std::size_t n_targets_of(std::size_t replica) const { return parts_.empty() ? n_targets_ : parts_[replica].targets.size(); }
  /// `whole`: the batch that this was made of.
  const packed_batch& batch(std::size_t replica, const packed_batch& whole) const { return parts_.empty() ? whole : parts_[replica].batch; }
  /// from: [size][targets of the part, columns] -> [targets of the batch, columns].
  std::vector<float> join(const std::vector<std::span<const float>>& from, std::size_t columns) const;
  /// The other way round: a replica's part; of nothing, nothing.
  std::vector<float> cut(std::size_t replica, std::span<const float> all, std::size_t columns) const;
  /// Their batches are not needed any more.
  void forget_batches();

private:
  std::vector<batch_part> parts_; // empty: one replica has it all
  std::size_t n_targets_;
};

/// Gradients of a rank's model become their sums over its data-parallel group, added in rank order: the same bits on every rank.
/// Once between the last `backward` and the update, by all ranks.
void add_gradients_of_replicas(causal_lm& model, const rank_context& ranks, compute& where);

} // namespace troupe
