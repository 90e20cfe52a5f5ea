#include "actors/summary.hpp"
#include <algorithm>
#include <numeric>

namespace troupe {
namespace {

double mean(const std::vector<double>& xs) { return xs.empty() ? 0.0 : std::accumulate(xs.begin(), xs.end(), 0.0) / double(xs.size()); }

void put_range(metric_map& out, const std::string& name, const std::vector<double>& xs) {
  const auto [low, high] = std::minmax_element(xs.begin(), xs.end());
  out[name + "/mean"] = mean(xs);
  out[name + "/max"] = *high;
  out[name + "/min"] = *low;
}

} // namespace

void step_summary::add(std::span<const double> rewards, std::span<const std::uint32_t> lengths, std::uint32_t prompt_length,
                       std::uint32_t staleness) {
  rewards_.insert(rewards_.end(), rewards.begin(), rewards.end());
  for (const auto length : lengths) {
    lengths_.push_back(length);
    prompt_lengths_.push_back(prompt_length);
    tokens_ += length + prompt_length;
  }
  staleness_ = std::max(staleness_, staleness);
}

metric_map step_summary::metrics() const {
  metric_map out;
  if (rewards_.empty())
    return out;
  put_range(out, "critic/rewards", rewards_);
  out["critic/score/mean"] = mean(rewards_);
  put_range(out, "response_length", lengths_);
  const auto clipped = std::count_if(lengths_.begin(), lengths_.end(), [&](double n) { return n >= double(max_response_length_); });
  out["response_length/clip_ratio"] = double(clipped) / double(lengths_.size());
  out["prompt_length/mean"] = mean(prompt_lengths_);
  out["rollout/staleness_max"] = staleness_;
  return out;
}

double best_of(std::vector<double> rewards, std::size_t k) {
  std::sort(rewards.begin(), rewards.end());
  const std::size_t n = rewards.size();
  // The i-th smallest (from 0) is the best of a draw of k with probability C(i, k-1) / C(n, k); from the top down
  // each is the one above it times (i - k + 1) / i.
  double share = double(k) / double(n), sum = 0;
  for (std::size_t i = n; i-- >= k;) {
    sum += share * rewards[i];
    if (i > 0)
      share *= double(i + 1 - k) / double(i);
  }
  return sum;
}

metric_map validation_metrics(const std::vector<std::vector<double>>& rewards, std::size_t n) {
  metric_map out;
  std::vector<double> means;
  for (const auto& r : rewards)
    means.push_back(mean(r));
  out["val/accuracy"] = mean(means);
  for (std::size_t k = 2; k <= n; k *= 2) {
    std::vector<double> best;
    for (const auto& r : rewards)
      best.push_back(best_of(r, k));
    out["val/pass@" + std::to_string(k)] = mean(best);
  }
  return out;
}

} // namespace troupe
