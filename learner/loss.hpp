#pragma once
#include "core/config.hpp"
#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace troupe {

/// Sums of one micro-batch's tokens, already divided by the whole mini-batch's counts: contributions of its micro-batches add up.
struct loss_sums {
  double policy = 0, kl = 0, entropy = 0; // each aggregated as `loss_agg_mode` says
  double total = 0;                       // policy + kl_loss_coef * kl - entropy_coeff * entropy
  // Plain sums over the tokens passed, for metrics.
  std::int64_t tokens = 0, clipped = 0;
  double log_ratio = 0, entropy_sum = 0;
  loss_sums& operator+=(const loss_sums& other) noexcept;
};

/// One micro-batch: whole samples, their tokens one after another.
struct loss_input {
  std::span<const std::int64_t> lengths;         // [n_samples] tokens of each
  std::span<const float> logprobs, old_logprobs; // [n_tokens]
  std::span<const double> advantages;            // [n_tokens]
  std::span<const float> ref_logprobs;           // [n_tokens]; empty unless use_kl_loss
  std::span<const float> entropy;                // [n_tokens]; empty when it was not computed
};

/// What the whole mini-batch (one optimizer step) holds, samples left out of the pass included.
struct loss_totals {
  std::int64_t tokens = 0, samples = 0;
};

/// Policy loss, KL and entropy terms of a configuration (docs/algorithms.md). Pure; any thread; float64 a token in a fixed order.
class policy_objective {
public:
  /// max_response_length: L of seq-mean-token-sum-norm where loss_scale_factor is 0.
  /// Throws errc::bad_config for an unknown policy_loss, loss_agg_mode or kl_loss_type, listing the known ones.
  policy_objective(const learner_section& options, std::int64_t max_response_length);
  bool needs_entropy() const noexcept { return options_.entropy_coeff != 0; }
  bool needs_reference() const noexcept { return options_.use_kl_loss; }
  /// d_logprob, d_entropy: [n_tokens], d total / d value; d_entropy is left empty without an entropy term.
  /// Throws errc::bad_shape when sizes disagree.
  loss_sums evaluate(const loss_input& in, const loss_totals& totals, std::vector<float>& d_logprob, std::vector<float>& d_entropy) const;

  /// One token: loss and d loss / d logp.
  struct term {
    double value = 0, gradient = 0;
    bool clipped = false;
  };
  /// A sample's tokens. logp, old, advantage: [n]; terms: [n] out.
  using loss_function = void (*)(const learner_section&, std::span<const float> logp, std::span<const float> old,
                                 std::span<const double> advantage, std::span<term> terms);
  using kl_function = term (*)(double logp, double ref);
  /// A token's share of the loss; length: tokens of its sample, scale: L.
  using weight_function = double (*)(const loss_totals&, double length, double scale);

private:
  learner_section options_;
  double scale_length_;
  loss_function loss_;
  kl_function kl_;
  weight_function weight_, policy_weight_; // of KL and entropy; of the policy loss
};

std::vector<std::string> policy_losses();
std::vector<std::string> loss_aggregations();
std::vector<std::string> kl_loss_types();

} // namespace troupe
