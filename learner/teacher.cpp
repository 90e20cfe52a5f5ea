#include "learner/teacher.hpp"
#include "core/error.hpp"
#include "model/kernels/elementwise.hpp"
#include "model/kernels/thread_pool.hpp"
#include <algorithm>
#include <cmath>
#include <numeric>
#include <string>

namespace troupe {

namespace {

using kernels::softmax_stats;

std::vector<softmax_stats> stats_of(compute& where, const std::vector<float>& logits, std::int64_t vocab) {
  std::vector<softmax_stats> stats(logits.size() / std::size_t(vocab));
  kernels::softmax_rows(where, logits.data(), std::int64_t(stats.size()), vocab, 1, false, stats.data());
  return stats;
}

// weight * softmax of each row: the gradient of a log-probability that is asked for elsewhere, with its sign turned.
void softmax_times(compute& where, const float* logits, std::int64_t vocab, const std::vector<softmax_stats>& stats,
                   const std::vector<float>& weight, float* out) {
  std::vector<kernels::row_gradient> rows(stats.size());
  for (std::size_t i = 0; i < rows.size(); ++i)
    rows[i].elsewhere = -weight[i];
  kernels::softmax_backward(where, logits, std::int64_t(rows.size()), vocab, 1, stats.data(), rows.data(), out);
}

void pick(const float* logits, std::int64_t vocab, std::int64_t k, std::vector<std::int32_t>& order, std::int32_t* ids, float* probability,
          double* neg_entropy) {
  std::iota(order.begin(), order.end(), 0);
  std::nth_element(order.begin(), order.begin() + (k - 1), order.begin() + vocab,
                   [&](std::int32_t a, std::int32_t b) { return logits[a] != logits[b] ? logits[a] > logits[b] : a < b; });
  std::copy_n(order.begin(), k, ids);
  std::sort(ids, ids + k);
  float largest = logits[ids[0]];
  for (std::int64_t i = 1; i < k; ++i)
    largest = std::max(largest, logits[ids[i]]);
  double sum = 0, entropy = 0;
  for (std::int64_t i = 0; i < k; ++i)
    sum += double(probability[i] = kernels::exp_negative(logits[ids[i]] - largest));
  const double log_sum = kernels::log_exact(sum);
  for (std::int64_t i = 0; i < k; ++i) {
    const double q = double(probability[i]) / sum;
    entropy += q * (double(logits[ids[i]]) - double(largest) - log_sum);
    probability[i] = float(q);
  }
  *neg_entropy = entropy;
}

} // namespace

teacher::teacher(std::shared_ptr<causal_lm> model, std::int64_t top_k, compute& where)
    : model_(std::move(model)), top_k_(top_k <= 0 ? vocab() : std::min(top_k, vocab())), where_(where) {}

std::vector<float> teacher::logits(const packed_batch& batch) const {
  std::vector<float> out = model_->outputs(batch, nullptr);
  for (const auto& s : stats_of(where_, out, vocab()))
    if (!std::isfinite(s.maximum) || !std::isfinite(s.sum))
      throw error{errc::failed, "distill.teacher: a row of its logits is not finite; take another model or model.dtype"};
  return out;
}

teacher_top teacher::most_probable(const packed_batch& batch) const {
  const std::vector<float> all = logits(batch);
  const auto n = std::int64_t(batch.targets.size()), k = top_k_, v = vocab();
  teacher_top out{k, std::vector<std::int32_t>(std::size_t(n * k)), std::vector<float>(std::size_t(n * k)),
                  std::vector<double>(std::size_t(n))};
  std::vector<std::vector<std::int32_t>> orders(std::size_t(where_.threads()), std::vector<std::int32_t>(std::size_t(v)));
  where_.pool().run([&](int t) {
    for (std::int64_t i = n * t / where_.threads(); i < n * (t + 1) / where_.threads(); ++i)
      pick(all.data() + i * v, v, k, orders[std::size_t(t)], out.ids.data() + i * k, out.probability.data() + i * k,
           out.neg_entropy.data() + i);
  });
  return out;
}

full_divergence::full_divergence(compute& where, std::vector<float> teacher, const std::vector<float>& student, std::int64_t vocab)
    : where_(where), vocab_(vocab), probability_(teacher.size()), kl_(teacher.size() / std::size_t(vocab)) {
  const auto theirs = stats_of(where, teacher, vocab), ours = stats_of(where, student, vocab);
  softmax_times(where, teacher.data(), vocab, theirs, std::vector<float>(kl_.size(), 1.0F), probability_.data());
  where.pool().split(std::int64_t(kl_.size()), [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
      const float *q = probability_.data() + i * vocab, *a = teacher.data() + i * vocab, *b = student.data() + i * vocab;
      const softmax_stats &s = theirs[std::size_t(i)], &o = ours[std::size_t(i)];
      const double shift = (double(o.maximum) + kernels::log_exact(o.sum)) - (double(s.maximum) + kernels::log_exact(s.sum));
      double sum = 0;
      for (std::int64_t j = 0; j < vocab; ++j)
        sum += double(q[j]) * (double(a[j]) - double(b[j]) + shift);
      kl_[std::size_t(i)] = float(sum);
    }
  });
}

void full_divergence::gradient(const std::vector<float>& weight, std::vector<float>& student) const {
  const auto ours = stats_of(where_, student, vocab_);
  std::vector<float> out(student.size());
  softmax_times(where_, student.data(), vocab_, ours, weight, out.data());
  where_.pool().split(std::int64_t(weight.size()), [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i)
      for (std::int64_t j = i * vocab_; j < (i + 1) * vocab_; ++j)
        out[std::size_t(j)] -= weight[std::size_t(i)] * probability_[std::size_t(j)];
  });
  student = std::move(out);
}

} // namespace troupe
