#include "core/error.hpp"
#include "learner/advantage.hpp"
#include "learner/reference_test.hpp"
#include <algorithm>
#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

namespace troupe {
namespace {

TEST(advantage, matches_the_formulas) {
  std::size_t compared = 0;
  for (const auto& c : learner_reference().at("advantage")) {
    algorithm_section algorithm;
    algorithm.adv_estimator = c.at("name");
    algorithm.norm_adv_by_std_in_grpo = c.at("norm");
    const std::vector<double> rewards = c.at("rewards"), wanted = c.at("advantages");
    const std::vector<std::int64_t> lengths = c.at("lengths");
    const auto found = group_advantages(algorithm, rewards, lengths);
    ASSERT_EQ(found.size(), wanted.size());
    for (std::size_t i = 0; i < found.size(); ++i)
      EXPECT_NEAR(found[i], wanted[i], 1e-12) << c.dump();
    ++compared;
  }
  EXPECT_GE(compared, 40U);
}

std::vector<std::int64_t> some_lengths(std::size_t n) {
  std::vector<std::int64_t> lengths;
  for (std::size_t i = 0; i < n; ++i)
    lengths.push_back(std::int64_t(i * 7 % 5));
  return lengths;
}

RC_GTEST_PROP(advantage, equal_rewards_give_exactly_zero, ()) {
  const auto n = *rc::gen::inRange<std::size_t>(2, 20);
  const double reward = double(*rc::gen::inRange(-1000, 1000)) / 7.0;
  for (const auto& name : group_estimators()) {
    algorithm_section algorithm;
    algorithm.adv_estimator = name;
    for (double a : group_advantages(algorithm, std::vector<double>(n, reward), some_lengths(n)))
      RC_ASSERT(a == 0.0);
  }
}

RC_GTEST_PROP(advantage, a_reversed_group_has_reversed_advantages, ()) {
  const auto raw = *rc::gen::nonEmpty(rc::gen::container<std::vector<int>>(rc::gen::inRange(-50, 50)));
  std::vector<double> rewards(raw.begin(), raw.end());
  for (const auto* name : {"grpo", "rloo", "opo"}) {
    algorithm_section algorithm;
    algorithm.adv_estimator = name;
    auto lengths = some_lengths(rewards.size());
    auto forward = group_advantages(algorithm, rewards, lengths);
    auto reversed = rewards;
    std::reverse(reversed.begin(), reversed.end());
    std::reverse(lengths.begin(), lengths.end());
    auto backward = group_advantages(algorithm, reversed, lengths);
    std::reverse(backward.begin(), backward.end());
    for (std::size_t i = 0; i < forward.size(); ++i)
      RC_ASSERT(std::abs(forward[i] - backward[i]) < 1e-9);
  }
}

TEST(advantage, bad_calls_say_what_is_known) {
  struct bad {
    std::string name;
    std::vector<double> rewards;
    std::vector<std::int64_t> lengths;
    errc code;
    std::string part;
  };
  const bad table[] = {
      {"gae", {1, 0}, {1, 1}, errc::bad_config, "this version has grpo, grpo_passk, rloo, opo"},
      {"grpo", {}, {}, errc::bad_shape, "at least 1"},
      {"grpo", {1, 0}, {1}, errc::bad_shape, "2 rewards and 1 lengths"},
      {"grpo", {1, NAN}, {1, 1}, errc::failed, "sample 1 is nan"},
      {"rloo", {INFINITY, 1}, {1, 1}, errc::failed, "sample 0 is inf"},
      {"grpo_passk", {1}, {1}, errc::bad_config, "rollout.n is 1"},
  };
  for (const auto& c : table) {
    algorithm_section algorithm;
    algorithm.adv_estimator = c.name;
    try {
      group_advantages(algorithm, c.rewards, c.lengths);
      ADD_FAILURE() << c.name << ": not refused: " << c.part;
    } catch (const error& e) {
      EXPECT_EQ(e.code(), c.code);
      EXPECT_NE(std::string(e.what()).find(c.part), std::string::npos) << e.what();
    }
  }
}

} // namespace
} // namespace troupe
