#include "learner/learner.hpp"
#include "core/error.hpp"
#include "learner/checkpoint_files.hpp"
#include "learner/loss.hpp"
#include "learner/micro_batch.hpp"
#include "learner/optimizer.hpp"
#include "model/compute.hpp"
#include <algorithm>
#include <chrono>
#include <cmath>
#include <optional>
#include <string>

namespace troupe {

namespace {

double seconds_since(std::chrono::steady_clock::time_point begin) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

// A metric's mean over a step's updates; absent without one.
class running_mean {
public:
  void add(double x) {
    sum_ += x;
    ++count_;
  }
  void put(metric_map& out, const char* name) const {
    if (count_ > 0)
      out[name] = sum_ / double(count_);
  }

private:
  double sum_ = 0;
  std::int64_t count_ = 0;
};

// What the updates of one step add up to.
struct step_metrics {
  running_mean pg_loss, ppo_kl, pg_clipfrac, entropy, kl_loss, grad_norm, lr;
  std::optional<double> logprob_diff_max;
  double reference_seconds = 0;
  std::int64_t updates = 0;
};

std::vector<parameter*> trainable_of(causal_lm& model) {
  std::vector<parameter*> out;
  for (auto& p : model.parameters()) {
    if (p.master.size() != p.numel() || (p.trainable && p.grad.size() != p.numel()))
      throw error{errc::bad_shape, "learner: tensor " + p.name + " has no master or gradient; load the model for training"};
    if (p.trainable)
      out.push_back(&p);
  }
  if (out.empty())
    throw error{errc::bad_config, "model.trainable matches none of the model's tensors: nothing would be trained"};
  return out;
}

} // namespace

struct learner::impl {
  config cfg;
  std::shared_ptr<causal_lm> policy, reference;
  std::int64_t total_steps;
  compute& where;
  policy_objective objective;
  std::vector<parameter*> trainable;
  adamw optimizer;
  std::int64_t steps = 0;
  std::uint32_t incarnation = 0;

  impl(const config& c, std::shared_ptr<causal_lm> p, std::shared_ptr<causal_lm> r, std::int64_t total, compute& w)
      : cfg(c), policy(std::move(p)), reference(std::move(r)), total_steps(total), where(w),
        objective(c.learner, c.data.max_response_length), trainable(trainable_of(*policy)),
        optimizer(c.learner.optim, std::vector<const parameter*>(trainable.begin(), trainable.end())) {
    if (objective.needs_reference() && !reference)
      throw error{errc::bad_config, "learner.use_kl_loss = true needs a reference model, and none was given"};
  }

  weights_version version() const { return {incarnation, std::uint32_t(steps)}; }
  std::string here() const { return "step " + std::to_string(steps + 1) + ", update " + std::to_string(optimizer.steps() + 1); }

  metric_map step(const std::vector<scored_group>& groups);
  void update(std::span<const scored_group> all, std::size_t begin, std::size_t end, step_metrics& metrics);
  loss_sums pass(std::span<const scored_group> all, const micro_batch& micro, const loss_totals& totals, bool compare,
                 step_metrics& metrics);
  void compare_logprobs(const sample& one, std::span<const float> logprobs, step_metrics& metrics) const;
  void check_finite(std::span<const scored_group> all, const micro_batch& micro, const target_values& values, const loss_sums& sums) const;
  double gradient_norm() const;
};

metric_map learner::impl::step(const std::vector<scored_group>& groups) {
  const auto start = std::chrono::steady_clock::now();
  if (groups.empty())
    throw error{errc::failed, "step " + std::to_string(steps + 1) + ": no group to train on"};
  check_groups(groups);
  const auto size = cfg.learner.ppo_mini_batch_size > 0 ? std::size_t(cfg.learner.ppo_mini_batch_size) : groups.size();
  step_metrics metrics;
  for (std::int64_t epoch = 0; epoch < cfg.learner.ppo_epochs; ++epoch)
    for (std::size_t begin = 0; begin < groups.size(); begin += size)
      update(groups, begin, std::min(begin + size, groups.size()), metrics);
  ++steps;

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
  if (reference)
    out["timing_s/ref"] = metrics.reference_seconds;
  out["timing_s/update_actor"] = seconds_since(start) - metrics.reference_seconds;
  return out;
}

// One optimizer step on groups [begin, end) of the step. Nothing is updated when it throws.
void learner::impl::update(std::span<const scored_group> all, std::size_t begin, std::size_t end, step_metrics& metrics) {
  const auto groups = all.subspan(begin, end - begin);
  const auto totals = totals_of(groups);
  const bool compare = metrics.updates++ == 0;
  policy->zero_grads();
  loss_sums sums;
  const bool skip_zero = !objective.needs_entropy() && !objective.needs_reference();
  // Data-parallel ranks share a micro-batch's prompts among them.
  const std::int64_t max_tokens = cfg.learner.ppo_max_token_len * cfg.learner.data_parallel_size;
  for (const auto& micro : cut_micro_batches(groups, begin, max_tokens, skip_zero))
    sums += pass(all, micro, totals, compare, metrics);

  const double norm = gradient_norm();
  const double lr = learning_rate(cfg.learner.optim, steps + 1, total_steps);
  optimizer.step(where.pool(), trainable, lr, clip_factor(norm, cfg.learner.grad_clip));
  policy->publish_masters();

  metrics.pg_loss.add(sums.policy);
  metrics.grad_norm.add(norm);
  metrics.lr.add(lr);
  if (objective.needs_reference())
    metrics.kl_loss.add(sums.kl);
  if (sums.tokens > 0) {
    metrics.ppo_kl.add(-sums.log_ratio / double(sums.tokens));
    metrics.pg_clipfrac.add(double(sums.clipped) / double(sums.tokens));
    metrics.entropy.add(sums.entropy_sum / double(sums.tokens));
  }
}

// Forward, loss and backward of one micro-batch.
loss_sums learner::impl::pass(std::span<const scored_group> all, const micro_batch& micro, const loss_totals& totals, bool compare,
                              step_metrics& metrics) {
  const auto temperature = float(cfg.rollout.temperature);
  std::vector<float> ref;
  if (objective.needs_reference()) {
    const auto start = std::chrono::steady_clock::now();
    ref = reference->score(micro.packed, temperature, false, nullptr).logprobs;
    metrics.reference_seconds += seconds_since(start);
  }
  std::unique_ptr<tape> saved;
  const auto values = policy->score(micro.packed, temperature, true, &saved);

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
  const auto sums = objective.evaluate({lengths, values.logprobs, old, advantages, ref, values.entropy}, totals, d_logprob, d_entropy);
  check_finite(all, micro, values, sums);
  policy->backward(*saved, d_logprob, d_entropy);
  return sums;
}

// Against what the rollout recorded, for tokens drawn from the version that is held.
void learner::impl::compare_logprobs(const sample& one, std::span<const float> logprobs, step_metrics& metrics) const {
  for (std::size_t t = 0; t < logprobs.size(); ++t)
    if (one.versions[t] == version())
      metrics.logprob_diff_max = std::max(metrics.logprob_diff_max.value_or(0), std::abs(double(logprobs[t]) - double(one.logprobs[t])));
}

void learner::impl::check_finite(std::span<const scored_group> all, const micro_batch& micro, const target_values& values,
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

double learner::impl::gradient_norm() const {
  std::vector<std::span<const float>> grads;
  for (const auto* p : trainable)
    grads.push_back(p->grad);
  const double norm = global_norm(where.pool(), grads);
  if (std::isfinite(norm))
    return norm;
  for (const auto* p : trainable)
    if (const std::span<const float> one[] = {p->grad}; !std::isfinite(global_norm(where.pool(), one)))
      throw error{errc::failed,
                  here() + ": the gradient of " + p->name + " is not finite; nothing was updated (a lower learner.optim.lr may help)"};
  throw error{errc::failed, here() + ": the gradient's norm is " + std::to_string(norm) + "; nothing was updated"};
}

learner::learner(const config& cfg, std::shared_ptr<causal_lm> policy, std::shared_ptr<causal_lm> reference, std::int64_t total_steps,
                 compute& where)
    : impl_(std::make_unique<impl>(cfg, std::move(policy), std::move(reference), total_steps, where)) {}

learner::~learner() = default;

metric_map learner::step(const std::vector<scored_group>& groups) { return impl_->step(groups); }
std::int64_t learner::steps_done() const { return impl_->steps; }
weights_version learner::version() const { return impl_->version(); }
void learner::set_incarnation(std::uint32_t incarnation) { impl_->incarnation = incarnation; }

void learner::save(const std::filesystem::path& dir, const std::filesystem::path& source) const {
  const dtype declared = impl_->cfg.model.dtype == compute_dtype::bfloat16 ? dtype::bf16 : dtype::f32;
  write_learner_files(dir, source, *impl_->policy, declared, impl_->optimizer.state(),
                      {impl_->steps, impl_->optimizer.steps(), impl_->incarnation});
}

void learner::load(const std::filesystem::path& dir) {
  const auto counters = read_learner_files(dir, *impl_->policy, impl_->optimizer.state());
  impl_->policy->publish_masters();
  impl_->optimizer.set_steps(counters.optimizer_steps);
  impl_->steps = counters.step;
  impl_->incarnation = counters.incarnation;
}

} // namespace troupe
