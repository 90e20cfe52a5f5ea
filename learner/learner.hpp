#pragma once
#include "core/metrics.hpp"
#include "learner/loss.hpp"
#include "learner/trainee.hpp"
#include <memory>
#include <span>
#include <vector>

namespace troupe {

struct micro_batch;
struct step_metrics;

/// Updates a policy from batches of scored groups. One thread. The same batches in the same order give the same weights, bit for bit.
class learner : public trainee {
public:
  /// policy: made with model_options::training. reference: null unless a KL is asked for. total_steps: for the schedule.
  /// `where` must outlive the learner; it may be the models' own.
  learner(const config& cfg, std::shared_ptr<causal_lm> policy, std::shared_ptr<causal_lm> reference, std::int64_t total_steps,
          compute& where);
  /// One step: all mini-batches and epochs of `groups` (dispatch order; advantages filled in), then the model's values are published.
  /// Returns actor/*, exact/logprob_diff_max and timing_s/* of the step.
  metric_map step(const std::vector<scored_group>& groups);

private:
  void train(std::span<const scored_group> all, std::size_t begin, std::size_t end, step_metrics& metrics);
  loss_sums pass(std::span<const scored_group> all, const micro_batch& micro, const loss_totals& totals, bool compare,
                 step_metrics& metrics);
  void compare_logprobs(const sample& one, std::span<const float> logprobs, step_metrics& metrics) const;
  void check_finite(std::span<const scored_group> all, const micro_batch& micro, const target_values& values, const loss_sums& sums) const;
  std::shared_ptr<causal_lm> reference_;
  policy_objective objective_;
};

} // namespace troupe
