#pragma once
#include "model/kernels/elementwise.hpp"
#include "model/parallel/tensor_parallel.hpp"
#include <span>

namespace troupe {

/// A rank's slice of the vocabulary: logits, softmax and their gradients over all of it, merged in rank order (docs/numerics.md).
class vocabulary_slice {
public:
  /// total ids; this rank has [begin, begin + count), every rank but the last ones the same number.
  vocabulary_slice(const tensor_parallel& tp, std::int64_t total, std::int64_t begin, std::int64_t count)
      : tp_(tp), total_(total), begin_(begin), count_(count) {}
  std::int64_t begin() const { return begin_; }
  std::int64_t count() const { return count_; }
  std::int64_t total() const { return total_; }

  struct target {
    std::int32_t row, id;
  };
  /// logits [rows, count] of this rank -> stats [rows] of whole rows, and the logits of `targets`.
  void softmax(compute& where, const float* logits, std::int64_t rows, float temperature, bool moment, std::span<const target> targets,
               kernels::softmax_stats* stats, float* target_logits) const;
  /// The stats that `softmax` gives for a whole row of logits [total].
  kernels::softmax_stats softmax_row(isa which, const float* logits, float temperature) const;
  /// This rank's part of what reaches a whole row.
  kernels::row_gradient own(const kernels::row_gradient& whole) const;
  /// logits [rows, count] of this rank -> out [rows, total], on every rank.
  void gather(const float* logits, std::int64_t rows, float* out) const;

private:
  bool holds(std::int32_t id) const { return id >= begin_ && id < begin_ + count_; }
  std::int64_t widest() const { return (total_ + tp_.size() - 1) / tp_.size(); }
  const tensor_parallel& tp_;
  std::int64_t total_, begin_, count_;
};

} // namespace troupe
