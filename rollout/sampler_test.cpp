#include "core/error.hpp"
#include "rollout/exp.hpp"
#include "rollout/sampler.hpp"
#include <algorithm>
#include <cmath>
#include <gtest/gtest.h>
#include <limits>
#include <numeric>
#include <rapidcheck/gtest.h>

namespace troupe {
namespace {

draw_key key_of(std::uint32_t i) { return {.seed = 7, .domain = draw::generate, .step = 0, .index = i, .sample = 0, .position = 3}; }

std::vector<float> random_logits(std::size_t n, std::uint32_t seed, float spread) {
  std::vector<float> out;
  for (std::size_t i = 0; i < n; ++i)
    out.push_back(spread * (draw_uniform({.seed = seed, .domain = draw::init, .index = std::uint32_t(i)}) * 2 - 1));
  return out;
}

// The definition, in double precision: probabilities of all ids, 0 for those that truncation removes. Empty when a weight is so near
// min_p that single precision cannot tell the two apart.
std::vector<double> reference(const std::vector<float>& logits, const sampling_params& p) {
  const std::size_t n = logits.size();
  std::vector<std::size_t> order(n);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](auto a, auto b) { return logits[a] > logits[b]; });
  std::vector<double> w(n);
  for (std::size_t i = 0; i < n; ++i)
    w[i] = std::exp((double(logits[i]) - double(logits[order[0]])) / p.temperature);
  if (p.top_k > 0 && std::size_t(p.top_k) < n)
    order.resize(std::size_t(p.top_k));
  double total = 0;
  for (const auto i : order)
    total += w[i];
  if (p.top_p < 1) {
    double mass = 0;
    std::size_t kept = 0;
    while (kept < order.size() && mass < p.top_p * total)
      mass += w[order[kept++]];
    order.resize(kept);
  }
  std::vector<double> out(n);
  double left = 0;
  for (const auto i : order) {
    if (w[i] != p.min_p && std::fabs(w[i] - p.min_p) < 1e-6)
      return {};
    if (w[i] >= p.min_p)
      left += out[i] = w[i];
  }
  for (auto& v : out)
    v /= left;
  return out;
}

// What the inverse of the reference's distribution gives; -1 when u is too near a step to tell.
std::int32_t reference_draw(const std::vector<double>& probabilities, const draw_key& key) {
  const auto bits = draw_bits(key);
  const double u = double((std::uint64_t(bits[0]) << 32 | bits[1]) >> 11) / 9007199254740992.0;
  double reached = 0;
  for (std::size_t i = 0; i < probabilities.size(); ++i) {
    reached += probabilities[i];
    if (std::fabs(reached - u) < 1e-6)
      return -1;
    if (reached > u)
      return std::int32_t(i);
  }
  return -1;
}

TEST(exp_nonpositive, follows_the_exponential) {
  double worst = 0;
  for (int i = 0; i < 23500; ++i) {
    const float x = -0.0037f * float(i);
    worst = std::max(worst, std::fabs(double(exp_nonpositive(x)) / std::exp(double(x)) - 1));
  }
  EXPECT_LT(worst, 2e-7);
  EXPECT_EQ(exp_nonpositive(0.0f), 1.0f);
  EXPECT_EQ(exp_nonpositive(-87.5f), 0.0f);
  EXPECT_EQ(exp_nonpositive(-std::numeric_limits<float>::infinity()), 0.0f);
}

TEST(exp_scaled, every_code_path_gives_the_same_bits) {
  const auto x = random_logits(4099, 2, 60.0f);
  std::vector<float> fast(x.size()), portable(x.size());
  for (const float scale : {1.0f, 0.37f, 1e30f}) {
    exp_scaled(x.data(), 60.0f, scale, fast.data(), x.size());
    exp_scaled_portable(x.data(), 60.0f, scale, portable.data(), x.size());
    EXPECT_EQ(fast, portable);
    std::vector<double> sums(17), portable_sums(17); // of 256 and the rest
    EXPECT_EQ(exp_sums(x.data(), 60.0f, scale, sums.data(), x.size()),
              exp_sums_portable(x.data(), 60.0f, scale, portable_sums.data(), x.size()));
    EXPECT_EQ(sums, portable_sums);
    EXPECT_NEAR(sums[16], double(fast[4096]) + double(fast[4097]) + double(fast[4098]), 1e-6 * sums[16]);
    for (std::size_t i = 0; i < x.size(); ++i)
      ASSERT_EQ(fast[i], exp_nonpositive((x[i] - 60.0f) * scale));
  }
}

TEST(sampler, greedy_takes_the_lowest_of_equal_ids) {
  sampling_params p;
  p.temperature = 0;
  const std::vector<float> logits = {1, 5, 3, 5, 5};
  EXPECT_EQ(sample_token(logits, p, key_of(0)), 1);
  EXPECT_EQ(sample_token(std::vector<float>{-2.0f}, p, key_of(0)), 0);
  std::vector<float> long_row(1000, -4.0f);
  long_row[999] = long_row[998] = 0.5f;
  EXPECT_EQ(sample_token(long_row, p, key_of(0)), 998);
}

TEST(sampler, frequencies_follow_the_distribution) {
  const auto logits = random_logits(50, 3, 2.0f);
  sampling_params p;
  p.temperature = 0.7;
  const auto expected = reference(logits, p);
  const int draws = 50000;
  std::vector<int> seen(logits.size());
  for (int i = 0; i < draws; ++i)
    ++seen[std::size_t(sample_token(logits, p, key_of(std::uint32_t(i))))];
  double chi2 = 0;
  for (std::size_t i = 0; i < seen.size(); ++i)
    chi2 += std::pow(seen[i] - draws * expected[i], 2) / (draws * expected[i]);
  EXPECT_LT(chi2, 85.4); // 0.1 % of fair samplers exceed it, 49 degrees of freedom
}

struct truncation_case {
  const char* what;
  std::size_t vocab;
  float spread;
  sampling_params params;
};

sampling_params params(double t, std::int64_t k, double p, double m) {
  sampling_params out;
  out.temperature = t, out.top_k = k, out.top_p = p, out.min_p = m;
  return out;
}

TEST(sampler, truncation_follows_the_definition) {
  const truncation_case cases[] = {
      {"pure", 1000, 5, params(1, 0, 1, 0)},
      {"top-k off by -1", 300, 5, params(1, -1, 1, 0)},
      {"top-k 1", 300, 5, params(1, 1, 1, 0)},
      {"top-k 40", 1000, 5, params(1, 40, 1, 0)},
      {"top-k at the vocabulary", 300, 5, params(1, 300, 1, 0)},
      {"top-k above the vocabulary", 300, 5, params(1, 5000, 1, 0)},
      {"top-p", 1000, 5, params(1, 0, 0.8, 0)},
      {"top-p, flat row", 1000, 0.001f, params(1, 0, 0.5, 0)},
      {"top-p, steep row", 1000, 500, params(1, 0, 0.99, 0)},
      {"top-p next to nothing", 1000, 5, params(1, 0, 1e-9, 0)},
      {"top-k then top-p renormalised", 1000, 1, params(1, 20, 0.5, 0)},
      {"min-p", 1000, 5, params(1, 0, 1, 0.1)},
      {"min-p 1", 1000, 5, params(1, 0, 1, 1.0)},
      {"all at a high temperature", 2000, 8, params(1.7, 500, 0.9, 0.02)},
      {"all at a low temperature", 2000, 8, params(0.3, 50, 0.9, 0.01)},
      {"one token", 1, 5, params(1, 3, 0.5, 0.5)},
  };
  for (const auto& c : cases) {
    SCOPED_TRACE(c.what);
    const auto logits = random_logits(c.vocab, 11, c.spread);
    const auto expected = reference(logits, c.params);
    int compared = 0;
    for (std::uint32_t i = 0; i < 400; ++i)
      if (const auto want = reference_draw(expected, key_of(i)); want >= 0) {
        EXPECT_EQ(sample_token(logits, c.params, key_of(i)), want);
        ++compared;
      }
    EXPECT_GT(compared, 380);
  }
}

TEST(sampler, equal_logits_are_kept_from_the_lowest_id) {
  const std::vector<float> logits = {1, 2, 2, 2, 2, 1};
  for (const auto& p : {params(1, 3, 1, 0), params(1, 0, 0.6, 0)}) {
    std::vector<int> seen(logits.size());
    for (std::uint32_t i = 0; i < 500; ++i)
      ++seen[std::size_t(sample_token(logits, p, key_of(i)))];
    EXPECT_EQ(seen[0] + seen[4] + seen[5], 0);
    EXPECT_TRUE(seen[1] > 100 && seen[2] > 100 && seen[3] > 100);
  }
}

RC_GTEST_PROP(sampler_property, any_row_and_parameters_follow_the_definition, ()) {
  const auto vocab = *rc::gen::inRange<std::size_t>(1, 1500);
  const auto seed = *rc::gen::inRange<std::uint32_t>(0, 1000000);
  const auto spread = *rc::gen::element(0.01f, 1.0f, 6.0f, 40.0f);
  auto p = params(*rc::gen::element(0.2, 1.0, 2.5), *rc::gen::element<std::int64_t>(-1, 0, 1, 2, 17, 400, 2000),
                  *rc::gen::element(0.05, 0.5, 0.9, 0.999, 1.0), *rc::gen::element(0.0, 0.001, 0.2, 1.0));
  const auto logits = random_logits(vocab, seed, spread);
  const auto expected = reference(logits, p);
  for (std::uint32_t i = 0; i < 8; ++i)
    if (const auto want = reference_draw(expected, key_of(i)); want >= 0)
      RC_ASSERT(sample_token(logits, p, key_of(i)) == want);
}

TEST(sampler, large_nuclei_follow_the_definition) {
  // More tokens kept than are listed one by one: nearly all, with ties at the cut.
  auto logits = random_logits(9000, 4, 2.0f);
  for (std::size_t i = 0; i < logits.size(); i += 3)
    logits[i] = std::round(logits[i] * 4) / 4;
  for (const auto& p : {params(1, 0, 0.9, 0), params(2, 0, 0.99, 0.2), params(1, 0, 0.5, 0), params(1, 0, 1 - 1e-12, 0)}) {
    const auto expected = reference(logits, p);
    int compared = 0;
    for (std::uint32_t i = 0; i < 400; ++i)
      if (const auto want = reference_draw(expected, key_of(i)); want >= 0) {
        EXPECT_EQ(sample_token(logits, p, key_of(i)), want);
        ++compared;
      }
    EXPECT_GT(compared, 360);
  }
}

TEST(sampler, options_in_company_follow_their_distribution) {
  const auto logits = random_logits(30, 8, 2.0f);
  sampling_params p = params(0.8, 20, 0.95, 0.01);
  p.presence_penalty = 0.5;
  p.frequency_penalty = 0.3;
  p.logit_bias = {{3, 1.0f}};
  const token_counts drawn = {{5, 2}, {9, 1}};
  auto changed = logits;
  changed[3] += 1.0f;
  changed[5] -= 1.1f;
  changed[9] -= 0.8f;
  const auto expected = reference(changed, p);
  const int draws = 30000;
  std::vector<int> seen(logits.size());
  for (int i = 0; i < draws; ++i)
    ++seen[std::size_t(sample_token(logits, p, key_of(std::uint32_t(i)), {{}, &drawn, 3, {}}))];
  double chi2 = 0;
  int kept = 0;
  for (std::size_t i = 0; i < seen.size(); ++i) {
    if (expected[i] == 0) {
      EXPECT_EQ(seen[i], 0);
      continue;
    }
    ++kept;
    chi2 += std::pow(seen[i] - draws * expected[i], 2) / (draws * expected[i]);
  }
  EXPECT_GT(kept, 8);
  EXPECT_LT(chi2, 43.9); // 0.1 % of fair samplers exceed it at 19 degrees of freedom, the most there can be
}

TEST(sampler, nothing_left_to_draw_is_an_error) {
  sampling_params p;
  p.min_tokens = 2;
  const std::vector<std::int32_t> ends = {0, 1, 2, 77};
  EXPECT_THROW(sample_token(std::vector<float>{1, 2, 3}, p, key_of(0), {{}, nullptr, 1, ends}), error);
  EXPECT_NO_THROW(sample_token(std::vector<float>{1, 2, 3}, p, key_of(0), {{}, nullptr, 2, ends}));
  p.allowed_ids = {1, 2};
  EXPECT_THROW(sample_token(std::vector<float>{1, 2, 3, 4}, p, key_of(0), {{}, nullptr, 1, ends}), error);
}

TEST(most_probable_ids, ascend_in_the_order_of_probability) {
  EXPECT_EQ(most_probable_ids(std::vector<float>{1, 5, 3, 5, 4}, 3), (std::vector<std::int32_t>{1, 3, 4}));
  EXPECT_EQ(most_probable_ids(std::vector<float>{1, 5}, 9), (std::vector<std::int32_t>{1, 0}));
  const auto logits = random_logits(3000, 2, 3.0f);
  std::vector<std::int32_t> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](auto a, auto b) { return logits[std::size_t(a)] > logits[std::size_t(b)]; });
  for (const std::size_t k : {1u, 5u, 13u, 700u}) {
    const auto got = most_probable_ids(logits, std::int64_t(k));
    EXPECT_TRUE(got.size() == k && std::equal(got.begin(), got.end(), order.begin()));
  }
}

TEST(sampler, same_key_same_token_and_position_matters) {
  const auto logits = random_logits(500, 1, 1);
  auto a = key_of(5), b = key_of(5);
  b.position = 4;
  EXPECT_EQ(sample_token(logits, {}, a), sample_token(logits, {}, a));
  EXPECT_NE(sample_token(logits, {}, a), sample_token(logits, {}, b));
}

TEST(sampler, logits_that_are_not_finite_are_an_error) {
  for (const float bad : {std::nanf(""), std::numeric_limits<float>::infinity(), -std::numeric_limits<float>::infinity()})
    for (const double t : {0.0, 1.0})
      for (const std::size_t at : {std::size_t(5), std::size_t(36)}) {
        std::vector<float> logits(37, 0.5f);
        logits[at] = bad;
        sampling_params p;
        p.temperature = t;
        try {
          sample_token(logits, p, key_of(0));
          FAIL() << "accepted " << bad;
        } catch (const error& e) {
          EXPECT_EQ(e.code(), errc::failed);
          EXPECT_NE(std::string(e.what()).find("token " + std::to_string(at)), std::string::npos) << e.what();
        }
      }
}

TEST(sampler, extreme_but_finite_rows_are_sampled) {
  const float most = std::numeric_limits<float>::max();
  EXPECT_EQ(sample_token(std::vector<float>{-most, most, -most}, {}, key_of(0)), 1);
  EXPECT_EQ(sample_token(std::vector<float>{0, 1, 0}, params(1e-40, 2, 0.9, 0.1), key_of(0)), 1);
}

template <class Change>
sampling_params with(const Change& change) {
  sampling_params p;
  change(p);
  return p;
}

TEST(check_sampling, names_what_is_out_of_range) {
  const std::pair<sampling_params, const char*> cases[] = {
      {params(-1, 0, 1, 0), "temperature"},
      {params(std::nan(""), 0, 1, 0), "temperature"},
      {params(1, -2, 1, 0), "top_k"},
      {params(1, 0, 0, 0), "top_p"},
      {params(1, 0, 1.5, 0), "top_p"},
      {params(1, 0, std::nan(""), 0), "top_p"},
      {params(1, 0, 1, -0.1), "min_p"},
      {params(1, 0, 1, 1.1), "min_p"},
      {params(std::numeric_limits<double>::infinity(), 0, 1, 0), "temperature"},
      {with([](auto& p) { p.repetition_penalty = 0; }), "repetition_penalty"},
      {with([](auto& p) { p.presence_penalty = 2.5; }), "presence_penalty"},
      {with([](auto& p) { p.frequency_penalty = std::nan(""); }), "frequency_penalty"},
      {with([](auto& p) { p.min_tokens = -1; }), "min_tokens"},
      {with([](auto& p) { p.min_tokens = p.max_tokens + 1; }), "min_tokens"},
      {with([](auto& p) { p.top_logprobs = 1001; }), "top_logprobs"},
      {with([](auto& p) {
         p.logit_bias = {{100, 1.0f}};
       }),
       "logit_bias"},
      {with([](auto& p) {
         p.logit_bias = {{1, 101.0f}};
       }),
       "logit_bias"},
      {with([](auto& p) { p.allowed_ids = {-1}; }), "allowed_token_ids"},
  };
  for (const auto& [p, name] : cases)
    try {
      check_sampling(p, 100);
      FAIL() << name;
    } catch (const error& e) {
      EXPECT_EQ(e.code(), errc::bad_usage);
      EXPECT_EQ(std::string(e.what()).find(name), 0u) << e.what();
    }
  sampling_params empty_stop, no_tokens;
  empty_stop.stop_strings = {"x", ""};
  no_tokens.max_tokens = 0;
  EXPECT_THROW(check_sampling(empty_stop, 100), error);
  EXPECT_THROW(check_sampling(no_tokens, 100), error);
  EXPECT_NO_THROW(check_sampling(params(0, -1, 1, 1), 100));
}

} // namespace
} // namespace troupe
