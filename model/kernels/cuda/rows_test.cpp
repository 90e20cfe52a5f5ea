#include "model/kernels/cuda/elementwise.hpp"
#include "model/kernels/cuda/test_support.hpp"
#include <numeric>

namespace troupe::cuda {
namespace {

using table = gpu_table<std::tuple<dtype, std::int64_t>>; // type, width

class rows_of : public table {};

TEST_P(rows_of, are_gathered_and_scattered) {
  const auto [type, h] = GetParam();
  const auto x = noise(type, 40 * h, 1), before = noise(type, 40 * h, 2);
  const std::vector<std::int32_t> rows{3, 39, 0, 17, 4};
  const auto ids = to_device(rows), in = upload(type, x), gathered = room(type, 5 * h), scattered = upload(type, before);
  gather_rows(type, in.data(), as<std::int32_t>(ids), 5, h, gathered.data(), nullptr);
  scatter_rows(type, gathered.data(), as<std::int32_t>(ids), 5, h, scattered.data(), nullptr);
  auto want = before;
  for (const auto r : rows)
    std::copy_n(x.begin() + r * h, h, want.begin() + r * h);
  EXPECT_EQ(download(type, scattered), want);
}

TEST_P(rows_of, a_table_are_embedded_and_negative_ids_give_zeros) {
  const auto [type, h] = GetParam();
  const auto x = noise(type, 40 * h, 3);
  const std::vector<std::int32_t> ids{39, -1, 0, 39};
  const auto on_device = to_device(ids), in = upload(type, x), out = room(type, 4 * h);
  embed(type, in.data(), as<std::int32_t>(on_device), 4, h, out.data(), nullptr);
  std::vector<float> want(std::size_t(4 * h), 0.f);
  for (std::int64_t i = 0; i < 4; ++i)
    if (ids[std::size_t(i)] >= 0)
      std::copy_n(x.begin() + ids[std::size_t(i)] * h, h, want.begin() + i * h);
  EXPECT_EQ(download(type, out), want);
}

TEST_P(rows_of, gradients_add_up_in_order) {
  const std::int64_t h = std::get<1>(GetParam());
  const std::vector<std::int32_t> ids{5, 2}, begin{0, 3, 4}, order{0, 2, 3, 1};
  const auto d_out = noise(dtype::f32, 4 * h, 4), before = noise(dtype::f32, 8 * h, 5);
  const auto i = to_device(ids), b = to_device(begin), o = to_device(order), d = to_device(d_out), grad = to_device(before);
  embed_backward(as<std::int32_t>(i), as<std::int32_t>(b), as<std::int32_t>(o), 2, as<float>(d), h, as<float>(grad), nullptr);
  auto want = before;
  for (std::int64_t j = 0; j < h; ++j) {
    for (const std::int64_t r : {0, 2, 3})
      want[std::size_t(5 * h + j)] += d_out[std::size_t(r * h + j)];
    want[std::size_t(2 * h + j)] += d_out[std::size_t(h + j)];
  }
  EXPECT_EQ(to_host<float>(grad), want);
}

TEST_P(rows_of, are_summed_for_a_bias) {
  const auto [type, m] = GetParam();
  for (const std::int64_t n : {1, 33, 500}) {
    const auto dy = noise(type, n * m, 6), before = noise(dtype::f32, m, 7);
    const auto in = upload(type, dy), bias = to_device(before);
    bias_backward(type, in.data(), n, m, as<float>(bias), nullptr);
    std::vector<float> want;
    for (std::int64_t j = 0; j < m; ++j) {
      double sum = before[std::size_t(j)];
      for (std::int64_t r = 0; r < n; ++r)
        sum += dy[std::size_t(r * m + j)];
      want.push_back(float(sum));
    }
    expect_near(to_host<float>(bias), want, 1e-5f, 1e-3f);
  }
}

INSTANTIATE_TEST_SUITE_P(shapes, rows_of,
                         testing::Combine(testing::Values(dtype::f32, dtype::bf16), testing::Values(1, 31, 64, 576, 1001, 4096)));

} // namespace
} // namespace troupe::cuda
