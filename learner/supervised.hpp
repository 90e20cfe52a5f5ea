#pragma once
#include "core/metrics.hpp"
#include "experience/sft_rows.hpp"
#include "learner/loss.hpp"
#include "learner/teacher.hpp"
#include "learner/trainee.hpp"
#include <memory>
#include <optional>
#include <span>
#include <vector>

namespace troupe {

/// Updates a model from given answers: by the cross-entropy of their tokens (`sft`), or by the KL from a teacher's distribution
/// to the model's at those tokens (`distill`). One thread. The same rows in the same order give the same weights, bit for bit.
class supervised_learner : public trainee {
public:
  using rows_view = std::span<const sft_row* const>;
  /// policy: made with model_options::training. teacher: of `distill`, null for `sft`; its vocabulary must be the policy's
  /// (errc::bad_config). `where` must outlive the learner.
  supervised_learner(const config& cfg, std::shared_ptr<causal_lm> policy, std::shared_ptr<causal_lm> teacher, std::int64_t total_steps,
                     compute& where);
  /// One step: all mini-batches and epochs of `rows`, then the model's values are published.
  /// Returns train/loss, actor/{grad_norm,lr} and timing_s/* of the step. Throws errc::failed where a loss is not finite.
  metric_map step(rows_view rows);
  /// The loss of `rows` as one mini-batch; nothing is updated.
  double loss(rows_view rows);

private:
  struct micro;
  double run(rows_view rows, bool train);
  double pass(const micro& m, const loss_totals& totals, bool train);
  double pass_likelihood(const micro& m, const loss_totals& totals, bool train);
  double pass_top(const micro& m, const loss_totals& totals, bool train);
  double pass_full(const micro& m, const loss_totals& totals, bool train);
  double weigh(const micro& m, const loss_totals& totals, const std::vector<float>& losses, std::vector<float>& d_loss) const;
  std::vector<micro> cut(rows_view rows, std::int64_t max_targets) const;
  teacher_top ask_teacher(const micro& m) const;
  policy_objective objective_;
  std::optional<teacher> teacher_;
  double teacher_seconds_ = 0;
};

} // namespace troupe
