#include "actors/parts.hpp"
#include "model/kernels/thread_pool.hpp"
#include "model/registry.hpp"
#include <algorithm>

namespace troupe {

dtype compute_type(const config& cfg) { return cfg.model.dtype == compute_dtype::float32 ? dtype::f32 : dtype::bf16; }

generator_options make_generator_options(const config& cfg, const model_config& model, std::vector<std::int32_t> end_tokens,
                                         compute& where) {
  generator_options out;
  out.max_num_seqs = cfg.rollout.max_num_seqs;
  out.max_sequence = std::min(model.max_position_embeddings, cfg.data.max_prompt_length + cfg.data.max_response_length);
  out.eos_token_ids = std::move(end_tokens);
  out.parallel_for = [&where](std::int64_t n, const std::function<void(std::int64_t)>& f) { where.pool().each(n, f); };
  return out;
}

std::shared_ptr<causal_lm> load_policy(const config& cfg, compute& where) {
  return load_model(cfg.model.path, {compute_type(cfg), true, cfg.model.trainable}, where);
}

std::shared_ptr<causal_lm> load_reference(const config& cfg, compute& where) {
  if (!cfg.learner.use_kl_loss && !cfg.algorithm.use_kl_in_reward)
    return nullptr;
  const std::string& path = cfg.reference.path.empty() ? cfg.model.path : cfg.reference.path;
  return load_model(path, {compute_type(cfg), false, {}}, where);
}

} // namespace troupe
