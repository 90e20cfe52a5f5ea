#include "learner/advantage.hpp"
#include "core/error.hpp"
#include <algorithm>
#include <cmath>
#include <string>

namespace troupe {

namespace {

using values = std::vector<double>;
using rewards_view = std::span<const double>;
using lengths_view = std::span<const std::int64_t>;

double mean_of(rewards_view x) {
  double sum = 0;
  for (double v : x)
    sum += v;
  return sum / double(x.size());
}

// Unbiased; a single sample has deviation 1.
double deviation_of(rewards_view x, double mean) {
  if (x.size() < 2)
    return 1;
  double sum = 0;
  for (double v : x)
    sum += (v - mean) * (v - mean);
  return std::sqrt(sum / double(x.size() - 1));
}

double scale_of(const algorithm_section& algorithm, rewards_view rewards, double mean) {
  return algorithm.norm_adv_by_std_in_grpo ? 1 / (deviation_of(rewards, mean) + 1e-6) : 1;
}

values shifted(rewards_view rewards, double baseline, double scale) {
  values out;
  out.reserve(rewards.size());
  for (double r : rewards)
    out.push_back((r - baseline) * scale);
  return out;
}

// arXiv:2402.03300, section 4.1.2; without the division arXiv:2503.20783.
values grpo(const algorithm_section& algorithm, rewards_view rewards, lengths_view) {
  const double mean = rewards.size() == 1 ? 0 : mean_of(rewards);
  return shifted(rewards, mean, scale_of(algorithm, rewards, mean));
}

// arXiv:2503.19595: the best sample alone, by its lead over the second; of equals the first.
values grpo_passk(const algorithm_section& algorithm, rewards_view rewards, lengths_view) {
  if (rewards.size() < 2)
    throw error{errc::bad_config,
                "algorithm.adv_estimator = \"grpo_passk\" compares a group's two best samples; rollout.n is 1: set it to 2 or more"};
  const auto best = std::max_element(rewards.begin(), rewards.end());
  double second = -INFINITY;
  for (auto it = rewards.begin(); it != rewards.end(); ++it)
    if (it != best)
      second = std::max(second, *it);
  values out(rewards.size(), 0.0);
  out[std::size_t(best - rewards.begin())] = (*best - second) * scale_of(algorithm, rewards, mean_of(rewards));
  return out;
}

// arXiv:2402.14740: the baseline is the mean of the others.
values rloo(const algorithm_section&, rewards_view rewards, lengths_view) {
  const double n = double(rewards.size());
  return rewards.size() == 1 ? shifted(rewards, 0, 1) : shifted(rewards, mean_of(rewards), n / (n - 1));
}

// arXiv:2505.23585: the baseline is weighted by length.
values opo(const algorithm_section&, rewards_view rewards, lengths_view lengths) {
  if (rewards.size() == 1)
    return shifted(rewards, 0, 1);
  double weighted = 0, total = 0;
  for (std::size_t i = 0; i < rewards.size(); ++i) {
    weighted += double(lengths[i]) * rewards[i];
    total += double(lengths[i]);
  }
  // A group without a token trains nothing; its numbers still have to be numbers.
  return shifted(rewards, total > 0 ? weighted / total : mean_of(rewards), 1);
}

struct estimator {
  const char* name;
  values (*compute)(const algorithm_section&, rewards_view, lengths_view);
};

constexpr estimator estimators[] = {{"grpo", grpo}, {"grpo_passk", grpo_passk}, {"rloo", rloo}, {"opo", opo}};

} // namespace

std::vector<double> group_advantages(const algorithm_section& algorithm, std::span<const double> rewards,
                                     std::span<const std::int64_t> lengths) {
  if (rewards.empty() || rewards.size() != lengths.size())
    throw error{errc::bad_shape, "advantages of a group with " + std::to_string(rewards.size()) + " rewards and " +
                                     std::to_string(lengths.size()) + " lengths: both must be the number of its samples, at least 1"};
  for (std::size_t i = 0; i < rewards.size(); ++i)
    if (!std::isfinite(rewards[i]))
      throw error{errc::failed,
                  "the reward of sample " + std::to_string(i) + " is " + std::to_string(rewards[i]) + ": rewards must be finite numbers"};
  for (const auto& e : estimators) {
    if (algorithm.adv_estimator != e.name)
      continue;
    auto out = e.compute(algorithm, rewards, lengths);
    // Rounding in a mean would leave crumbs where there is nothing to learn.
    if (rewards.size() > 1 && std::all_of(rewards.begin(), rewards.end(), [&](double r) { return r == rewards[0]; }))
      std::fill(out.begin(), out.end(), 0.0);
    return out;
  }
  std::string known;
  for (const auto& e : estimators)
    known += (known.empty() ? "" : ", ") + std::string(e.name);
  throw error{errc::bad_config, "algorithm.adv_estimator = \"" + algorithm.adv_estimator + "\": this version has " + known};
}

std::vector<std::string> group_estimators() {
  std::vector<std::string> names;
  for (const auto& e : estimators)
    names.emplace_back(e.name);
  return names;
}

} // namespace troupe
