#include "core/error.hpp"
#include "model/compute.hpp"
#include "model/kernels/cuda/linear.hpp"
#include "model/kernels/cuda/test_support.hpp"
#include "model/kernels/elementwise.hpp"
#include <algorithm>
#include <cstring>

namespace troupe::cuda {
namespace {

struct shape {
  std::int64_t k, m;
};

// Values in -4 .. 4.
std::vector<kernels::bf16> halves(std::int64_t count, std::uint32_t seed) {
  std::vector<kernels::bf16> values(static_cast<std::size_t>(count));
  for (auto& v : values) {
    seed = seed * 1664525u + 1013904223u;
    v = kernels::narrow(float(std::int32_t(seed) / 65536) / 8192.f);
  }
  return values;
}

constexpr std::int64_t sizes[] = {1, 2, 3, 7, 8, 16, 17, 33, 64, 65, 128, 200, 256, 300, 512, 1000, 2048};
constexpr std::int64_t most_rows = 4096;

class products : public gpu_table<std::tuple<shape, dtype, bool>> {}; // of bf16: shape, result, bias

// Rows of a product of n are compared with those of 4096, at the beginning and at an offset that is no multiple of any tile.
TEST_P(products, rows_do_not_depend_on_their_number) {
  const auto [s, out, with_bias] = GetParam();
  const auto x = halves(most_rows * s.k, 1), bias = halves(s.m, 3);
  auto w = halves(std::min<std::int64_t>(s.m, 8192) * s.k, 2);
  device_buffer weights(std::size_t(s.m * s.k) * 2);
  for (std::int64_t row = 0; row < s.m; row += 8192) // a wide matrix repeats its rows
    copy_async(as<kernels::bf16>(weights) + row * s.k, w.data(), std::size_t(std::min<std::int64_t>(8192, s.m - row) * s.k) * 2, nullptr);
  const auto in = to_device(x), b = to_device(bias);
  const std::int64_t row_bytes = s.m * std::int64_t(size_of(out));
  matmul product;
  const device_buffer whole(std::size_t(most_rows * row_bytes)), part(std::size_t(2048 * row_bytes));
  const auto run = [&](std::int64_t first, std::int64_t n, void* y) {
    product.forward(dtype::bf16, as<kernels::bf16>(in) + first * s.k, weights.data(), with_bias ? b.data() : nullptr, n, s.m, s.k, y, out,
                    nullptr);
  };
  run(0, most_rows, whole.data());
  const pinned_buffer want(std::size_t(2048 * row_bytes)), got(want.size());
  for (const std::int64_t first : {0, 1043})
    for (const std::int64_t n : sizes) {
      run(first, n, part.data());
      copy_async(want.data(), as<char>(whole) + first * row_bytes, std::size_t(n * row_bytes), nullptr);
      copy_async(got.data(), part.data(), std::size_t(n * row_bytes), nullptr);
      synchronize();
      EXPECT_EQ(std::memcmp(want.data(), got.data(), std::size_t(n * row_bytes)), 0) << "n " << n << " from row " << first;
    }
}

INSTANTIATE_TEST_SUITE_P(smollm2, products,
                         testing::Combine(testing::Values(shape{576, 960}, shape{576, 576}, shape{576, 3072}, shape{1536, 576}),
                                          testing::Values(dtype::bf16, dtype::f32), testing::Bool()));
INSTANTIATE_TEST_SUITE_P(smollm2_head, products,
                         testing::Combine(testing::Values(shape{576, 49152}), testing::Values(dtype::f32), testing::Values(false)));
INSTANTIATE_TEST_SUITE_P(llama_8b_head, products,
                         testing::Combine(testing::Values(shape{4096, 128256}), testing::Values(dtype::f32), testing::Values(false)));
INSTANTIATE_TEST_SUITE_P(llama_8b, products,
                         testing::Combine(testing::Values(shape{4096, 6144}, shape{4096, 4096}, shape{4096, 28672}, shape{14336, 4096}),
                                          testing::Values(dtype::bf16), testing::Values(false)));

struct full_shape {
  dtype type, out;
  std::int64_t n, k, m;
};
class small_products : public gpu_table<full_shape> {
protected:
  // sum over p of a(i, p) b(j, p) in double.
  template <class A, class B>
  static std::vector<float> reference(std::int64_t n, std::int64_t m, std::int64_t k, const A& a, const B& b) {
    std::vector<float> out;
    for (std::int64_t i = 0; i < n; ++i)
      for (std::int64_t j = 0; j < m; ++j) {
        double sum = 0;
        for (std::int64_t p = 0; p < k; ++p)
          sum += double(a(i, p)) * b(j, p);
        out.push_back(float(sum));
      }
    return out;
  }
};

TEST_P(small_products, forward_agrees_with_the_reference) {
  const auto [type, out, n, k, m] = GetParam();
  const auto x = noise(type, n * k, 1), w = noise(type, m * k, 2), b = noise(type, m, 3);
  const auto in = upload(type, x), weight = upload(type, w), bias = upload(type, b), y = room(out, n * m);
  matmul product;
  for (const bool with_bias : {false, true}) {
    product.forward(type, in.data(), weight.data(), with_bias ? bias.data() : nullptr, n, m, k, y.data(), out, nullptr);
    auto want = reference(
        n, m, k, [&, k = k](std::int64_t i, std::int64_t p) { return x[std::size_t(i * k + p)]; },
        [&, k = k](std::int64_t j, std::int64_t p) { return w[std::size_t(j * k + p)]; });
    for (std::size_t i = 0; with_bias && i < want.size(); ++i)
      want[i] += b[i % std::size_t(m)];
    expect_near(download(out, y), want, out == dtype::bf16 ? 0x1p-8f : 1e-5f, 1e-3f);
  }
}

TEST_P(small_products, gradients_agree_with_the_reference) {
  const auto [type, out, n, k, m] = GetParam();
  const auto x = noise(type, n * k, 4), w = noise(type, m * k, 5), dy = noise(type, n * m, 6), before = noise(dtype::f32, m * k, 7);
  const auto in = upload(type, x), weight = upload(type, w), d = upload(type, dy), dx = room(dtype::f32, n * k), dw = to_device(before);
  matmul product;
  product.backward_input(type, d.data(), weight.data(), n, m, k, as<float>(dx), nullptr);
  product.backward_weight(type, d.data(), in.data(), n, m, k, as<float>(dw), nullptr);
  expect_near(to_host<float>(dx),
              reference(
                  n, k, m, [&, m = m](std::int64_t i, std::int64_t p) { return dy[std::size_t(i * m + p)]; },
                  [&, k = k](std::int64_t j, std::int64_t p) { return w[std::size_t(p * k + j)]; }),
              1e-5f, 1e-3f);
  auto want = reference(
      m, k, n, [&, m = m](std::int64_t i, std::int64_t p) { return dy[std::size_t(p * m + i)]; },
      [&, k = k](std::int64_t j, std::int64_t p) { return x[std::size_t(p * k + j)]; });
  for (std::size_t i = 0; i < want.size(); ++i)
    want[i] += before[i];
  expect_near(to_host<float>(dw), want, 1e-5f, 1e-3f);
}

INSTANTIATE_TEST_SUITE_P(shapes, small_products,
                         testing::Values(full_shape{dtype::bf16, dtype::bf16, 5, 64, 48}, full_shape{dtype::bf16, dtype::f32, 70, 128, 96},
                                         full_shape{dtype::bf16, dtype::bf16, 33, 30, 50}, full_shape{dtype::bf16, dtype::f32, 3, 7, 5},
                                         full_shape{dtype::f32, dtype::f32, 5, 64, 48}, full_shape{dtype::f32, dtype::f32, 130, 100, 77},
                                         full_shape{dtype::f32, dtype::f32, 1, 1, 1}, full_shape{dtype::bf16, dtype::bf16, 1, 8, 8}));

class float_products : public gpu_table<shape> {};

// float32: one chain, k ascending, on both.
TEST_P(float_products, have_the_bits_of_the_cpu_whatever_their_number) {
  const auto [k, m] = GetParam();
  const auto x = noise(dtype::f32, 300 * k, 8), w = noise(dtype::f32, m * k, 9);
  compute where(1);
  kernels::packed_weight<float> packed(m, k);
  kernels::pack(where.pool(), packed, w.data(), k, m);
  std::vector<float> want(std::size_t(300 * m));
  kernels::gemm(where.pool(), where.which(), x.data(), k, 300, packed, want.data(), m);
  const auto in = to_device(x), weight = to_device(w);
  matmul product;
  for (const std::int64_t n : {1, 3, 8, 16, 17, 64, 65, 200, 300}) {
    const auto y = room(dtype::f32, n * m);
    product.forward(dtype::f32, in.data(), weight.data(), nullptr, n, m, k, y.data(), dtype::f32, nullptr);
    EXPECT_EQ(to_host<float>(y), std::vector<float>(want.begin(), want.begin() + n * m)) << "n " << n;
  }
}

INSTANTIATE_TEST_SUITE_P(shapes, float_products, testing::Values(shape{64, 48}, shape{576, 960}, shape{33, 7}, shape{1536, 576}));

class product_errors : public gpu_test {};

TEST_F(product_errors, names_what_it_cannot_do) {
  matmul product;
  EXPECT_THROW(product.forward(dtype::f32, nullptr, nullptr, nullptr, 1, 8, 8, nullptr, dtype::bf16, nullptr), error);
  EXPECT_THROW(product.forward(dtype::f16, nullptr, nullptr, nullptr, 1, 8, 8, nullptr, dtype::f16, nullptr), error);
}

} // namespace
} // namespace troupe::cuda
