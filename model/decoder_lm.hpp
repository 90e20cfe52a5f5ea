#pragma once
#include "model/blocks.hpp"
#include "model/causal_lm.hpp"
#include "model/compute.hpp"
#include "model/registry.hpp"
#include <functional>
#include <memory>
#include <vector>

namespace troupe {

/// The chain of blocks of a model without its head: embedding, layers, ... With pipeline stages, one stage's slice of it.
template <class T>
struct composition {
  std::vector<std::unique_ptr<block<T>>> blocks;
  std::unique_ptr<lm_head<T>> head; // null: the last stage's
  weight* shared_table = nullptr;   // a tied table of which the first and the last stage hold a copy: this stage's
  std::size_t first = 0;            // number of the first block in the whole chain
  std::size_t lowest_trainable = 0; // number of the first block with a trained tensor; that of the head where no block has one
  std::int64_t in = 0, out = 0;     // widths at the stage's ends
  std::int64_t columns = 0;         // of the whole model's outputs
};

/// The blocks that make_model chains for these options. Throws errc::bad_config where ranks cannot share the model.
template <class T>
composition<T> compose(const model_config& cfg, const model_options& options);

/// A causal language model as a list of blocks, or one rank's part of it: then every call is made by all ranks of the mesh
/// alike, and gives all of them the same values. T: bf16 or float.
template <class T>
class decoder_lm final : public causal_lm {
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
  std::vector<float> outputs(const packed_batch& batch, std::unique_ptr<tape>* save) override;
  void backward_outputs(tape& saved, std::span<const float> d_outputs) override;
  float logprob(const float* logits, std::int32_t id, float temperature) const override;

private:
  struct part_tape;
  struct pass_tape;
  void place(weight& w);
  void lay_out(bool trained_alone);
  bool first_stage() const { return parts_.first == 0; }
  std::size_t lowest() const; // index of the first own block that a gradient reaches; blocks.size(): none
  at::Tensor receive(std::int64_t rows, std::int64_t width, bool gradient) const;
  void pass_on(const at::Tensor& x, int to) const;
  void require_logits() const;
  at::Tensor score_blocks(part_tape& t, bool save);
  std::unique_ptr<pass_tape> run_parts(const packed_batch& batch, bool save,
                                       const std::function<void(part_tape&, const at::Tensor& hidden)>& head);
  void score_head(part_tape& t, const at::Tensor& hidden, bool entropy, bool save, target_values& values);
  void output_head(part_tape& t, const at::Tensor& hidden, bool save, float* out);
  void backward_parts(pass_tape& t, const std::function<at::Tensor(part_tape&)>& head);
  void backward_part(part_tape& t, const std::function<at::Tensor(part_tape&)>& head);
  at::Tensor backward_head(part_tape& t, std::span<const float> d_logprob, std::span<const float> d_entropy);
  at::Tensor backward_output_head(part_tape& t, std::span<const float> d_outputs);
  void share_table_gradient(const at::Tensor& before);

  model_config cfg_;
  composition<T> parts_;
  model_options options_;
  compute& where_;
  std::vector<weight*> weights_;
  std::vector<bool> trained_; // whether an own block has a trained tensor
  std::vector<parameter> parameters_;
  rank_context ranks_;
  tensor_parallel tp_;
};

} // namespace troupe
