#pragma once
#include "model/block.hpp"
#include "model/kernels/elementwise.hpp"
#include "model/parallel/vocabulary.hpp"
#include "model/rope.hpp"
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace troupe {

/// ids -> rows of the embedding; vocabulary parallel.
template <class T>
class embedding_block final : public block<T> {
public:
  explicit embedding_block(const block_spec& spec, tensor_parallel tp = {});
  void weights(std::vector<weight*>& all) override { all.push_back(&table_); }
  void lay_out(compute&, bool) override {}
  at::Tensor forward(pass& p, const at::Tensor& hidden, saved_tensors* save) override; // hidden is ignored
  at::Tensor backward(pass& p, const saved_tensors& saved, at::Tensor d_hidden, bool input_gradient) override;
  weight& table() { return table_; }

private:
  std::vector<std::int32_t> local_ids(const std::vector<std::int32_t>& ids) const; // -1: another rank's
  tensor_parallel tp_;
  weight table_;
};

/// RMSNorm of each head of some columns of q|k|v (Qwen3's queries and keys).
template <class T>
struct head_norm {
  weight gain; // [head_dim]
  std::int64_t first = 0, heads = 0;
  /// In place; raw and inverse: what `backward` needs, filled when not null.
  void forward(compute& where, at::Tensor& qkv, std::int64_t head_dim, float eps, at::Tensor* raw, at::Tensor* inverse) const;
  /// d_qkv f32 in place; the gain's gradient gains.
  void backward(compute& where, at::Tensor& d_qkv, std::int64_t head_dim, const at::Tensor& raw, const at::Tensor& inverse);
};

/// One layer of the Llama kind: x + attention(norm(x)), then x + mlp(norm(x)); biases, head norms and a window as layer_config says.
/// Tensor parallel by heads and by rows of gate and up.
template <class T>
class decoder_block final : public block<T> {
public:
  decoder_block(const block_spec& spec, std::shared_ptr<rope_table> rope, tensor_parallel tp = {});
  void weights(std::vector<weight*>& all) override;
  void lay_out(compute& where, bool backward) override;
  bool has_cache() const override { return true; }
  std::int64_t cache_block_elements() const override { return heads_.block_elements(); }
  at::Tensor forward(pass& p, const at::Tensor& hidden, saved_tensors* save) override;
  at::Tensor backward(pass& p, const saved_tensors& saved, at::Tensor d_hidden, bool input_gradient) override;

private:
  at::Tensor normalised(pass& p, const at::Tensor& x, const weight& norm) const;
  void backward_norm(pass& p, const at::Tensor& d_norm, const at::Tensor& x, const at::Tensor& inverse, weight& norm, at::Tensor* d_hidden);
  void backward_mlp(pass& p, const saved_tensors& saved, at::Tensor& d_hidden);
  void backward_attention(pass& p, const saved_tensors& saved, at::Tensor& d_hidden, bool input_gradient);
  layer_config cfg_; // this rank's share of heads and of the MLP
  tensor_parallel tp_;
  kernels::attention_shape heads_;
  std::shared_ptr<rope_table> rope_;
  std::vector<weight*> biases_of_matrices(const std::vector<weight*>& matrices); // those that there are
  weight input_norm_, q_, k_, v_, o_, post_norm_, gate_, up_, down_;
  std::vector<std::unique_ptr<weight>> biases_;
  std::vector<head_norm<T>> head_norms_; // queries', keys'; or none
  std::vector<weight*> all_;             // in the layout's order
  stacked_linear<T> qkv_, out_, gate_up_, down_linear_;
};

/// Final norm and what follows it, applied to the rows that are asked for: the language-model head, vocabulary parallel; a value
/// or reward head, one "logit" a row, the same on every rank; or nothing, the normalised row being its "logits".
template <class T>
class lm_head {
public:
  /// tied: the embedding's table, or null for a head of its own. copied: a tied head on another stage than the embedding, whose table it
  /// copies.
  lm_head(const block_spec& spec, weight* tied, const tensor_spec* copied = nullptr, tensor_parallel tp = {});
  void weights(std::vector<weight*>& all);
  void lay_out(compute& where, bool backward);
  /// Of the columns that this rank computes.
  const vocabulary_slice& vocabulary() const { return vocabulary_; }
  /// The copy of the embedding's table, null without one.
  weight* copied() { return copied_ ? &own_ : nullptr; }
  /// Rows `rows` of hidden [rows(n_tokens), h], normalised: [rows, h]. gathered and inverse: what `backward` needs, may be null.
  at::Tensor normalise(compute& where, const at::Tensor& hidden, std::int64_t n_tokens, std::span<const std::int32_t> rows,
                       at::Tensor* gathered, at::Tensor* inverse) const;
  /// logits [rows, vocabulary of this rank] f32 of normalised rows begin .. begin+count-1.
  void logits(compute& where, const at::Tensor& normalised, std::int64_t begin, std::int64_t count, float* out) const;
  /// Gradients from d_logits [count, vocabulary of this rank] of the same rows: weights += ..., d_normalised rows written, summed over
  /// ranks.
  void backward_logits(compute& where, const at::Tensor& normalised, std::int64_t begin, std::int64_t count, const at::Tensor& d_logits,
                       at::Tensor& d_normalised) const;
  /// d_hidden [rows(n_tokens), h] f32 (zeros elsewhere) from d_normalised [rows, h].
  at::Tensor backward_norm(compute& where, const at::Tensor& d_normalised, const at::Tensor& gathered, const at::Tensor& inverse,
                           std::span<const std::int32_t> rows, std::int64_t n_tokens) const;
  /// Whether anything of the head is trained.
  bool trainable() const;

private:
  vocabulary_slice slice_of(const block_spec& spec) const;
  tensor_parallel tp_;
  std::int64_t hidden_;
  float eps_;
  bool copied_;
  mutable weight norm_;
  weight own_;
  weight* matrix_;
  vocabulary_slice vocabulary_;
  std::optional<stacked_linear<T>> linear_;
  std::optional<weight> bias_;
};

} // namespace troupe
