#pragma once
#include "model/causal_lm.hpp"
#include "model/compute.hpp"
#include "model/kernels/attention.hpp"
#include "model/layout.hpp"
#include <ATen/core/Tensor.h>
#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace troupe {

/// A rank's part of a model's tensor in its three forms. master and grad are undefined where it is not trained.
/// Rows may lie apart (a column slice of a tensor that ranks of one process share): stride(0).
struct weight {
  std::string name;
  std::vector<std::int64_t> shape; // of the part
  std::vector<std::int64_t> global_shape;
  int dim = 0; // the part is [begin, begin + shape[dim]) along it
  std::int64_t begin = 0;
  int replicas = 1; // consecutive tensor-parallel ranks that hold the same part
  bool trainable = false;
  at::Tensor value;  // compute type
  at::Tensor master; // f32; shares memory with value where the compute type is f32
  at::Tensor grad;   // f32
};

/// The part of that tensor that a tensor-parallel rank holds. Throws errc::bad_config when the ranks cannot share it.
weight make_weight(const tensor_spec& spec, int rank = 0, int size = 1);

template <class T>
T* data(const at::Tensor& t) {
  return static_cast<T*>(t.mutable_data_ptr());
}
/// Uninitialised [rows, columns] of T (bf16 or float).
template <class T>
at::Tensor empty_matrix(std::int64_t rows, std::int64_t columns);
/// x [n, columns] f32 rounded to T, for the GEMMs; x itself where T is f32.
template <class T>
at::Tensor narrowed(compute& where, const at::Tensor& x);

/// One pass over a batch, as the blocks see it.
struct pass {
  compute& where;
  const token_batch& tokens;
  void* layer_cache = nullptr;             // this layer's key/value blocks
  const kernels::key_rows* keys = nullptr; // backward only
};

/// What one block keeps for its backward pass; which tensors is the block's own business.
using saved_tensors = std::vector<at::Tensor>;

/// A part of a model's chain, with its own width. hidden: [n_tokens, width] of T in and out; gradients of hidden: f32.
/// One caller at a time.
template <class T>
class block {
public:
  virtual ~block() = default;
  /// Appends the block's tensors; pointers stay valid as long as the block.
  virtual void weights(std::vector<weight*>& all) = 0;
  /// Lays the values of the block's tensors out for the kernels; backward: also for the backward pass.
  virtual void lay_out(compute& where, bool backward) = 0;
  virtual bool has_cache() const { return false; }
  virtual std::int64_t cache_block_elements() const { return 0; }
  /// save: filled when not null.
  virtual at::Tensor forward(pass& p, const at::Tensor& hidden, saved_tensors* save) = 0;
  /// d_hidden: [n_tokens, width] f32, of the output; becomes that of the input (returned), which is skipped unless `input_gradient`.
  virtual at::Tensor backward(pass& p, const saved_tensors& saved, at::Tensor d_hidden, bool input_gradient) = 0;
};

/// A linear map y = x W^T on the exact GEMM, W [n, k] made of tensors stacked by rows (q, k, v; gate, up).
template <class T>
class stacked_linear {
public:
  /// gated: two tensors, gate and up, interleaved so that the GEMM can fuse SiLU(gate) * up. biases: one a part, or none; added before
  /// rounding unless another rank adds them (`added` false), their gradients are formed either way.
  stacked_linear(std::vector<weight*> parts, bool gated, std::vector<weight*> biases = {}, bool added = true);
  std::int64_t outputs() const { return outputs_; } // columns of y; gated: of the activation
  std::int64_t inputs() const { return inputs_; }
  std::int64_t raw_outputs() const { return gated_ ? (outputs_ + 15) / 16 * 32 : outputs_; } // columns without the gating
  void lay_out(compute& where, bool backward);
  /// y [n, outputs]; residual [n, outputs] is added after rounding.
  at::Tensor forward(compute& where, const at::Tensor& x, const at::Tensor* residual = nullptr) const;
  /// y [n, raw_outputs] without the gating.
  at::Tensor forward_raw(compute& where, const at::Tensor& x) const;
  /// y in f32.
  void forward_f32(compute& where, const T* x, std::int64_t n, float* y) const;
  /// dx [n, inputs] f32 from dy [n, raw_outputs] of T.
  at::Tensor backward_input(compute& where, const at::Tensor& dy) const;
  /// grads of the trainable parts += dy^T x; x [n, inputs], dy [n, raw_outputs].
  void backward_weights(compute& where, const at::Tensor& dy, const at::Tensor& x) const;
  bool any_trainable() const;

private:
  std::vector<weight*> parts_;
  void lay_out_bias();
  void backward_biases(const at::Tensor& dy) const;
  // Part and place of a raw column.
  std::pair<std::size_t, std::int64_t> place_of(std::int64_t column) const;
  bool gated_;
  std::vector<weight*> biases_;
  bool added_;
  std::int64_t outputs_ = 0, inputs_ = 0;
  kernels::packed_weight<T> forward_, backward_;
  std::vector<float> bias_; // [raw_outputs padded to 32] as the GEMM adds it; empty: none
};

} // namespace troupe
