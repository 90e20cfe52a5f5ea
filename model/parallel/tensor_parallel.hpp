#pragma once
#include "model/block.hpp"
#include "model/parallel/communicator.hpp"
#include <memory>
#include <string_view>
#include <vector>

namespace troupe {

/// The tensor-parallel group as blocks see it; without a group, one rank, and everything below hands its argument back.
/// With sequence parallelism a rank holds the rows rank * k .. of the residual stream, k = ceil(n_tokens / size), the last ones
/// zero where size does not divide; all rows exist between gather_rows and sum_rows alone. One thread a rank.
class tensor_parallel {
public:
  tensor_parallel() = default;
  tensor_parallel(std::shared_ptr<communicator> group, bool sequence) : group_(std::move(group)), sequence_(group_ && sequence) {}
  int rank() const { return group_ ? group_->rank() : 0; }
  int size() const { return group_ ? group_->size() : 1; }
  bool sequence() const { return sequence_; }
  communicator& group() const { return *group_; }
  /// Rows of the residual stream on this rank.
  std::int64_t rows(std::int64_t n_tokens) const { return sequence_ ? (n_tokens + size() - 1) / size() : n_tokens; }

  /// x [rows(n), w] of T -> [n, w]: what a column-parallel linear reads. Its gradient is sum_rows.
  template <class T>
  at::Tensor gather_rows(const at::Tensor& x, std::int64_t n_tokens, std::string_view what) const;
  /// Parts [n, w] of T -> their sum over ranks in rank order, this rank's rows(n) of it, + residual [rows(n), w]. Its gradient is
  /// gather_rows.
  template <class T>
  at::Tensor sum_rows(compute& where, at::Tensor part, const at::Tensor* residual, std::string_view what) const;
  /// This rank's rows(n) of x [n, w], the padding zero.
  at::Tensor own_rows(const at::Tensor& x) const;
  /// y [n, columns] of T, a slice of at most `widest` columns a rank -> [n, total] on every rank (a column-parallel linear's
  /// gather_output).
  template <class T>
  at::Tensor gather_columns(const at::Tensor& y, std::int64_t widest, std::int64_t total, std::string_view what) const;

  /// x [n, size * own] of T, the same on every rank -> this rank's columns [n, own]. Its gradient is gather_columns.
  template <class T>
  at::Tensor own_columns(const at::Tensor& x) const;

private:
  std::shared_ptr<communicator> group_;
  bool sequence_ = false;
};

/// y = x W^T + residual, W row parallel: x [n, inputs of this rank], or, unless input_is_parallel, [n, inputs of all ranks];
/// y [rows(n), outputs].
template <class T>
at::Tensor row_parallel(compute& where, const tensor_parallel& tp, const stacked_linear<T>& linear, const at::Tensor& x,
                        const at::Tensor* residual, std::string_view what, bool input_is_parallel = true);
/// dx f32, of the shape of its x, from dy [n, outputs] of T (all rows: gather_rows).
template <class T>
at::Tensor row_parallel_backward(compute& where, const tensor_parallel& tp, const stacked_linear<T>& linear, const at::Tensor& dy,
                                 std::string_view what, bool input_is_parallel = true);

/// While it lives, gradients of these weights are this rank's part; `add` sums them over `replicas` consecutive ranks, the ones
/// that hold the same tensor, in rank order, and adds the sum to what the gradients held before.
class partial_gradients {
public:
  partial_gradients(const tensor_parallel& tp, int replicas, const std::vector<weight*>& weights);
  ~partial_gradients();
  partial_gradients(const partial_gradients&) = delete;
  partial_gradients& operator=(const partial_gradients&) = delete;
  void add(compute& where, std::string_view what);

private:
  void restore();
  const tensor_parallel& tp_;
  int replicas_;
  std::vector<weight*> weights_;
  std::vector<at::Tensor> before_;
};

} // namespace troupe
