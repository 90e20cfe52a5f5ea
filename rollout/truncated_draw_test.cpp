#include "core/random.hpp"
#include "model/cuda/device_draws.hpp"
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

using cuda::device_buffer, cuda::stream_owner;
using row_of_logits = std::span<const float>;

// Draws from rows that lie one after the other, as a model on a GPU makes them.
class queued_draws {
public:
  queued_draws(const std::vector<float>& logits, std::int64_t vocab, const std::vector<token_draw>& draws)
      : vocab_(vocab), draws_(draws), logits_(cuda::to_device(logits)) {
    arrays_ = place_.put(draws_, std::int64_t(draws_.size()), where_.get());
    if (arrays_.edits)
      scratch_ = device_buffer(std::size_t(std::min(arrays_.n, cuda::edited_rows) * vocab) * sizeof(float));
  }
  cuda::stream where() const { return where_.get(); }
  void queue() { cuda::draw_tokens(cuda::as<float>(logits_), vocab_, arrays_, cuda::as<float>(scratch_), where()); }
  std::vector<drawn_token> result() {
    place_.fetch(draws_.size(), where());
    cuda::synchronize(where());
    std::vector<drawn_token> drawn(draws_.size());
    place_.read(draws_, drawn.data());
    return drawn;
  }
  std::vector<drawn_token> run() {
    queue();
    return result();
  }

private:
  std::int64_t vocab_;
  std::vector<token_draw> draws_;
  stream_owner where_;
  device_buffer logits_, scratch_;
  cuda::device_draws place_;
  cuda::draw_arrays arrays_;
};

// The definition, by a sorted list: what is kept, as masses by id.
std::vector<std::uint64_t> kept_masses(row_of_logits x, const token_draw& d) {
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

std::int32_t reference_draw(row_of_logits x, const token_draw& d) {
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

std::int32_t sampled(row_of_logits x, const token_draw& d, std::size_t i) {
  sampling_params p;
  p.temperature = d.temperature, p.top_k = d.top_k, p.top_p = d.top_p, p.min_p = d.min_p;
  return sample_token(x, p, key_of(i));
}

enum class kind { even, normal, coarse, equal, peaked };

std::vector<float> logits_of(kind of, std::int64_t n) {
  std::mt19937 rng(11);
  std::normal_distribution<float> normal(0, 2);
  auto x = cuda::noise(dtype::f32, n, 5);
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

std::vector<token_draw> mixed_draws(std::int64_t rows, std::int64_t n) {
  const double temperatures[] = {1, 0.7, 1.3, 0.01, 100, 0};
  const std::int32_t counts[] = {0, 1, 5, 50, 1000, 40000};
  const double masses[] = {1, 0.9, 0.5, 0.999, 1e-9, 0.95, 1};
  const double least[] = {0, 0, 0.1, 0, 1e-4, 0, 1, 0};
  std::vector<token_draw> draws;
  std::mt19937 rng(3);
  for (std::int64_t i = 0; i < n; ++i)
    draws.push_back({.row = std::int32_t(i % rows),
                     .temperature = temperatures[rng() % 6],
                     .u = draw_place(key_of(std::size_t(i))),
                     .top_p = masses[rng() % 7],
                     .min_p = least[rng() % 8],
                     .top_k = counts[rng() % 6],
                     .logprob_temperature = 0.7f});
  return draws;
}

class truncated_draws : public cuda::gpu_table<std::tuple<kind, std::int64_t, std::int64_t>> {}; // of rows, vocab, draws

TEST_P(truncated_draws, are_those_of_a_sorted_list_and_the_samplers) {
  const auto [of, vocab, n] = GetParam();
  constexpr std::int64_t rows = 5;
  const auto logits = logits_of(of, rows * vocab);
  const auto draws = mixed_draws(rows, n);
  const auto got = queued_draws(logits, vocab, draws).run();
  int others = 0;
  for (std::size_t i = 0; i < draws.size(); ++i) {
    const token_draw& d = draws[i];
    const row_of_logits x(logits.data() + d.row * vocab, std::size_t(vocab));
    const bool plain = d.temperature == 0 || (d.top_k == 0 && d.top_p == 1 && d.min_p == 0);
    const auto own = sampled(x, d, i);
    ASSERT_EQ(got[i].id, plain ? own : reference_draw(x, d))
        << "draw " << i << " t " << d.temperature << " k " << d.top_k << " p " << d.top_p << " min " << d.min_p;
    others += got[i].id != own;
    if (i % 16 == 0) {
      const auto stats = cuda::softmax_row_host(x.data(), vocab, 0.7f, false);
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

class truncation : public cuda::gpu_test {};

TEST_F(truncation, keeps_the_lowest_of_equals) {
  std::vector<float> logits(20000, 0.f);
  for (const int id : {19999, 7, 300, 12000})
    logits[std::size_t(id)] = 3.f;
  const auto drawn = [&](std::int32_t k, double p) {
    std::vector<token_draw> draws;
    for (int i = 0; i < 200; ++i)
      draws.push_back({.temperature = 0.1, .u = (i + 0.5) / 200, .top_p = p, .top_k = k});
    std::vector<std::int32_t> ids;
    for (const auto& t : queued_draws(logits, 20000, draws).run())
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
  queued_draws all(logits, vocab, draws);
  const auto want = all.run();
  for (int again = 0; again < 5; ++again) {
    const auto got = all.run();
    for (std::size_t i = 0; i < draws.size(); ++i)
      ASSERT_TRUE(got[i].id == want[i].id && got[i].logprob == want[i].logprob) << i;
  }
  for (std::size_t i = 0; i < draws.size(); i += 7) {
    const auto got = queued_draws(logits, vocab, {draws[i]}).run();
    EXPECT_EQ(got[0].id, want[i].id) << i;
    EXPECT_EQ(got[0].logprob, want[i].logprob) << i;
  }
}

TEST_F(truncation, is_recorded_in_a_graph) {
  const std::int64_t vocab = 30000;
  queued_draws draws(logits_of(kind::normal, 8 * vocab), vocab, mixed_draws(8, 40));
  const auto want = draws.run();
  cuda::begin_capture(draws.where());
  draws.queue();
  const cuda::graph work = cuda::end_capture(draws.where());
  for (int again = 0; again < 3; ++again) {
    work.launch(draws.where());
    const auto got = draws.result();
    for (std::size_t i = 0; i < want.size(); ++i)
      ASSERT_TRUE(got[i].id == want[i].id && got[i].logprob == want[i].logprob) << i;
  }
}

TEST_F(truncation, draws_in_proportion) {
  constexpr std::int64_t vocab = 100, n = 40000;
  const auto logits = logits_of(kind::normal, vocab);
  const token_draw options[] = {{.top_k = 10},
                                {.temperature = 1.5, .top_p = 0.8},
                                {.temperature = 2, .min_p = 0.05},
                                {.temperature = 2, .top_p = 0.9, .min_p = 0.02, .top_k = 30}};
  for (const auto& option : options) {
    std::vector<token_draw> draws(n, option);
    for (std::size_t i = 0; i < draws.size(); ++i)
      draws[i].u = draw_place(key_of(i));
    std::vector<double> counts(vocab);
    for (const auto& t : queued_draws(logits, vocab, draws).run())
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
    const auto got =
        queued_draws(logits, 10000, {{.u = 0.5, .top_p = 0.9, .top_k = 3}, {.row = 1, .u = 0.5, .top_p = 0.9, .top_k = 3}}).run();
    EXPECT_GE(got[0].id, 0);
    EXPECT_EQ(got[1].id, not_finite) << bad;
  }
}

// A request's rules and the draws before, by number.
struct ruled {
  sampling_params params;
  std::vector<std::int32_t> prompt_ids, end_ids;
  token_counts drawn;
  std::int64_t n_drawn = 0;
  sampling_history history() const { return {prompt_ids, &drawn, n_drawn, end_ids}; }
};

ruled rules_of(int i, std::int64_t vocab) {
  std::mt19937 rng{std::uint32_t(i)};
  const auto ids = [&](std::size_t n) {
    std::vector<std::int32_t> list;
    for (std::size_t k = 0; k < n; ++k)
      list.push_back(std::int32_t(rng() % std::uint64_t(vocab)));
    std::sort(list.begin(), list.end());
    list.erase(std::unique(list.begin(), list.end()), list.end());
    return list;
  };
  ruled r;
  auto& p = r.params;
  p.temperature = i % 5 == 0 ? 0 : 0.8;
  r.prompt_ids = ids(40), r.end_ids = {3, std::int32_t(vocab) + 1};
  for (const auto id : ids(30))
    r.drawn[id] = 1 + std::int32_t(rng() % 4);
  for (const auto id : r.prompt_ids)
    if (rng() % 4 == 0)
      r.drawn[id] = 2;
  r.n_drawn = 60;
  if (i & 1)
    for (const auto id : ids(10))
      p.logit_bias.emplace_back(id, rng() % 2 ? 3.f : -100.f);
  if (i & 2)
    p.repetition_penalty = 1.7;
  if (i & 4)
    p.presence_penalty = 0.4, p.frequency_penalty = -0.3;
  if (i & 8)
    p.allowed_ids = ids(50);
  if (i & 16)
    p.min_tokens = 70;
  if (i & 32)
    p.top_k = 30, p.top_p = 0.9;
  p.top_logprobs = i % 3 == 0 ? 20 : 0;
  return r;
}

class edits : public cuda::gpu_table<std::int64_t> {}; // vocab

TEST_P(edits, are_the_samplers_rules) {
  const std::int64_t vocab = GetParam();
  constexpr std::int32_t n = 128, rows = 7;
  const auto logits = logits_of(kind::normal, rows * vocab);
  std::vector<ruled> requests;
  for (int i = 0; i < n; ++i)
    requests.push_back(rules_of(i, vocab));
  std::vector<logit_edits> lists(n);
  std::vector<std::vector<drawn_token>> tops(n);
  std::vector<token_draw> draws;
  for (std::size_t i = 0; i < n; ++i) {
    const auto& p = requests[i].params;
    lists[i] = edits_of(p, requests[i].history(), vocab);
    tops[i].resize(std::size_t(std::min(p.top_logprobs, vocab)));
    draws.push_back({.row = std::int32_t(i) % rows,
                     .temperature = p.temperature,
                     .u = draw_place(key_of(i)),
                     .top_p = p.top_p,
                     .top_k = std::int32_t(p.top_k),
                     .edits = has_rules(p, 60) ? &lists[i] : nullptr,
                     .top = tops[i].data(),
                     .n_top = std::int32_t(tops[i].size())});
  }
  const auto got = queued_draws(logits, vocab, draws).run();
  for (std::size_t i = 0; i < n; ++i) {
    const row_of_logits x(logits.data() + draws[i].row * vocab, std::size_t(vocab));
    ASSERT_EQ(got[i].id, sample_token(x, requests[i].params, key_of(i), requests[i].history())) << i;
    const auto stats = cuda::softmax_row_host(x.data(), vocab, 1.f, false);
    const auto logprob = [&](std::int32_t id) { return stats.logprob(x[std::size_t(id)], 1.f); };
    EXPECT_EQ(got[i].logprob, logprob(got[i].id)) << i;
    if (tops[i].empty())
      continue;
    const auto ids = most_probable_ids(x, requests[i].params.top_logprobs);
    ASSERT_EQ(ids.size(), tops[i].size());
    for (std::size_t k = 0; k < ids.size(); ++k) {
      EXPECT_EQ(tops[i][k].id, ids[k]) << i << " " << k;
      EXPECT_EQ(tops[i][k].logprob, logprob(ids[k])) << i << " " << k;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(vocabularies, edits, testing::Values(300, 5000, 49152));

class alternatives : public cuda::gpu_table<std::tuple<kind, std::int64_t>> {}; // of rows, vocab

TEST_P(alternatives, are_the_most_probable) {
  const auto [of, vocab] = GetParam();
  const auto logits = logits_of(of, 2 * vocab);
  for (const std::int64_t wanted : {1, 5, 1000}) {
    const auto k = std::int32_t(std::min(wanted, vocab));
    std::vector<drawn_token> top(std::size_t(2 * k));
    queued_draws(logits, vocab, {{.top = top.data(), .n_top = k}, {.row = 1, .top = top.data() + k, .n_top = k}}).run();
    for (std::int64_t row = 0; row < 2; ++row) {
      const auto ids = most_probable_ids({logits.data() + row * vocab, std::size_t(vocab)}, k);
      for (std::size_t i = 0; i < ids.size(); ++i)
        ASSERT_EQ(top[std::size_t(row * k) + i].id, ids[i]) << row << " " << i;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(rows, alternatives,
                         testing::Combine(testing::Values(kind::even, kind::normal, kind::coarse, kind::equal, kind::peaked),
                                          testing::Values(1, 300, 49152, 128256)));

TEST_F(truncation, of_no_token_is_refused) {
  logit_edits all;
  for (std::int32_t i = 0; i < 500; ++i)
    all.masked.push_back(i);
  const auto got = queued_draws(std::vector<float>(500, 1.f), 500, {{.edits = &all}, {.top_k = 3, .edits = &all}, {.u = 0.5}}).run();
  EXPECT_EQ(got[0].id, none_left);
  EXPECT_EQ(got[1].id, none_left);
  EXPECT_EQ(got[2].id, 250);
}

} // namespace
} // namespace troupe
