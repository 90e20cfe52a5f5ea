#pragma once
#include "model/block.hpp"
#include "model/kernels/elementwise.hpp"
#include "model/rope.hpp"
#include <memory>

namespace troupe {

/// ids -> rows of the embedding.
template <class T> class embedding_block final : public block<T> {
public:
  embedding_block(std::string name, std::int64_t vocab, std::int64_t hidden);
  void weights(std::vector<weight*>& all) override { all.push_back(&table_); }
  void lay_out(compute&, bool) override {}
  at::Tensor forward(pass& p, const at::Tensor& hidden, saved_tensors* save) override; // hidden is ignored
  at::Tensor backward(pass& p, const saved_tensors& saved, at::Tensor d_hidden, bool input_gradient) override;
  weight& table() { return table_; }

private:
  weight table_;
};

/// One Llama layer: x + attention(norm(x)), then x + mlp(norm(x)).
template <class T> class decoder_block final : public block<T> {
public:
  /// prefix: e.g. "model.layers.3."
  decoder_block(const std::string& prefix, const layer_config& cfg, std::shared_ptr<rope_table> rope);
  void weights(std::vector<weight*>& all) override;
  void lay_out(compute& where, bool backward) override;
  bool has_cache() const override { return true; }
  std::int64_t cache_block_elements() const override { return heads_.block_elements(); }
  at::Tensor forward(pass& p, const at::Tensor& hidden, saved_tensors* save) override;
  at::Tensor backward(pass& p, const saved_tensors& saved, at::Tensor d_hidden, bool input_gradient) override;

private:
  void backward_mlp(pass& p, const saved_tensors& saved, at::Tensor& d_hidden);
  void backward_attention(pass& p, const saved_tensors& saved, at::Tensor& d_hidden, bool input_gradient);
  layer_config cfg_;
  kernels::attention_shape heads_;
  std::shared_ptr<rope_table> rope_;
  weight input_norm_, q_, k_, v_, o_, post_norm_, gate_, up_, down_;
  stacked_linear<T> qkv_, out_, gate_up_, down_linear_;
};

/// Final norm and language-model head, applied to the rows that are asked for.
template <class T> class lm_head {
public:
  /// tied: the embedding's table, or null for a head of its own.
  lm_head(std::int64_t vocab, std::int64_t hidden, double eps, weight* tied);
  void weights(std::vector<weight*>& all);
  void lay_out(compute& where, bool backward);
  std::int64_t vocab() const { return vocab_; }
  /// Rows `rows` of hidden [n_tokens, h], normalised: [rows, h]. gathered and inverse: what `backward` needs, may be null.
  at::Tensor normalise(compute& where, const at::Tensor& hidden, std::span<const std::int32_t> rows, at::Tensor* gathered, at::Tensor* inverse) const;
  /// logits [rows, vocab] f32 of normalised rows begin .. begin+count-1.
  void logits(compute& where, const at::Tensor& normalised, std::int64_t begin, std::int64_t count, float* out) const;
  /// Gradients from d_logits [count, vocab] of the same rows: weights += ..., d_normalised rows written.
  void backward_logits(compute& where, const at::Tensor& normalised, std::int64_t begin, std::int64_t count, const at::Tensor& d_logits,
                       at::Tensor& d_normalised) const;
  /// d_hidden [n_tokens, h] f32 (zeros elsewhere) from d_normalised [rows, h].
  at::Tensor backward_norm(compute& where, const at::Tensor& d_normalised, const at::Tensor& gathered, const at::Tensor& inverse,
                           std::span<const std::int32_t> rows, std::int64_t n_tokens) const;
  /// Whether anything of the head is trained.
  bool trainable() const;

private:
  std::int64_t vocab_, hidden_;
  float eps_;
  mutable weight norm_;
  weight own_;
  weight* matrix_;
  stacked_linear<T> linear_;
};

} // namespace troupe
