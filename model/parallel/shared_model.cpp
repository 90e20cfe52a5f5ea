#include "core/error.hpp"
#include "model/parallel/local_ranks.hpp"

namespace troupe {

namespace {

// A model whose generation has other ranks than its training; both read the same tensors.
class shared_model final : public causal_lm {
public:
  shared_model(std::shared_ptr<causal_lm> training, std::shared_ptr<causal_lm> generating)
      : training_(std::move(training)), generating_(std::move(generating)) {}

  const model_config& config() const override { return training_->config(); }
  dtype compute_type() const override { return training_->compute_type(); }
  std::span<parameter> parameters() override { return training_->parameters(); }
  void publish_masters() override {
    training_->publish_masters();
    generating_->publish_values();
  }
  void publish_values(std::span<const std::size_t> indices) override {
    training_->publish_values(indices);
    generating_->publish_values(indices);
  }
  std::unique_ptr<kv_cache> make_cache(std::int32_t n_blocks) override { return generating_->make_cache(n_blocks); }
  std::size_t cache_block_bytes() const override { return generating_->cache_block_bytes(); }
  void forward(const token_batch& batch, kv_cache& cache, std::span<const std::int32_t> logit_rows, float* logits) override {
    generating_->forward(batch, cache, logit_rows, logits);
  }
  target_values score(const packed_batch& batch, float temperature, bool entropy, std::unique_ptr<tape>* save) override {
    return training_->score(batch, temperature, entropy, save);
  }
  void backward(tape& saved, std::span<const float> d_logprob, std::span<const float> d_entropy) override {
    training_->backward(saved, d_logprob, d_entropy);
  }
  std::vector<float> outputs(const packed_batch& batch, std::unique_ptr<tape>* save) override { return training_->outputs(batch, save); }
  void backward_outputs(tape& saved, std::span<const float> d_outputs) override { training_->backward_outputs(saved, d_outputs); }
  void zero_grads() override { training_->zero_grads(); }
  void sum_gradients() override { training_->sum_gradients(); }
  float logprob(const float* logits, std::int32_t id, float temperature) const override {
    return generating_->logprob(logits, id, temperature);
  }

private:
  const std::shared_ptr<causal_lm> training_, generating_;
};

} // namespace

std::shared_ptr<causal_lm> make_shared_model(const model_config& cfg, const model_options& options, const shared_layout& layout,
                                             compute& where) {
  auto training = layout.training.size() == 1 ? make_model(cfg, options, where)
                                              : make_local_ranks(cfg, options, layout.training, layout.sequence_parallel, where);
  if (layout.generating_tp == 0 || layout.generating_tp == layout.training.tp)
    return training;
  const model_options reading{options.compute_type, false, {}, nullptr};
  auto generating = make_local_ranks(cfg, reading, {1, 1, layout.generating_tp}, false, where, training.get());
  return std::make_shared<shared_model>(std::move(training), std::move(generating));
}

} // namespace troupe
