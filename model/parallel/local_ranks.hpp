#pragma once
#include "model/registry.hpp"
#include <memory>

namespace troupe {

/// A model shared by ranks that are threads of this process, as one causal_lm: learner, rollout, weight sync and checkpoints see
/// whole tensors under their own names, of which ranks hold views. `where` lends its instruction set and its number of threads,
/// shared out among the ranks. Data-parallel ranks take a batch's prompts in turn; their gradients are added in rank order.
/// options.parallel must be null. Throws as make_model; errc::bad_config where ranks cannot share the model.
/// values_of: a whole model whose `value`s the ranks read instead of tensors of their own, options.training then false; it must
/// live as long.
std::shared_ptr<causal_lm> make_local_ranks(const model_config& cfg, const model_options& options, const mesh& shape,
                                            bool sequence_parallel, compute& where, causal_lm* values_of = nullptr);

/// How one process's learner and rollout share a model.
struct shared_layout {
  mesh training;                  // of score and backward
  bool sequence_parallel = false; // there
  int generating_tp = 0;          // of forward; 0: as in training
};

/// make_model where one rank does it all; else ranks of this process. With another tensor-parallel size for generation a second
/// set of ranks reads the same tensors.
std::shared_ptr<causal_lm> make_shared_model(const model_config& cfg, const model_options& options, const shared_layout& layout,
                                             compute& where);

} // namespace troupe
