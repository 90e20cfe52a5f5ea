#pragma once
#include "model/causal_lm.hpp"
#include "model/compute.hpp"
#include "model/parallel/communicator.hpp"

namespace troupe {

/// Gradients of a rank's model become their sums over its data-parallel group, added in rank order: the same bits on every rank.
/// Once between the last `backward` and the update, by all ranks.
void add_gradients_of_replicas(causal_lm& model, const rank_context& ranks, compute& where);

} // namespace troupe
