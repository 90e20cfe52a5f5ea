#include "core/error.hpp"
#include "model/kernels/cuda/softmax.hpp"
#include "model/kernels/cuda/test_support.hpp"
#include <algorithm>
#include <cstring>

namespace troupe::cuda {
namespace {

using kernels::softmax_stats;

std::vector<softmax_stats> on_device(const std::vector<float>& logits, std::int64_t rows, std::int64_t vocab, float temperature,
                                     bool moment) {
  const auto x = to_device(logits);
  const device_buffer stats(std::size_t(rows) * sizeof(softmax_stats));
  softmax_rows(as<float>(x), rows, vocab, temperature, moment, as<softmax_stats>(stats), nullptr);
  return to_host<softmax_stats>(stats);
}

bool same_bits(const softmax_stats& a, const softmax_stats& b) { return std::memcmp(&a, &b, sizeof a) == 0; }

TEST(softmax_row_host, agrees_with_the_cpu_kernel) {
  for (const std::int64_t vocab : {1, 32, 1000, 49152})
    for (const float temperature : {1.f, 0.7f}) {
      const auto x = noise(dtype::f32, vocab, std::uint32_t(vocab));
      const auto got = softmax_row_host(x.data(), vocab, temperature, true);
      const auto want = kernels::softmax_row(best_isa(), x.data(), vocab, temperature, true);
      EXPECT_EQ(got.maximum, want.maximum);
      EXPECT_NEAR(got.sum, want.sum, 1e-5f * want.sum);
      EXPECT_NEAR(got.moment, want.moment, -1e-5f * want.moment + 1e-6f);
    }
}

class softmax : public gpu_table<std::tuple<std::int64_t, std::int64_t, float>> {}; // rows, vocab, temperature

TEST_P(softmax, has_the_bits_of_the_host) {
  const auto [rows, vocab, temperature] = GetParam();
  const auto x = noise(dtype::f32, rows * vocab, 1);
  for (const bool moment : {false, true}) {
    const auto stats = on_device(x, rows, vocab, temperature, moment);
    for (std::int64_t r = 0; r < rows; r += std::max<std::int64_t>(1, rows / 3)) {
      const auto want = softmax_row_host(x.data() + r * vocab, vocab, temperature, moment);
      EXPECT_TRUE(same_bits(stats[std::size_t(r)], want)) << "row " << r << ": " << stats[std::size_t(r)].sum << " and " << want.sum;
    }
  }
}

TEST_P(softmax, log_probabilities_have_the_bits_of_the_host) {
  const auto [rows, vocab, temperature] = GetParam();
  const auto x = noise(dtype::f32, rows * vocab, 2);
  const auto stats = on_device(x, rows, vocab, temperature, false);
  std::vector<std::int32_t> of, ids;
  for (std::int32_t i = 0; i < 300; ++i) {
    of.push_back(std::int32_t(i * 7 % rows));
    ids.push_back(std::int32_t(std::int64_t(i) * 7919 % vocab));
  }
  const auto logits = to_device(x), on = to_device(stats), r = to_device(of), t = to_device(ids);
  const auto out = room(dtype::f32, 300);
  logprobs_of(as<float>(logits), vocab, temperature, as<softmax_stats>(on), as<std::int32_t>(r), as<std::int32_t>(t), 300, as<float>(out),
              nullptr);
  const auto got = to_host<float>(out);
  for (std::size_t i = 0; i < 300; ++i)
    EXPECT_EQ(got[i], stats[std::size_t(of[i])].logprob(x[std::size_t(of[i] * vocab + ids[i])], temperature)) << i;
}

TEST_P(softmax, gradients_have_the_bits_of_the_cpu) {
  const auto [rows, vocab, temperature] = GetParam();
  if (rows * vocab > 4000000)
    GTEST_SKIP() << "seen in smaller ones";
  const auto x = noise(dtype::f32, rows * vocab, 3);
  const auto stats = on_device(x, rows, vocab, temperature, true);
  std::vector<kernels::row_gradient> of(static_cast<std::size_t>(rows));
  std::vector<std::int32_t> begin{0}, ids;
  std::vector<float> d, entropies;
  for (std::int64_t r = 0; r < rows; ++r) {
    auto& g = of[std::size_t(r)];
    for (std::int32_t i = 0; i < std::int32_t(std::min<std::int64_t>(r % 4, vocab)); ++i)
      g.ids.push_back(std::int32_t((r + i) % vocab)), g.d_logprob.push_back(0.25f * float(i + 1));
    g.d_entropy = r % 3 == 0 ? 0.125f : 0.f;
    ids.insert(ids.end(), g.ids.begin(), g.ids.end()), d.insert(d.end(), g.d_logprob.begin(), g.d_logprob.end());
    begin.push_back(std::int32_t(ids.size())), entropies.push_back(g.d_entropy);
  }
  compute where(1);
  std::vector<float> want(x.size());
  kernels::softmax_backward(where, x.data(), rows, vocab, temperature, stats.data(), of.data(), want.data());
  const auto logits = to_device(x), on = to_device(stats), b = to_device(begin), e = to_device(ids), dl = to_device(d),
             de = to_device(entropies);
  for (const auto type : {dtype::f32, dtype::bf16}) {
    const auto out = room(type, rows * vocab);
    softmax_backward(type, as<float>(logits), rows, vocab, temperature, as<softmax_stats>(on), as<std::int32_t>(b), as<std::int32_t>(e),
                     as<float>(dl), as<float>(de), out.data(), nullptr);
    const auto got = download(type, out);
    for (std::size_t i = 0; i < want.size(); ++i)
      ASSERT_EQ(got[i], round_to(type, want[i])) << "element " << i;
  }
}

INSTANTIATE_TEST_SUITE_P(shapes, softmax,
                         testing::Combine(testing::Values(1, 5, 200), testing::Values(1, 33, 1000, 49152), testing::Values(1.f, 0.7f)));
INSTANTIATE_TEST_SUITE_P(wide, softmax, testing::Combine(testing::Values(2), testing::Values(128256, 262145), testing::Values(1.f)));

class softmax_company : public gpu_test {};

TEST_F(softmax_company, changes_no_bit) { // 300 rows take one thread block each, few a cluster
  constexpr std::int64_t vocab = 20000, rows = 300;
  const auto x = noise(dtype::f32, rows * vocab, 4);
  const auto together = on_device(x, rows, vocab, 0.9f, true);
  for (const std::int64_t r : {0, 123, 299}) {
    const std::vector<float> row(x.begin() + r * vocab, x.begin() + (r + 1) * vocab);
    EXPECT_TRUE(same_bits(on_device(row, 1, vocab, 0.9f, true)[0], together[std::size_t(r)])) << r;
  }
}

TEST_F(softmax_company, too_wide_a_row_is_an_error) { EXPECT_THROW(softmax_rows(nullptr, 1, 524289, 1.f, false, nullptr, nullptr), error); }

} // namespace
} // namespace troupe::cuda
