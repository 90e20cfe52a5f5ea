#pragma once
#include "model/blocks.hpp"
#include "model/causal_lm.hpp"
#include "model/compute.hpp"
#include "model/registry.hpp"
#include <memory>
#include <vector>

namespace troupe {

/// The chain of blocks of a model without its head: embedding, layers, ...
template <class T> struct composition {
  std::vector<std::unique_ptr<block<T>>> blocks;
  std::unique_ptr<lm_head<T>> head;
};

/// A causal language model as a list of blocks. T: bf16 or float.
template <class T> class decoder_lm final : public causal_lm {
public:
  decoder_lm(model_config cfg, composition<T> parts, const model_options& options, compute& where);

  const model_config& config() const override { return cfg_; }
  dtype compute_type() const override { return sizeof(T) == 2 ? dtype::bf16 : dtype::f32; }
  std::span<parameter> parameters() override { return parameters_; }
  void publish_masters() override;
  void publish_values(std::span<const std::size_t> indices) override;
  std::unique_ptr<kv_cache> make_cache(std::int32_t n_blocks) override;
  std::size_t cache_block_bytes() const override;
  void forward(const token_batch& batch, kv_cache& cache, std::span<const std::int32_t> logit_rows, float* logits) override;
  target_values score(const packed_batch& batch, float temperature, bool entropy, std::unique_ptr<tape>* save) override;
  void backward(tape& saved, std::span<const float> d_logprob, std::span<const float> d_entropy) override;
  void zero_grads() override;
  float logprob(const float* logits, std::int32_t id, float temperature) const override;

private:
  struct pass_tape;
  void lay_out();
  at::Tensor backward_head(pass_tape& t, std::span<const float> d_logprob, std::span<const float> d_entropy);

  model_config cfg_;
  composition<T> parts_;
  model_options options_;
  compute& where_;
  std::vector<weight*> weights_;
  std::vector<parameter> parameters_;
  std::size_t lowest_trainable_ = 0; // index of the first block with a trained tensor; blocks.size(): none
};

} // namespace troupe
