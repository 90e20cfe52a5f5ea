#pragma once
#include "model/batch.hpp"
#include "model/causal_lm.hpp"
#include <cstdint>
#include <memory>
#include <vector>

namespace troupe {

class compute;

/// What a teacher says of some targets: its distribution over its k most probable tokens, [n_targets, k] each.
struct teacher_top {
  std::int64_t k = 0;
  std::vector<std::int32_t> ids;   // ascending in each row
  std::vector<float> probability;  // sums to 1 in each row
  std::vector<double> neg_entropy; // [n_targets] sum of q log q
};

/// A frozen model whose distributions another one learns. One caller at a time.
class teacher {
public:
  /// top_k: how many of its tokens count; 0: all.
  teacher(std::shared_ptr<causal_lm> model, std::int64_t top_k, compute& where);
  std::int64_t vocab() const { return model_->config().vocab_size; }
  /// Whether all tokens count; then `logits` is asked, else `most_probable`.
  bool whole() const { return top_k_ == vocab(); }
  /// Ties: the lower id. Throws errc::failed where a logit is not finite.
  teacher_top most_probable(const packed_batch& batch) const;
  /// [n_targets, vocab], untempered. Throws errc::failed where one is not finite.
  std::vector<float> logits(const packed_batch& batch) const;

private:
  std::shared_ptr<causal_lm> model_;
  std::int64_t top_k_;
  compute& where_;
};

/// KL(teacher || student) of each row and its gradient: kl [rows], weight [rows] d loss / d kl, logits of both [rows, vocab];
/// `student` becomes d loss / d student logits. Source: arXiv:1503.02531, section 2, at temperature 1.
class full_divergence {
public:
  full_divergence(compute& where, std::vector<float> teacher, const std::vector<float>& student, std::int64_t vocab);
  const std::vector<float>& kl() const { return kl_; }
  /// student: the same logits; overwritten.
  void gradient(const std::vector<float>& weight, std::vector<float>& student) const;

private:
  compute& where_;
  std::int64_t vocab_;
  std::vector<float> probability_; // the teacher's, [rows, vocab]
  std::vector<float> kl_;
};

} // namespace troupe
