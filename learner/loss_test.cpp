#include "core/error.hpp"
#include "learner/exact_math.hpp"
#include "learner/loss.hpp"
#include "learner/reference_test.hpp"
#include <cmath>
#include <gtest/gtest.h>
#include <numbers>
#include <rapidcheck/gtest.h>

namespace troupe {
namespace {

// Gradients are handed on as float32, whose rounding is 6e-8 of the value.
void expect_close(double found, double wanted, const std::string& what) {
  EXPECT_NEAR(found, wanted, 1e-13 + 1e-7 * std::abs(wanted)) << what;
}

struct case_options {
  learner_section section;
  loss_totals totals;
};

case_options options_of(const nlohmann::json& c) {
  const auto& o = learner_reference().at("loss").at("options");
  case_options out;
  auto& s = out.section;
  s.policy_loss = c.at("policy_loss");
  s.loss_agg_mode = c.at("loss_agg_mode");
  s.use_kl_loss = c.at("kl_loss_type") != "";
  if (s.use_kl_loss)
    s.kl_loss_type = c.at("kl_loss_type");
  s.entropy_coeff = c.at("entropy_coeff");
  s.clip_ratio_low = o.at("low");
  s.clip_ratio_high = o.at("high");
  s.clip_ratio_c = o.at("c");
  s.kl_loss_coef = o.at("kl_coef");
  s.loss_scale_factor = o.at("scale");
  out.totals = {o.at("tokens"), o.at("samples")};
  return out;
}

TEST(loss, every_loss_aggregation_and_kl_matches_autograd) {
  const auto& reference = learner_reference().at("loss");
  const auto& in = reference.at("input");
  const std::vector<std::int64_t> lengths = in.at("lengths");
  const std::vector<float> logp = in.at("logprobs"), old = in.at("old_logprobs"), ref = in.at("ref_logprobs"), entropy = in.at("entropy");
  std::size_t compared = 0;
  for (const auto& c : reference.at("cases")) {
    const auto [section, totals] = options_of(c);
    const policy_objective objective(section, 99);
    const std::vector<double> advantages = c.at("advantages"), d_logprob_wanted = c.at("d_logprob"), d_entropy_wanted = c.at("d_entropy");
    std::vector<float> d_logprob, d_entropy;
    const loss_input input{lengths, logp, old, advantages, section.use_kl_loss ? std::span<const float>(ref) : std::span<const float>(),
                           entropy};
    const auto sums = objective.evaluate(input, totals, d_logprob, d_entropy);
    const auto name = section.policy_loss + " " + section.loss_agg_mode + " " + section.kl_loss_type;
    expect_close(sums.policy, c.at("policy"), name + " policy");
    expect_close(sums.kl, c.at("kl"), name + " kl");
    expect_close(sums.entropy, c.at("entropy"), name + " entropy");
    expect_close(sums.total, c.at("total"), name + " total");
    expect_close(sums.log_ratio, c.at("log_ratio"), name + " log ratio");
    EXPECT_EQ(sums.clipped, c.at("clipped").get<std::int64_t>()) << name;
    EXPECT_EQ(sums.tokens, std::int64_t(logp.size()));
    ASSERT_EQ(d_logprob.size(), d_logprob_wanted.size());
    for (std::size_t i = 0; i < d_logprob.size(); ++i)
      expect_close(d_logprob[i], d_logprob_wanted[i], name + " gradient " + std::to_string(i));
    ASSERT_EQ(d_entropy.size(), d_entropy_wanted.size());
    for (std::size_t i = 0; i < d_entropy.size(); ++i)
      expect_close(d_entropy[i], d_entropy_wanted[i], name + " entropy gradient");
    ++compared;
  }
  EXPECT_EQ(compared, policy_losses().size() * loss_aggregations().size() * 4 + kl_loss_types().size() * loss_aggregations().size());
}

TEST(loss, scale_length_defaults_to_max_response_length) {
  learner_section section;
  section.policy_loss = "reinforce";
  section.loss_agg_mode = "seq-mean-token-sum-norm";
  const std::vector<std::int64_t> lengths{2};
  const std::vector<float> logp{-1, -1};
  const std::vector<double> advantages{1, 1};
  std::vector<float> d_logprob, d_entropy;
  const auto sums = policy_objective(section, 8).evaluate({lengths, logp, logp, advantages, {}, {}}, {2, 1}, d_logprob, d_entropy);
  EXPECT_DOUBLE_EQ(sums.policy, 0.25);
}

// Cutting a mini-batch anywhere between samples changes nothing but the order of a few additions.
RC_GTEST_PROP(loss, micro_batches_add_up, ()) {
  const auto lengths = *rc::gen::nonEmpty(rc::gen::container<std::vector<std::int64_t>>(rc::gen::inRange<std::int64_t>(0, 6)));
  std::vector<float> logp, old;
  std::vector<double> advantages;
  std::int64_t n = 0;
  for (std::size_t s = 0; s < lengths.size(); ++s)
    for (std::int64_t t = 0; t < lengths[s]; ++t, ++n) {
      logp.push_back(-0.1F * float(*rc::gen::inRange(0, 60)));
      old.push_back(-0.1F * float(*rc::gen::inRange(0, 60)));
      advantages.push_back(double(s % 5) - 2);
    }
  const auto cut = *rc::gen::inRange<std::size_t>(0, lengths.size() + 1);
  for (const auto& loss : policy_losses())
    for (const auto& mode : loss_aggregations()) {
      learner_section section;
      section.policy_loss = loss;
      section.loss_agg_mode = mode;
      const policy_objective objective(section, 8);
      const loss_totals totals{std::max<std::int64_t>(n, 1), std::int64_t(lengths.size())};
      std::vector<float> whole, first, second, none;
      const auto all = objective.evaluate({lengths, logp, old, advantages, {}, {}}, totals, whole, none);
      std::int64_t split = 0;
      for (std::size_t s = 0; s < cut; ++s)
        split += lengths[s];
      const auto at = std::size_t(split);
      const std::span<const float> l(logp), o(old);
      const std::span<const double> a(advantages);
      const std::span<const std::int64_t> sizes(lengths);
      auto parts = objective.evaluate({sizes.first(cut), l.first(at), o.first(at), a.first(at), {}, {}}, totals, first, none);
      parts += objective.evaluate({sizes.subspan(cut), l.subspan(at), o.subspan(at), a.subspan(at), {}, {}}, totals, second, none);
      first.insert(first.end(), second.begin(), second.end());
      RC_ASSERT(first == whole);
      RC_ASSERT(std::abs(parts.total - all.total) <= 1e-12 * (1 + std::abs(all.total)));
      RC_ASSERT(parts.clipped == all.clipped);
    }
}

TEST(loss, unknown_names_are_refused_with_the_known_ones) {
  struct bad {
    std::string learner_section::*key;
    const char* value;
    const char* part;
  };
  const bad table[] = {{&learner_section::policy_loss, "ppo", "learner.policy_loss = \"ppo\": this version has vanilla, gspo, cispo"},
                       {&learner_section::loss_agg_mode, "mean", "has token-mean, seq-mean-token-sum"},
                       {&learner_section::kl_loss_type, "k4", "has kl, k1, abs, mse, k2, low_var_kl, k3"}};
  for (const auto& c : table) {
    learner_section section;
    section.*c.key = c.value;
    try {
      policy_objective objective(section, 8);
      ADD_FAILURE() << c.value << " was not refused";
    } catch (const error& e) {
      EXPECT_EQ(e.code(), errc::bad_config);
      EXPECT_NE(std::string(e.what()).find(c.part), std::string::npos) << e.what();
    }
  }
}

TEST(loss, sizes_that_disagree_are_refused) {
  learner_section section;
  section.use_kl_loss = true;
  const policy_objective objective(section, 8);
  const std::vector<std::int64_t> lengths{2};
  const std::vector<float> two{-1, -1}, one{-1};
  const std::vector<double> advantages{1, 1};
  std::vector<float> a, b;
  EXPECT_THROW(objective.evaluate({lengths, two, two, advantages, {}, {}}, {2, 1}, a, b), error);
  EXPECT_THROW(objective.evaluate({lengths, one, two, advantages, two, {}}, {2, 1}, a, b), error);
  EXPECT_THROW(objective.evaluate({lengths, two, one, advantages, two, {}}, {2, 1}, a, b), error);
  EXPECT_THROW(objective.evaluate({lengths, two, two, advantages, two, one}, {2, 1}, a, b), error);
  EXPECT_NO_THROW(objective.evaluate({lengths, two, two, advantages, two, {}}, {2, 1}, a, b));
}

TEST(exact_math, agrees_with_the_c_library) {
  for (int i = 0; i < 3784; ++i) {
    const double x = -700 + 0.37 * i;
    EXPECT_NEAR(exact_exp(x) / std::exp(x), 1, 2e-15) << x;
  }
  for (int i = 0; i <= 1024; ++i) {
    const double x = i / 1024.0;
    EXPECT_NEAR(exact_cos_pi(x), std::cos(std::numbers::pi * x), 1e-15) << x;
  }
  for (double base : {0.0, 0.5, 0.9, 0.999})
    for (int n : {0, 1, 2, 7, 1000, 100000})
      EXPECT_NEAR(exact_pow(base, n), std::pow(base, n), 1e-12) << base << " " << n;
  EXPECT_TRUE(std::isnan(exact_exp(NAN)));
  EXPECT_EQ(exact_exp(0), 1.0);
  EXPECT_EQ(exact_cos_pi(0), 1.0);
  EXPECT_EQ(exact_cos_pi(1), -1.0);
}

} // namespace
} // namespace troupe
