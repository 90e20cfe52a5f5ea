#include "actors/parts.hpp"
#include "model/kernels/thread_pool.hpp"
#include "model/parallel/local_ranks.hpp"
#include "model/parallel/process_model.hpp"
#include <algorithm>

namespace troupe {

dtype compute_type(const config& cfg) { return cfg.model.dtype == compute_dtype::float32 ? dtype::f32 : dtype::bf16; }

std::int64_t longest_sequence(const config& cfg, const model_config& model) {
  return std::min(model.max_position_embeddings, cfg.data.max_prompt_length + cfg.data.max_response_length);
}

generator_options make_generator_options(const config& cfg, const model_config& model, std::vector<std::int32_t> end_tokens,
                                         compute& where) {
  generator_options out;
  out.max_num_seqs = cfg.rollout.max_num_seqs;
  out.max_sequence = longest_sequence(cfg, model);
  out.eos_token_ids = std::move(end_tokens);
  if (const auto& ahead = cfg.rollout.speculative; ahead.method != "off")
    out.speculative = {.num_speculative_tokens = ahead.num_speculative_tokens, .disable_by_batch_size = ahead.disable_by_batch_size};
  out.parallel_for = [&where](std::int64_t n, const std::function<void(std::int64_t)>& f) { where.pool().each(n, f); };
  return out;
}

shared_layout learner_layout(const config& cfg) {
  const learner_section& l = cfg.learner;
  return {{int(l.pipeline_parallel_size), int(l.data_parallel_size), int(l.tensor_parallel_size)}, l.sequence_parallel, 0};
}

std::shared_ptr<causal_lm> load_policy(const config& cfg, bool generates, compute& where, const load_progress& progress) {
  shared_layout layout = learner_layout(cfg);
  if (generates)
    layout.generating_tp = int(cfg.rollout.tensor_parallel_size);
  auto model = make_shared_model(load_model_config(cfg.model.path), {compute_type(cfg), true, cfg.model.trainable, nullptr}, layout, where);
  load_weights(*model, cfg.model.path, {&where, progress});
  return model;
}

std::shared_ptr<causal_lm> make_rollout_model(const config& cfg, const model_config& model, compute& where) {
  const mesh shape{1, 1, int(cfg.rollout.tensor_parallel_size)};
  return make_shared_model(model, {compute_type(cfg), false, cfg.model.trainable, nullptr}, {shape, false, 0}, where);
}

rank_models load_policy_part(const config& cfg, process_ranks& ranks, compute& where) {
  rank_models out;
  out.whole = make_process_model("policy", load_model_config(cfg.model.path), {compute_type(cfg), true, cfg.model.trainable, nullptr},
                                 cfg.learner.sequence_parallel, ranks, where, &out.own);
  load_weights(*out.own, cfg.model.path, {&where});
  return out;
}

rank_models make_rollout_part(const config& cfg, const model_config& model, process_ranks& ranks, compute& where) {
  rank_models out;
  out.whole = make_process_model("rollout", model, {compute_type(cfg), false, cfg.model.trainable, nullptr}, false, ranks, where, &out.own);
  return out;
}

/// Empty: none is asked for.
static std::string reference_path(const config& cfg) {
  if (!cfg.learner.use_kl_loss && !cfg.algorithm.use_kl_in_reward)
    return "";
  return cfg.reference.path.empty() ? cfg.model.path : cfg.reference.path;
}

// On the learner's ranks: at step 0 the KL of equal models is then 0 to the last bit.
std::shared_ptr<causal_lm> load_reference(const config& cfg, compute& where, const load_progress& progress) {
  const std::string path = reference_path(cfg);
  if (path.empty())
    return nullptr;
  auto model = make_shared_model(load_model_config(path), {compute_type(cfg), false, {}, nullptr}, learner_layout(cfg), where);
  load_weights(*model, path, {&where, progress});
  return model;
}

std::shared_ptr<causal_lm> load_reference_part(const config& cfg, process_ranks& ranks, compute& where) {
  const std::string path = reference_path(cfg);
  if (path.empty())
    return nullptr;
  std::shared_ptr<causal_lm> own;
  auto model = make_process_model("reference", load_model_config(path), {compute_type(cfg), false, {}, nullptr},
                                  cfg.learner.sequence_parallel, ranks, where, &own);
  load_weights(*own, path, {&where});
  return model;
}

std::shared_ptr<causal_lm> load_teacher(const config& cfg, compute& where, const load_progress& progress) {
  if (cfg.run.task != run_task::distill)
    return nullptr;
  return load_model(cfg.distill.teacher, {compute_type(cfg), false, {}, nullptr}, where, progress);
}

} // namespace troupe
