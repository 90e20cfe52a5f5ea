#include "core/random.hpp"
#include "model/kernels/cuda/draw.hpp"
#include "model/kernels/cuda/softmax.hpp"
#include "model/kernels/cuda/test_support.hpp"
#include "rollout/sampler.hpp"
#include <algorithm>
#include <cfloat>
#include <limits>

namespace troupe {
namespace {

using namespace cuda;

std::vector<drawn_token> draw_all(const std::vector<float>& logits, std::int64_t vocab, const std::vector<row_draw>& draws) {
  const auto x = to_device(logits), d = to_device(draws);
  const device_buffer drawn(draws.size() * sizeof(drawn_token));
  draw_tokens(as<float>(x), vocab, {.n = std::int64_t(draws.size()), .draws = as<row_draw>(d), .drawn = as<drawn_token>(drawn)}, nullptr,
              nullptr);
  return to_host<drawn_token>(drawn);
}
row_draw draw_of(std::int32_t row, double temperature, double u) { return {.row = row, .temperature = temperature, .u = u}; }

// As the sampler makes it of a key.
double uniform(const draw_key& key) {
  const auto bits = draw_bits(key);
  return double((std::uint64_t(bits[0]) << 32 | bits[1]) >> 11) * 0x1p-53;
}

class draws_of_rows : public gpu_table<std::tuple<std::int64_t, std::int64_t, float>> {}; // rows, vocab, largest logit

TEST_P(draws_of_rows, are_the_samplers) {
  const auto [rows, vocab, largest] = GetParam();
  auto logits = noise(dtype::f32, rows * vocab, 1);
  for (auto& v : logits)
    v *= largest / 4;
  std::vector<row_draw> draws;
  std::vector<std::int32_t> want;
  for (std::int64_t i = 0; i < std::max<std::int64_t>(rows, 24); ++i) {
    const double temperatures[] = {1, 0.7, 0, 1.3, 0.01, 100};
    const auto d = draw_of(std::int32_t(i % rows), temperatures[i % 6], 0);
    draw_key key{};
    key.position = decltype(key.position)(i);
    draws.push_back(d);
    draws.back().u = uniform(key);
    sampling_params params;
    params.temperature = d.temperature;
    want.push_back(sample_token({logits.data() + d.row * vocab, std::size_t(vocab)}, params, key));
  }
  for (const float temperature : {1.f, 0.7f}) {
    for (auto& d : draws)
      d.logprob_temperature = temperature;
    const auto got = draw_all(logits, vocab, draws);
    for (std::size_t i = 0; i < draws.size(); ++i) {
      EXPECT_EQ(got[i].id, want[i]) << "draw " << i << " at " << draws[i].temperature;
      const float* row = logits.data() + draws[i].row * vocab;
      if (i < 12) {
        const auto stats = softmax_row_host(row, vocab, temperature, false);
        EXPECT_EQ(got[i].logprob, stats.logprob(row[want[i]], temperature)) << "draw " << i;
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(shapes, draws_of_rows,
                         testing::Combine(testing::Values(1, 6, 200), testing::Values(1, 31, 256, 257, 1000, 49152),
                                          testing::Values(4.f, 40.f)));
INSTANTIATE_TEST_SUITE_P(wide, draws_of_rows, testing::Combine(testing::Values(3), testing::Values(128256, 262144), testing::Values(4.f)));

class single_draws : public gpu_test {};

TEST_F(single_draws, take_the_lowest_of_equals) {
  std::vector<float> logits(30000, 1.f);
  logits[20000] = logits[12345] = logits[29999] = 5.f;
  EXPECT_EQ(draw_all(logits, 30000, {draw_of(0, 0, 0.5)})[0].id, 12345);
  EXPECT_EQ(draw_all(std::vector<float>(30000, -FLT_MAX), 30000, {draw_of(0, 0, 0.5)})[0].id, 0);
}

TEST_F(single_draws, end_at_both_ends) {
  const std::vector<float> logits(1000, 0.f);
  const auto got = draw_all(logits, 1000, {draw_of(0, 1, 0), draw_of(0, 1, 1 - 0x1p-53)});
  EXPECT_EQ(got[0].id, 0);
  EXPECT_EQ(got[1].id, 999);
}

TEST_F(single_draws, refuse_what_is_not_finite) {
  for (const float bad : {std::numeric_limits<float>::infinity(), -std::numeric_limits<float>::infinity(), std::nanf("")}) {
    std::vector<float> logits(20000, 0.f);
    logits[19000] = bad;
    for (const double temperature : {0.0, 1.0})
      EXPECT_EQ(draw_all(logits, 10000, {draw_of(0, temperature, 0.5), draw_of(1, temperature, 0.5)})[1].id, -1) << bad;
    EXPECT_GE(draw_all(logits, 10000, {draw_of(0, 1, 0.5)})[0].id, 0);
  }
}

} // namespace
} // namespace troupe
