#pragma once
#include "actors/learner.hpp"
#include "actors/rollout.hpp"
#include "model/compute.hpp"
#include "model/config.hpp"
#include <memory>
#include <string>

namespace troupe {

// What the one-process run and the worker processes build alike.

dtype compute_type(const config& cfg);
generator_options make_generator_options(const config& cfg, const model_config& model, std::vector<std::int32_t> end_tokens,
                                         compute& where);
/// The policy with masters and gradients, from model.path, on the learner's ranks; generates: the rollout runs on it too.
std::shared_ptr<causal_lm> load_policy(const config& cfg, bool generates, compute& where);
/// The rollout's model on its ranks, weights zero.
std::shared_ptr<causal_lm> make_rollout_model(const config& cfg, const model_config& model, compute& where);
/// The reference model, null unless a KL is asked for.
std::shared_ptr<causal_lm> load_reference(const config& cfg, compute& where);
/// The teacher of run.task = "distill", frozen, from distill.teacher, on one rank; null for another task.
std::shared_ptr<causal_lm> load_teacher(const config& cfg, compute& where);

} // namespace troupe
