#include "model/parallel/data_parallel.hpp"
#include "model/parallel/reduce.hpp"

namespace troupe {

void add_gradients_of_replicas(causal_lm& model, const rank_context& ranks, compute& where) {
  if (!ranks.dp)
    return;
  for (const parameter& p : model.parameters())
    if (p.trainable)
      all_reduce(*ranks.dp, where.pool(), p.grad.data(), std::int64_t(p.grad.size()), p.name);
}

} // namespace troupe
