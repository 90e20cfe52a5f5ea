#pragma once
#include "core/metrics.hpp"
#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace troupe {

/// What a run keeps of a step's groups until its metrics are written.
class step_summary {
public:
  explicit step_summary(std::int64_t max_response_length = 0) : max_response_length_(max_response_length) {}
  /// One scored group. rewards, lengths: [samples].
  void add(std::span<const double> rewards, std::span<const std::uint32_t> lengths, std::uint32_t prompt_length, std::uint32_t staleness);
  bool empty() const { return rewards_.empty(); }
  /// critic/rewards/*, critic/score/mean, response_length/*, prompt_length/mean, rollout/staleness_max.
  metric_map metrics() const;
  /// Prompt and response tokens of all samples, as perf/throughput counts them.
  std::uint64_t n_tokens() const { return tokens_; }

private:
  std::int64_t max_response_length_ = 0;
  std::vector<double> rewards_, lengths_, prompt_lengths_;
  std::uint32_t staleness_ = 0;
  std::uint64_t tokens_ = 0;
};

/// The mean over all draws of k of n samples of the best one's reward: pass@k for rewards of 0 and 1.
/// Source: Chen et al., arXiv:2107.03374, equation 1, for any reward.
double best_of(std::vector<double> rewards, std::size_t k);

/// val/accuracy and val/pass@k (k = 2, 4, ... up to n) of the prompts' rewards, [prompts][samples].
metric_map validation_metrics(const std::vector<std::vector<double>>& rewards, std::size_t n);

} // namespace troupe
