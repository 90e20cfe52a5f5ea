#pragma once
#include "actors/learner.hpp"
#include "actors/rollout.hpp"
#include "model/compute.hpp"
#include "model/config.hpp"
#include "model/parallel/local_ranks.hpp"
#include "model/parallel/process_ranks.hpp"
#include <memory>
#include <string>

namespace troupe {

// What the one-process run and the worker processes build alike.

dtype compute_type(const config& cfg);
generator_options make_generator_options(const config& cfg, const model_config& model, std::vector<std::int32_t> end_tokens,
                                         compute& where);
/// Whether rollouts need the run's tokenizer.
inline bool needs_texts(const config& cfg) { return !cfg.rollout.stop.empty() || !cfg.rollout.serve.empty(); }
/// Tokens of prompt and response that a rollout takes.
std::int64_t longest_sequence(const config& cfg, const model_config& model);
/// The policy with masters and gradients, from model.path, on the learner's ranks; generates: the rollout runs on it too.
std::shared_ptr<causal_lm> load_policy(const config& cfg, bool generates, compute& where, const load_progress& progress = {});
/// The rollout's model on its ranks, weights zero.
std::shared_ptr<causal_lm> make_rollout_model(const config& cfg, const model_config& model, compute& where);
/// Of the processes that share a model, one's part of it and the whole that it makes with the others.
struct rank_models {
  std::shared_ptr<causal_lm> whole, own;
};
shared_layout learner_layout(const config& cfg);
/// As load_policy, load_reference and make_rollout_model, by every rank alike: each reads its own part of the files.
rank_models load_policy_part(const config& cfg, process_ranks& ranks, compute& where);
std::shared_ptr<causal_lm> load_reference_part(const config& cfg, process_ranks& ranks, compute& where);
rank_models make_rollout_part(const config& cfg, const model_config& model, process_ranks& ranks, compute& where);
/// The reference model, null unless a KL is asked for.
std::shared_ptr<causal_lm> load_reference(const config& cfg, compute& where, const load_progress& progress = {});
/// The teacher of run.task = "distill", frozen, from distill.teacher, on one rank; null for another task.
std::shared_ptr<causal_lm> load_teacher(const config& cfg, compute& where, const load_progress& progress = {});

} // namespace troupe
