#include "learner/supervised.hpp"
#include "core/error.hpp"
#include "learner/running_mean.hpp"
#include "model/compute.hpp"
#include <algorithm>
#include <cmath>
#include <limits>
#include <string>

namespace troupe {

namespace {

// Logits of as many targets exist at once, of one model.
constexpr std::int64_t most_logits = std::int64_t{1} << 26;

// The aggregation of learner.loss_agg_mode over -value: REINFORCE with an advantage of 1, and no other term.
learner_section plain_loss(learner_section options) {
  options.policy_loss = "reinforce";
  options.entropy_coeff = 0;
  options.use_kl_loss = false;
  return options;
}

packed_batch pack(supervised_learner::rows_view rows) {
  batch_builder builder;
  for (const auto* row : rows)
    builder.add_sequence(row->ids, row->targets);
  return builder.take();
}

} // namespace

// Rows that go through the model together.
struct supervised_learner::micro {
  rows_view rows;
  std::int64_t tokens = 0, targets = 0;
};

supervised_learner::supervised_learner(const config& cfg, std::shared_ptr<causal_lm> policy, std::shared_ptr<causal_lm> with,
                                       std::int64_t total_steps, compute& where)
    : trainee(cfg, std::move(policy), total_steps, where), objective_(plain_loss(cfg.learner), cfg.data.max_response_length) {
  if (!with)
    return;
  teacher_.emplace(std::move(with), cfg.distill.top_k, where);
  if (teacher_->vocab() != this->policy().config().vocab_size)
    throw error{errc::bad_config, "distill.teacher: its vocabulary has " + std::to_string(teacher_->vocab()) + " tokens, the model's has " +
                                      std::to_string(this->policy().config().vocab_size) + "; they must be one"};
}

metric_map supervised_learner::step(rows_view rows) {
  const auto start = std::chrono::steady_clock::now();
  if (rows.empty())
    throw error{errc::failed, "step " + std::to_string(steps_done() + 1) + ": no row to train on"};
  const auto size = options().learner.ppo_mini_batch_size > 0 ? std::size_t(options().learner.ppo_mini_batch_size) : rows.size();
  running_mean train_loss, grad_norm, rate;
  teacher_seconds_ = 0;
  for (std::int64_t epoch = 0; epoch < options().learner.ppo_epochs; ++epoch)
    for (std::size_t begin = 0; begin < rows.size(); begin += size) {
      policy().zero_grads();
      train_loss.add(run(rows.subspan(begin, std::min(size, rows.size() - begin)), true));
      const auto [norm, lr] = apply_gradients();
      grad_norm.add(norm);
      rate.add(lr);
    }
  end_step();

  metric_map out;
  train_loss.put(out, "train/loss");
  grad_norm.put(out, "actor/grad_norm");
  rate.put(out, "actor/lr");
  if (teacher_)
    out["timing_s/ref"] = teacher_seconds_;
  out["timing_s/update_actor"] = seconds_since(start) - teacher_seconds_;
  return out;
}

double supervised_learner::loss(rows_view rows) { return run(rows, false); }

// Forward and, with `train`, backward over `rows`: gradients are scaled by the counts of all of them, however they are cut.
double supervised_learner::run(rows_view rows, bool train) {
  loss_totals totals;
  totals.samples = std::int64_t(rows.size());
  for (const auto* row : rows)
    totals.tokens += std::int64_t(row->targets.size());
  const bool whole_logits = teacher_ && teacher_->whole();
  double sum = 0;
  for (const auto& m : cut(rows, whole_logits ? most_logits / teacher_->vocab() : std::numeric_limits<std::int64_t>::max()))
    sum += pass(m, totals, train);
  return sum;
}

// In order, each of at most ppo_max_token_len tokens a data-parallel rank and max_targets targets; a row above that goes alone.
std::vector<supervised_learner::micro> supervised_learner::cut(rows_view rows, std::int64_t max_targets) const {
  const std::int64_t max_tokens = options().learner.ppo_max_token_len * options().learner.data_parallel_size;
  std::vector<micro> out;
  std::size_t begin = 0;
  micro open;
  for (std::size_t i = 0; i < rows.size(); ++i) {
    const auto tokens = std::int64_t(rows[i]->ids.size()), targets = std::int64_t(rows[i]->targets.size());
    if (i > begin && (open.tokens + tokens > max_tokens || open.targets + targets > max_targets)) {
      out.push_back(std::exchange(open, {}));
      begin = i;
    }
    open.rows = rows.subspan(begin, i + 1 - begin);
    open.tokens += tokens;
    open.targets += targets;
  }
  out.push_back(open);
  return out;
}

double supervised_learner::pass(const micro& m, const loss_totals& totals, bool train) {
  const double sum = !teacher_           ? pass_likelihood(m, totals, train)
                     : teacher_->whole() ? pass_full(m, totals, train)
                                         : pass_top(m, totals, train);
  if (!std::isfinite(sum))
    throw error{errc::failed, here() + ": the loss of data rows " + std::to_string(m.rows.front()->source) + " to " +
                                  std::to_string(m.rows.back()->source) + " is " + std::to_string(sum) +
                                  "; nothing was updated (a lower learner.optim.lr may help)"};
  return sum;
}

// losses: [targets] of a micro-batch -> their share of the mini-batch's loss; d_loss [targets] its gradient.
double supervised_learner::weigh(const micro& m, const loss_totals& totals, const std::vector<float>& losses,
                                 std::vector<float>& d_loss) const {
  std::vector<std::int64_t> lengths;
  for (const auto* row : m.rows)
    lengths.push_back(std::int64_t(row->targets.size()));
  std::vector<float> values(losses.size()), d_entropy;
  std::transform(losses.begin(), losses.end(), values.begin(), [](float x) { return -x; });
  const std::vector<double> ones(losses.size(), 1.0);
  const auto sums = objective_.evaluate({lengths, values, values, ones, {}, {}}, totals, d_loss, d_entropy);
  for (auto& d : d_loss)
    d = -d;
  return sums.total;
}

double supervised_learner::pass_likelihood(const micro& m, const loss_totals& totals, bool train) {
  std::unique_ptr<tape> saved;
  std::vector<float> losses = policy().score(pack(m.rows), 1, false, train ? &saved : nullptr).logprobs;
  for (auto& x : losses)
    x = -x;
  std::vector<float> d;
  const double sum = weigh(m, totals, losses, d);
  if (!train || !std::isfinite(sum))
    return sum;
  for (auto& x : d)
    x = -x;
  policy().backward(*saved, d, {});
  return sum;
}

// The teacher's logits are looked at for some rows at a time; only what is kept of them grows with the micro-batch.
teacher_top supervised_learner::ask_teacher(const micro& m) const {
  teacher_top all;
  for (const auto& part : cut(m.rows, most_logits / teacher_->vocab())) {
    teacher_top some = teacher_->most_probable(pack(part.rows));
    all.k = some.k;
    all.ids.insert(all.ids.end(), some.ids.begin(), some.ids.end());
    all.probability.insert(all.probability.end(), some.probability.begin(), some.probability.end());
    all.neg_entropy.insert(all.neg_entropy.end(), some.neg_entropy.begin(), some.neg_entropy.end());
  }
  return all;
}

// KL(q || p) = sum over the teacher's k tokens of q (log q - log p): the model is asked for k log-probabilities a target.
double supervised_learner::pass_top(const micro& m, const loss_totals& totals, bool train) {
  const auto start = std::chrono::steady_clock::now();
  const teacher_top top = ask_teacher(m);
  teacher_seconds_ += seconds_since(start);
  packed_batch batch = pack(m.rows);
  const auto k = std::size_t(top.k);
  std::vector<std::int32_t> rows;
  for (const auto row : batch.target_rows)
    rows.insert(rows.end(), k, row);
  batch.target_rows = std::move(rows);
  batch.targets = top.ids;
  std::unique_ptr<tape> saved;
  const auto logprobs = policy().score(batch, 1, false, train ? &saved : nullptr).logprobs;
  std::vector<float> losses, d;
  for (std::size_t i = 0; i < top.neg_entropy.size(); ++i) {
    double kl = top.neg_entropy[i];
    for (std::size_t j = i * k; j < (i + 1) * k; ++j)
      kl -= double(top.probability[j]) * double(logprobs[j]);
    losses.push_back(float(kl));
  }
  const double sum = weigh(m, totals, losses, d);
  if (!train || !std::isfinite(sum))
    return sum;
  std::vector<float> d_logprob(logprobs.size());
  for (std::size_t j = 0; j < d_logprob.size(); ++j)
    d_logprob[j] = -d[j / k] * top.probability[j];
  policy().backward(*saved, d_logprob, {});
  return sum;
}

double supervised_learner::pass_full(const micro& m, const loss_totals& totals, bool train) {
  const auto start = std::chrono::steady_clock::now();
  const packed_batch batch = pack(m.rows);
  std::vector<float> theirs = teacher_->logits(batch);
  teacher_seconds_ += seconds_since(start);
  std::unique_ptr<tape> saved;
  std::vector<float> ours = policy().outputs(batch, train ? &saved : nullptr), d;
  const full_divergence kl(where(), std::move(theirs), ours, teacher_->vocab());
  const double sum = weigh(m, totals, kl.kl(), d);
  if (!train || !std::isfinite(sum))
    return sum;
  kl.gradient(d, ours);
  policy().backward_outputs(*saved, ours);
  return sum;
}

} // namespace troupe
