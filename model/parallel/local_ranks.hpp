#pragma once
#include "model/registry.hpp"
#include <memory>

namespace troupe {

/// A model shared by ranks that are threads of this process, as one causal_lm: learner, rollout, weight sync and checkpoints see
/// whole tensors under their own names, of which ranks hold views. `where` lends its instruction set and its number of threads,
/// shared out among the ranks. Data-parallel ranks take a batch's prompts in turn; their gradients are added in rank order.
/// options.parallel must be null. Throws as make_model; errc::bad_config where ranks cannot share the model.
std::shared_ptr<causal_lm> make_local_ranks(const model_config& cfg, const model_options& options, const mesh& shape,
                                            bool sequence_parallel, compute& where);

/// make_model, or make_local_ranks where the mesh has more than one rank.
std::shared_ptr<causal_lm> make_shared_model(const model_config& cfg, const model_options& options, const mesh& shape,
                                             bool sequence_parallel, compute& where);

} // namespace troupe
