#include "learner/learner.hpp"
#include "core/error.hpp"
#include "learner/micro_batch.hpp"
#include "learner/running_mean.hpp"
#include "model/compute.hpp"
#include <algorithm>
#include <chrono>
#include <cmath>
#include <optional>
#include <string>

namespace troupe {

// What the updates of one step add up to.
struct step_metrics {
  running_mean pg_loss, ppo_kl, pg_clipfrac, entropy, kl_loss, grad_norm, lr;
  std::optional<double> logprob_diff_max;
  double reference_seconds = 0;
  std::int64_t updates = 0;
};

learner::learner(const config& cfg, std::shared_ptr<causal_lm> policy, std::shared_ptr<causal_lm> reference, std::int64_t total_steps,
                 compute& where)
    : trainee(cfg, std::move(policy), total_steps, where), reference_(std::move(reference)),
      objective_(cfg.learner, cfg.data.max_response_length) {
  if (objective_.needs_reference() && !reference_)
    throw error{errc::bad_config, "learner.use_kl_loss = true needs a reference model, and none was given"};
}

metric_map learner::step(const std::vector<scored_group>& groups) {
  const auto start = std::chrono::steady_clock::now();
  if (groups.empty())
    throw error{errc::failed, "step " + std::to_string(steps_done() + 1) + ": no group to train on"};
  check_groups(groups);
  const auto size = options().learner.ppo_mini_batch_size > 0 ? std::size_t(options().learner.ppo_mini_batch_size) : groups.size();
  step_metrics metrics;
  for (std::int64_t epoch = 0; epoch < options().learner.ppo_epochs; ++epoch)
    for (std::size_t begin = 0; begin < groups.size(); begin += size)
      train(groups, begin, std::min(begin + size, groups.size()), metrics);
  end_step();

  metric_map out;
  metrics.pg_loss.put(out, "actor/pg_loss");
  metrics.ppo_kl.put(out, "actor/ppo_kl");
  metrics.pg_clipfrac.put(out, "actor/pg_clipfrac");
  metrics.entropy.put(out, "actor/entropy");
  metrics.kl_loss.put(out, "actor/kl_loss");
  metrics.grad_norm.put(out, "actor/grad_norm");
  metrics.lr.put(out, "actor/lr");
  if (metrics.logprob_diff_max)
    out["exact/logprob_diff_max"] = *metrics.logprob_diff_max;
  if (reference_)
    out["timing_s/ref"] = metrics.reference_seconds;
  out["timing_s/update_actor"] = seconds_since(start) - metrics.reference_seconds;
  return out;
}

// One optimizer step on groups [begin, end) of the step. Nothing is updated when it throws.
void learner::train(std::span<const scored_group> all, std::size_t begin, std::size_t end, step_metrics& metrics) {
  const auto groups = all.subspan(begin, end - begin);
  const auto totals = totals_of(groups);
  const bool compare = metrics.updates++ == 0;
  policy().zero_grads();
  loss_sums sums;
  const bool skip_zero = !objective_.needs_entropy() && !objective_.needs_reference();
  // Data-parallel ranks share a micro-batch's prompts among them.
  const std::int64_t max_tokens = options().learner.ppo_max_token_len * options().learner.data_parallel_size;
  for (const auto& micro : cut_micro_batches(groups, begin, max_tokens, skip_zero))
    sums += pass(all, micro, totals, compare, metrics);

  const auto [norm, lr] = apply_gradients();
  metrics.pg_loss.add(sums.policy);
  metrics.grad_norm.add(norm);
  metrics.lr.add(lr);
  if (objective_.needs_reference())
    metrics.kl_loss.add(sums.kl);
  if (sums.tokens > 0) {
    metrics.ppo_kl.add(-sums.log_ratio / double(sums.tokens));
    metrics.pg_clipfrac.add(double(sums.clipped) / double(sums.tokens));
    metrics.entropy.add(sums.entropy_sum / double(sums.tokens));
  }
}

// Forward, loss and backward of one micro-batch.
loss_sums learner::pass(std::span<const scored_group> all, const micro_batch& micro, const loss_totals& totals, bool compare,
                        step_metrics& metrics) {
  const auto temperature = float(options().rollout.temperature);
  std::vector<float> ref;
  if (objective_.needs_reference()) {
    const auto start = std::chrono::steady_clock::now();
    ref = reference_->score(micro.packed, temperature, false, nullptr).logprobs;
    metrics.reference_seconds += seconds_since(start);
  }
  std::unique_ptr<tape> saved;
  const auto values = policy().score(micro.packed, temperature, true, &saved);

  std::vector<std::int64_t> lengths;
  std::vector<float> old;
  std::vector<double> advantages;
  std::size_t at = 0;
  for (const auto& place : micro.samples) {
    const auto& one = all[place.group].group.samples[place.sample];
    if (compare)
      compare_logprobs(one, std::span(values.logprobs).subspan(at, one.output_ids.size()), metrics);
    at += one.output_ids.size();
    lengths.push_back(std::int64_t(one.output_ids.size()));
    old.insert(old.end(), one.logprobs.begin(), one.logprobs.end());
    advantages.insert(advantages.end(), one.output_ids.size(), all[place.group].advantages[place.sample]);
  }
  std::vector<float> d_logprob, d_entropy;
  const auto sums = objective_.evaluate({lengths, values.logprobs, old, advantages, ref, values.entropy}, totals, d_logprob, d_entropy);
  check_finite(all, micro, values, sums);
  policy().backward(*saved, d_logprob, d_entropy);
  return sums;
}

// Against what the rollout recorded, for tokens drawn from the version that is held.
void learner::compare_logprobs(const sample& one, std::span<const float> logprobs, step_metrics& metrics) const {
  for (std::size_t t = 0; t < logprobs.size(); ++t)
    if (one.versions[t] == version())
      metrics.logprob_diff_max = std::max(metrics.logprob_diff_max.value_or(0), std::abs(double(logprobs[t]) - double(one.logprobs[t])));
}

void learner::check_finite(std::span<const scored_group> all, const micro_batch& micro, const target_values& values,
                           const loss_sums& sums) const {
  std::size_t at = 0;
  for (const auto& place : micro.samples) {
    const auto& group = all[place.group].group;
    for (std::size_t t = 0; t < group.samples[place.sample].output_ids.size(); ++t, ++at)
      if (!std::isfinite(values.logprobs[at]))
        throw error{errc::failed, here() + ": the log-probability of prompt " + std::to_string(group.key.index) + ", sample " +
                                      std::to_string(place.sample) + ", token " + std::to_string(t) + " is " +
                                      std::to_string(values.logprobs[at]) + "; nothing was updated (a lower learner.optim.lr may help)"};
  }
  if (!std::isfinite(sums.total))
    throw error{errc::failed,
                here() + ": the loss is " + std::to_string(sums.total) + "; nothing was updated (a lower learner.optim.lr may help)"};
}

} // namespace troupe
