#include "core/random.hpp"
#include "model/kernels/cuda/softmax.hpp"
#include "model/kernels/cuda/test_support.hpp"
#include "rollout/exp.hpp"
#include "rollout/sampler.hpp"
#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>
#include <span>

namespace troupe {
namespace {

using namespace cuda;
using row_of_logits = std::span<const float>;

// Draws of rows that lie one after the other.
class device_draws {
public:
  device_draws(const std::vector<float>& logits, std::int64_t vocab, const std::vector<row_draw>& draws)
      : vocab_(vocab), n_(std::int64_t(draws.size())), logits_(to_device(logits)), draws_(to_device(draws)),
        drawn_(draws.size() * sizeof(drawn_token)) {}
  void queue(float temperature, stream where) {
    draw_tokens(as<float>(logits_), vocab_, as<row_draw>(draws_), n_, temperature, as<drawn_token>(drawn_), where);
    draw_truncated(as<float>(logits_), vocab_, as<row_draw>(draws_), n_, temperature, as<drawn_token>(drawn_), where);
  }
  std::vector<drawn_token> result() const { return to_host<drawn_token>(drawn_); }
  std::vector<drawn_token> run(float temperature = 1.f) {
    queue(temperature, nullptr);
    return result();
  }

private:
  std::int64_t vocab_, n_;
  device_buffer logits_, draws_, drawn_;
};

// The definition, by a sorted list: what is kept, as masses by id.
std::vector<std::uint64_t> kept_masses(row_of_logits x, const row_draw& d) {
  std::vector<std::int32_t> order(x.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](auto a, auto b) { return x[std::size_t(a)] > x[std::size_t(b)]; });
  if (d.top_k > 0 && std::size_t(d.top_k) < order.size())
    order.resize(std::size_t(d.top_k));
  const float most = x[std::size_t(order[0])], inverse = float(1.0 / std::clamp(d.temperature, 1e-37, 1e37));
  const auto weight = [&](std::int32_t id) { return exp_nonpositive((x[std::size_t(id)] - most) * inverse); };
  std::vector<std::uint64_t> masses(x.size());
  std::uint64_t total = 0;
  for (const auto id : order)
    total += masses[std::size_t(id)] = std::uint64_t(std::llrint(weight(id) * 0x1p40f));
  if (d.top_p < 1) {
    const auto wanted = std::max(1.0, std::ceil(d.top_p * double(total)));
    std::uint64_t reached = 0;
    for (const auto id : order)
      if (reached >= std::uint64_t(wanted))
        masses[std::size_t(id)] = 0;
      else
        reached += masses[std::size_t(id)];
  }
  for (const auto id : order)
    if (double(weight(id)) < d.min_p)
      masses[std::size_t(id)] = 0;
  return masses;
}

std::int32_t reference_draw(row_of_logits x, const row_draw& d) {
  const auto masses = kept_masses(x, d);
  const auto total = std::accumulate(masses.begin(), masses.end(), std::uint64_t{0});
  __extension__ using wide = unsigned __int128;
  const auto target = std::uint64_t(wide(std::uint64_t(d.u * 0x1p53)) * total >> 53);
  std::uint64_t reached = 0;
  for (std::size_t i = 0; i < masses.size(); ++i)
    if ((reached += masses[i]) > target)
      return std::int32_t(i);
  return -1;
}

draw_key key_of(std::size_t i) { return {.seed = 7, .position = std::uint32_t(i)}; }

std::int32_t sampled(row_of_logits x, const row_draw& d, std::size_t i) {
  sampling_params p;
  p.temperature = d.temperature, p.top_k = d.top_k, p.top_p = d.top_p, p.min_p = d.min_p;
  return sample_token(x, p, key_of(i));
}

enum class kind { even, normal, coarse, equal, peaked };

std::vector<float> logits_of(kind of, std::int64_t n) {
  std::mt19937 rng(11);
  std::normal_distribution<float> normal(0, 2);
  auto x = noise(dtype::f32, n, 5);
  for (auto& v : x)
    switch (of) {
    case kind::even:
      break;
    case kind::normal:
      v = normal(rng);
      break;
    case kind::coarse: // -0 too
      v = std::copysign(std::round(v) / 2, v);
      break;
    case kind::equal:
      v = 1.5f;
      break;
    case kind::peaked:
      v = v > 3.99f ? 30.f + v : normal(rng);
      break;
    }
  return x;
}

std::vector<row_draw> mixed_draws(std::int64_t rows, std::int64_t n) {
  const double temperatures[] = {1, 0.7, 1.3, 0.01, 100, 0};
  const std::int32_t counts[] = {0, 1, 5, 50, 1000, 40000};
  const double masses[] = {1, 0.9, 0.5, 0.999, 1e-9, 0.95, 1};
  const double least[] = {0, 0, 0.1, 0, 1e-4, 0, 1, 0};
  std::vector<row_draw> draws;
  std::mt19937 rng(3);
  for (std::int64_t i = 0; i < n; ++i)
    draws.push_back({std::int32_t(i % rows), temperatures[rng() % 6], draw_place(key_of(std::size_t(i))), counts[rng() % 6],
                     masses[rng() % 7], least[rng() % 8]});
  return draws;
}

class truncated_draws : public gpu_table<std::tuple<kind, std::int64_t, std::int64_t>> {}; // of rows, vocab, draws

TEST_P(truncated_draws, are_those_of_a_sorted_list_and_the_samplers) {
  const auto [of, vocab, n] = GetParam();
  constexpr std::int64_t rows = 5;
  const auto logits = logits_of(of, rows * vocab);
  const auto draws = mixed_draws(rows, n);
  const auto got = device_draws(logits, vocab, draws).run(0.7f);
  int others = 0;
  for (std::size_t i = 0; i < draws.size(); ++i) {
    const row_draw& d = draws[i];
    const row_of_logits x(logits.data() + d.row * vocab, std::size_t(vocab));
    const bool plain = d.temperature == 0 || (d.top_k == 0 && d.top_p == 1 && d.min_p == 0);
    const auto own = sampled(x, d, i);
    ASSERT_EQ(got[i].id, plain ? own : reference_draw(x, d))
        << "draw " << i << " t " << d.temperature << " k " << d.top_k << " p " << d.top_p << " min " << d.min_p;
    others += got[i].id != own;
    if (i % 16 == 0) {
      const auto stats = softmax_row_host(x.data(), vocab, 0.7f, false);
      EXPECT_EQ(got[i].logprob, stats.logprob(x[std::size_t(got[i].id)], 0.7f)) << "draw " << i;
    }
  }
  EXPECT_LE(others, n / 1000); // where u or top_p lies within rounding of a border
}

INSTANTIATE_TEST_SUITE_P(small, truncated_draws,
                         testing::Combine(testing::Values(kind::even, kind::normal, kind::coarse, kind::equal, kind::peaked),
                                          testing::Values(1, 31, 257, 5000), testing::Values(60, 600)));
INSTANTIATE_TEST_SUITE_P(large, truncated_draws,
                         testing::Combine(testing::Values(kind::even, kind::normal, kind::coarse, kind::equal, kind::peaked),
                                          testing::Values(49152, 128256), testing::Values(20, 130)));

class truncation : public gpu_test {};

TEST_F(truncation, keeps_the_lowest_of_equals) {
  std::vector<float> logits(20000, 0.f);
  for (const int id : {19999, 7, 300, 12000})
    logits[std::size_t(id)] = 3.f;
  const auto drawn = [&](std::int32_t k, double p) {
    std::vector<row_draw> draws;
    for (int i = 0; i < 200; ++i)
      draws.push_back({0, 0.1, (i + 0.5) / 200, k, p, 0});
    std::vector<std::int32_t> ids;
    for (const auto& t : device_draws(logits, 20000, draws).run())
      ids.push_back(t.id);
    ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
    return ids;
  };
  using list = std::vector<std::int32_t>;
  EXPECT_EQ(drawn(3, 1), (list{7, 300, 12000}));
  EXPECT_EQ(drawn(4, 0.5), (list{7, 300}));
  EXPECT_EQ(drawn(2, 0.75), (list{7, 300}));
  EXPECT_EQ(drawn(2, 0.5), (list{7}));
  EXPECT_EQ(drawn(0, 0.7), (list{7, 300, 12000}));
  EXPECT_EQ(drawn(6, 1 - 1e-15), (list{7, 300, 12000, 19999})); // 0 and 1: 1e-13 of the mass
}

TEST_F(truncation, of_one_row_depends_on_it_alone) {
  const std::int64_t vocab = 30000, rows = 200;
  const auto logits = logits_of(kind::normal, rows * vocab);
  const auto draws = mixed_draws(rows, rows);
  device_draws all(logits, vocab, draws);
  const auto want = all.run();
  for (int again = 0; again < 5; ++again) {
    const auto got = all.run();
    for (std::size_t i = 0; i < draws.size(); ++i)
      ASSERT_TRUE(got[i].id == want[i].id && got[i].logprob == want[i].logprob) << i;
  }
  for (std::size_t i = 0; i < draws.size(); i += 7) {
    const auto got = device_draws(logits, vocab, {draws[i]}).run();
    EXPECT_EQ(got[0].id, want[i].id) << i;
    EXPECT_EQ(got[0].logprob, want[i].logprob) << i;
  }
}

TEST_F(truncation, is_recorded_in_a_graph) {
  const std::int64_t vocab = 30000;
  const auto logits = logits_of(kind::normal, 8 * vocab);
  device_draws draws(logits, vocab, mixed_draws(8, 40));
  const auto want = draws.run();
  const stream_owner where;
  begin_capture(where.get());
  draws.queue(1.f, where.get());
  const graph work = end_capture(where.get());
  for (int again = 0; again < 3; ++again) {
    work.launch(where.get());
    synchronize(where.get());
    const auto got = draws.result();
    for (std::size_t i = 0; i < want.size(); ++i)
      ASSERT_TRUE(got[i].id == want[i].id && got[i].logprob == want[i].logprob) << i;
  }
}

TEST_F(truncation, draws_in_proportion) {
  constexpr std::int64_t vocab = 100, n = 40000;
  const auto logits = logits_of(kind::normal, vocab);
  for (const row_draw& option :
       {row_draw{0, 1, 0, 10, 1, 0}, row_draw{0, 1.5, 0, 0, 0.8, 0}, row_draw{0, 0.9, 0, 0, 1, 0.05}, row_draw{0, 2, 0, 30, 0.9, 0.02}}) {
    std::vector<row_draw> draws(n, option);
    for (std::size_t i = 0; i < draws.size(); ++i)
      draws[i].u = draw_place(key_of(i));
    std::vector<double> counts(vocab);
    for (const auto& t : device_draws(logits, vocab, draws).run())
      ++counts[std::size_t(t.id)];
    const auto masses = kept_masses(logits, option);
    const auto total = std::accumulate(masses.begin(), masses.end(), 0.0);
    double square = 0, freedom = -1;
    for (std::size_t i = 0; i < masses.size(); ++i) {
      const double expected = double(masses[i]) / total * n;
      if (expected == 0)
        EXPECT_EQ(counts[i], 0) << i;
      else
        square += (counts[i] - expected) * (counts[i] - expected) / expected, ++freedom;
    }
    EXPECT_GT(freedom, 3);
    EXPECT_LT(square, freedom + 4 * std::sqrt(2 * freedom)) << "k " << option.top_k << " p " << option.top_p;
  }
}

TEST_F(truncation, refuses_what_is_not_finite) {
  for (const float bad : {INFINITY, -INFINITY, std::nanf("")}) {
    std::vector<float> logits(20000, 0.f);
    logits[19000] = bad;
    const auto got = device_draws(logits, 10000, {{0, 1, 0.5, 3, 0.9, 0}, {1, 1, 0.5, 3, 0.9, 0}}).run();
    EXPECT_GE(got[0].id, 0);
    EXPECT_EQ(got[1].id, -1) << bad;
  }
}

} // namespace
} // namespace troupe
