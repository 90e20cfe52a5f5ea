#pragma once
#include "model/cuda/arena.hpp"
#include "model/cuda/device_batch.hpp"
#include "model/cuda/device_tp.hpp"
#include "model/cuda/device_weights.hpp"
#include "model/kernels/cuda/attention.hpp"
#include "model/kernels/cuda/linear.hpp"
#include "model/layout.hpp"
#include "model/rope.hpp"
#include <memory>
#include <vector>

namespace troupe::cuda {

/// What every block of a pass needs.
struct device_pass {
  matmul& products;
  const device_tp& tp;
  stream where = nullptr;
  dtype type = dtype::bf16;
  arena& memory; // of what outlives the block
  arena* work;   // of what the block behind this one reads at most
  const device_batch& tokens;
  void* layer_cache = nullptr; // this layer's blocks
  void* attention_scratch = nullptr;
  const attention_gradient_plan* gradient = nullptr; // backward only
  void* empty(std::int64_t rows, std::int64_t columns, bool lasting = false) const {
    return (lasting ? memory : *work).take(std::size_t(rows * columns) * size_of(type));
  }
  float* empty_f32(std::int64_t rows, std::int64_t columns) const { return work->take_array<float>(std::size_t(rows * columns)); }
  /// y [n, rows of w] = x w^T + bias.
  void* linear(const void* x, std::int64_t n, const stacked& w, const stacked& bias, bool lasting = false) const;
  /// y [n, rows of w] summed over the ranks, of which the first adds the bias: w's columns are shared by them.
  void* row_parallel(const void* x, std::int64_t n, const stacked& w, const stacked& bias, const char* what, bool lasting = false) const;
  /// grad [the same shape as `like`] += part, of which several ranks may hold the same.
  void add_gradient(const float* part, const stacked& like, float* grad) const;
  /// The gradients of `linear`'s weights gain; dy [n, rows of w] of the compute type.
  void linear_backward(const void* dy, const void* x, std::int64_t n, const stacked& w, const stacked& bias) const;
  /// dx [n, columns of w] f32. shared: every rank has a part of w's rows, so that the sum over ranks is wanted.
  float* input_gradient(const void* dy, std::int64_t n, const stacked& w, bool shared) const;
  void* narrowed(const float* x, std::int64_t count) const;
};

/// The residual stream between two blocks: `sum`, and `delta`, which is added to it at the next norm (null: nothing is).
struct residual {
  void* sum = nullptr;
  void* delta = nullptr;
};

/// What a layer keeps for its backward pass, the device's memory; queries and keys before their norms where there are such.
struct saved_layer {
  void *input = nullptr, *qkv = nullptr, *raw_qk = nullptr, *attended = nullptr, *middle = nullptr, *gate_up = nullptr,
       *act_input = nullptr;
  float* lse = nullptr;
};

/// Cosines and sines by position on the device; grows.
class device_rope {
public:
  device_rope(const rope_config& rope, std::int64_t head_dim) : table_(rope, head_dim), head_dim_(head_dim) {}
  /// Valid for positions up to `last`. moved: set when an earlier pointer is stale.
  const float* upto(std::int64_t last, bool& moved);

private:
  rope_table table_;
  std::int64_t head_dim_, positions_ = 0;
  device_buffer memory_;
};

/// One block of the chain on a GPU, its kernels in order; the twins of model/blocks.hpp and model/adapter_block.hpp.
class device_block {
public:
  device_block(const block_spec& spec, const device_weights& weights, std::shared_ptr<device_rope> rope, int ranks = 1);
  const block_spec& spec() const { return spec_; }
  bool has_cache() const { return spec_.kind == block_kind::decoder; }
  const attention_shape& heads() const { return heads_; }
  device_rope* rope() const { return rope_.get(); }
  bool trained() const { return trained_; }
  /// cosines: rope()'s table, decoders only. save: filled when not null.
  residual forward(const device_pass& p, residual x, const float* cosines, saved_layer* save) const;
  /// d_hidden [n, out] f32 of the output -> of the input (the same memory where widths agree); null unless `input_gradient`.
  float* backward(const device_pass& p, const saved_layer& saved, float* d_hidden, const float* cosines, bool input_gradient) const;

private:
  residual decoder_forward(const device_pass& p, residual x, const float* cosines, saved_layer* save) const;
  bool takes_few_rows(const device_pass& p) const;
  residual few_rows_forward(const device_pass& p, residual x, const float* cosines) const;
  void normalise_heads(const device_pass& p, void* qkv) const;
  void decoder_backward(const device_pass& p, const saved_layer& saved, float* d_hidden, const float* cosines) const;
  void mlp_backward(const device_pass& p, const saved_layer& saved, float* d_hidden) const;
  void attention_backward(const device_pass& p, const saved_layer& saved, float* d_hidden, const float* cosines) const;
  void* normalised(const device_pass& p, const void* x, const stacked& norm) const;
  void norm_backward(const device_pass& p, const float* dy, const void* x, const stacked& norm, float* d_hidden) const;
  block_spec spec_;
  attention_shape heads_;
  std::shared_ptr<device_rope> rope_;
  bool trained_;
  stacked input_norm_, qkv_, qkv_bias_, q_norm_, k_norm_, o_, o_bias_, post_norm_, gate_up_, gate_up_bias_, down_, down_bias_;
  stacked table_, linear1_, linear2_;
};

} // namespace troupe::cuda
