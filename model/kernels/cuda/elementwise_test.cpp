#include "core/error.hpp"
#include "model/kernels/cuda/elementwise.hpp"
#include "model/kernels/cuda/test_support.hpp"
#include "model/kernels/elementwise.hpp"

namespace troupe::cuda {
namespace {

class elements : public gpu_table<std::tuple<dtype, std::int64_t>> {}; // type, count

// The CPU's layout: 16 of gate, then 16 of up in turn.
std::int64_t interleaved(std::int64_t row, std::int64_t column, std::int64_t inter, bool up) {
  return row * ((inter + 15) / 16 * 32) + column / 16 * 32 + column % 16 + (up ? 16 : 0);
}

template <class T>
std::vector<T> typed(const std::vector<float>& values) {
  if constexpr (sizeof(T) == 4)
    return values;
  else {
    std::vector<T> out;
    for (const float v : values)
      out.push_back(kernels::narrow(v));
    return out;
  }
}

struct silu_results {
  std::vector<float> act, d_gate_up; // rows of gate, then up
};

template <class T>
silu_results silu_on_host(const std::vector<float>& gate_up, const std::vector<float>& d_act, std::int64_t n, std::int64_t inter) {
  compute where(1);
  const auto from = typed<T>(gate_up);
  std::vector<T> in(std::size_t(n * ((inter + 15) / 16 * 32))), act(std::size_t(n * inter)), d(in.size());
  const auto each = [&](const auto& f) {
    for (std::int64_t r = 0; r < n; ++r)
      for (std::int64_t j = 0; j < inter; ++j)
        for (const bool up : {false, true})
          f(std::size_t(interleaved(r, j, inter, up)), std::size_t((2 * r + up) * inter + j));
  };
  each([&](std::size_t to, std::size_t at) { in[to] = from[at]; });
  kernels::silu_mul(where, in.data(), n, inter, act.data());
  kernels::silu_mul_backward(where, in.data(), d_act.data(), n, inter, d.data());
  silu_results out{{}, std::vector<float>(gate_up.size())};
  for (const T v : act)
    out.act.push_back(kernels::widen(v));
  each([&](std::size_t from_at, std::size_t at) { out.d_gate_up[at] = kernels::widen(d[from_at]); });
  return out;
}

TEST_P(elements, silu_mul_has_the_bits_of_the_cpu) {
  const auto [type, inter] = GetParam();
  constexpr std::int64_t n = 3;
  const auto gate_up = noise(type, n * 2 * inter, 1), d_act = noise(dtype::f32, n * inter, 2);
  const auto in = upload(type, gate_up), d = to_device(d_act), act = room(type, n * inter), gradient = room(type, n * 2 * inter);
  silu_mul(type, in.data(), n, inter, act.data(), nullptr);
  silu_mul_backward(type, in.data(), as<float>(d), n, inter, gradient.data(), nullptr);
  const auto want =
      type == dtype::f32 ? silu_on_host<float>(gate_up, d_act, n, inter) : silu_on_host<kernels::bf16>(gate_up, d_act, n, inter);
  EXPECT_EQ(download(type, act), want.act);
  EXPECT_EQ(download(type, gradient), want.d_gate_up);
}

TEST_P(elements, relu_zeroes_what_is_not_positive) {
  const auto [type, count] = GetParam();
  auto values = noise(type, count, 3);
  const auto gradients = noise(dtype::f32, count, 4);
  const auto x = upload(type, values), d = to_device(gradients);
  relu(type, x.data(), count, nullptr);
  relu_backward(type, x.data(), as<float>(d), count, nullptr);
  auto want = gradients;
  for (std::size_t i = 0; i < values.size(); ++i)
    if (values[i] <= 0)
      values[i] = want[i] = 0;
  EXPECT_EQ(download(type, x), values);
  EXPECT_EQ(to_host<float>(d), want);
}

TEST_P(elements, are_rounded_widened_and_added) {
  const auto [type, count] = GetParam();
  const auto values = noise(dtype::f32, count, 5), others = noise(type, count, 6);
  const auto x = to_device(values), other = upload(type, others), narrow = room(type, count), wide = room(dtype::f32, count);
  convert(as<float>(x), count, type, narrow.data(), nullptr);
  widen(type, narrow.data(), count, as<float>(wide), nullptr);
  std::vector<float> rounded, sums;
  for (std::size_t i = 0; i < values.size(); ++i) {
    rounded.push_back(round_to(type, values[i]));
    sums.push_back(round_to(type, rounded[i] + others[i]));
  }
  EXPECT_EQ(to_host<float>(wide), rounded);
  add(type, narrow.data(), other.data(), count, nullptr);
  EXPECT_EQ(download(type, narrow), sums);
}

INSTANTIATE_TEST_SUITE_P(counts, elements,
                         testing::Combine(testing::Values(dtype::f32, dtype::bf16), testing::Values(1, 7, 64, 1001, 1536)));

TEST(elementwise_errors, names_the_types_it_takes) {
  try {
    relu(dtype::f16, nullptr, 1, nullptr);
    FAIL();
  } catch (const error& e) {
    EXPECT_EQ(e.code(), errc::unsupported);
  }
}

} // namespace
} // namespace troupe::cuda
