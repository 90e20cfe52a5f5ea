#pragma once
#include "model/block.hpp"
#include "model/parallel/tensor_parallel.hpp"

namespace troupe {

/// The bridge of a split model: linear1 [out, in] column parallel, its output not gathered, a ReLU where the spec says so,
/// linear2 [out, out] row parallel. Each linear's output is rounded to T, as Transformers' module rounds it.
template <class T>
class adapter_block final : public block<T> {
public:
  explicit adapter_block(const block_spec& spec, tensor_parallel tp = {});
  void weights(std::vector<weight*>& all) override;
  void lay_out(compute& where, bool backward) override;
  /// hidden: [rows(n), in] -> [rows(n), out]. Throws errc::bad_shape naming both widths for another one.
  at::Tensor forward(pass& p, const at::Tensor& hidden, saved_tensors* save) override;
  at::Tensor backward(pass& p, const saved_tensors& saved, at::Tensor d_hidden, bool input_gradient) override;

private:
  std::int64_t in_, out_;
  bool relu_;
  tensor_parallel tp_;
  weight weight1_, weight2_;
  stacked_linear<T> linear1_, linear2_;
};

} // namespace troupe
