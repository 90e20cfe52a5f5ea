#include "core/error.hpp"
#include "model/kernels/cuda/elementwise.hpp"
#include "model/kernels/cuda/test_support.hpp"
#include <cmath>

namespace troupe::cuda {
namespace {

struct outputs {
  std::vector<float> residual, y;
};

outputs run(dtype type, const std::vector<float>* x, const std::vector<float>& residual, const std::vector<float>& w, std::int64_t n) {
  const auto h = std::int64_t(w.size());
  const device_buffer in = x ? upload(type, *x) : device_buffer();
  const device_buffer res = upload(type, residual), weight = upload(type, w), out(residual.size() * size_of(type));
  add_rms_norm(type, in.data(), res.data(), weight.data(), 1e-5f, n, h, out.data(), nullptr);
  return {download(type, res), download(type, out)};
}

/// The same in double, rounded where the kernel rounds.
outputs reference(dtype type, const std::vector<float>* x, std::vector<float> residual, const std::vector<float>& w) {
  const std::size_t h = w.size();
  outputs out{std::move(residual), {}};
  for (std::size_t row = 0; row < out.residual.size(); row += h) {
    double squares = 0;
    for (std::size_t i = row; i < row + h; ++i) {
      if (x)
        out.residual[i] = round_to(type, out.residual[i] + (*x)[i]);
      squares += double(out.residual[i]) * out.residual[i];
    }
    const double inverse = 1 / std::sqrt(squares / double(h) + 1e-5);
    for (std::size_t i = 0; i < h; ++i)
      out.y.push_back(round_to(type, w[i] * round_to(type, float(out.residual[row + i] * inverse))));
  }
  return out;
}

class rms_norms : public gpu_table<std::tuple<dtype, std::int64_t, std::int64_t>> {}; // type, rows, width

TEST_P(rms_norms, agrees_with_the_reference) {
  const auto [type, n, h] = GetParam();
  const auto x = noise(type, n * h, 1), residual = noise(type, n * h, 2), w = noise(type, h, 3);
  // A sum in another order moves the row's factor by a rounding or two: one step of bf16 at most in each of two roundings.
  const float tolerance = type == dtype::bf16 ? 0x1p-7f : 1e-5f;
  for (const auto* add : {&x, static_cast<const std::vector<float>*>(nullptr)}) {
    const outputs got = run(type, add, residual, w, n), want = reference(type, add, residual, w);
    EXPECT_EQ(got.residual, want.residual);
    ASSERT_EQ(got.y.size(), want.y.size());
    for (std::size_t i = 0; i < got.y.size(); ++i)
      ASSERT_NEAR(got.y[i], want.y[i], tolerance * std::abs(want.y[i]) + 1e-7f) << "element " << i;
  }
}

TEST_P(rms_norms, rows_do_not_depend_on_their_company) {
  const auto [type, n, h] = GetParam();
  const auto x = noise(type, n * h, 4), residual = noise(type, n * h, 5), w = noise(type, h, 6);
  const outputs together = run(type, &x, residual, w, n);
  for (const std::int64_t row : {std::int64_t(0), n - 1}) {
    const auto cut = [&, h = h](const std::vector<float>& v) { return std::vector<float>(v.begin() + row * h, v.begin() + (row + 1) * h); };
    const auto row_x = cut(x);
    EXPECT_EQ(run(type, &row_x, cut(residual), w, 1).y, cut(together.y)) << "row " << row;
  }
}

// Rows of 5 heads, 8 elements between rows, as queries and keys of qkv lie.
TEST_P(rms_norms, of_heads_have_the_bits_of_rows) {
  const auto [type, n, h] = GetParam();
  if (h > 1024)
    GTEST_SKIP() << "no head is so wide";
  constexpr std::int64_t heads = 5;
  const std::int64_t ld = heads * h + (h % 8 == 0 ? 8 : 3);
  const auto rows = noise(type, n * ld, 7), w = noise(type, h, 8);
  const auto x = upload(type, rows), weight = upload(type, w);
  rms_norm_heads(type, x.data(), ld, weight.data(), 1e-5f, n, heads, h, x.data(), ld, nullptr);
  auto want = rows;
  std::vector<float> together;
  for (std::int64_t i = 0; i < n * heads; ++i)
    together.insert(together.end(), rows.begin() + i / heads * ld + i % heads * h, rows.begin() + i / heads * ld + i % heads * h + h);
  const auto y = run(type, nullptr, together, w, n * heads).y;
  for (std::int64_t i = 0; i < n * heads; ++i)
    std::copy_n(y.begin() + i * h, h, want.begin() + i / heads * ld + i % heads * h);
  EXPECT_EQ(download(type, x), want);
}

// Gradients in double: of x by row, of w over all rows.
void reference_gradients(const std::vector<float>& dy, const std::vector<float>& x, const std::vector<float>& w, std::vector<float>& dx,
                         std::vector<float>& dw) {
  const std::size_t h = w.size();
  std::vector<double> sums(dw.begin(), dw.end());
  for (std::size_t row = 0; row < x.size(); row += h) {
    double squares = 0, dot = 0;
    for (std::size_t i = 0; i < h; ++i)
      squares += double(x[row + i]) * x[row + i];
    const double inverse = 1 / std::sqrt(squares / double(h) + 1e-5);
    for (std::size_t i = 0; i < h; ++i)
      dot += double(dy[row + i]) * w[i] * x[row + i] * inverse;
    for (std::size_t i = 0; i < h; ++i) {
      dx[row + i] = float(dx[row + i] + inverse * (double(dy[row + i]) * w[i] - x[row + i] * inverse * dot / double(h)));
      sums[i] += double(dy[row + i]) * x[row + i] * inverse;
    }
  }
  dw.assign(sums.begin(), sums.end());
}

TEST_P(rms_norms, have_the_gradients_of_the_reference) {
  const auto [type, n, h] = GetParam();
  const auto dy = noise(dtype::f32, n * h, 9), x = noise(type, n * h, 10), w = noise(type, h, 11);
  for (const bool add : {false, true}) {
    auto want_dx = noise(dtype::f32, n * h, 12), want_dw = noise(dtype::f32, h, 13);
    const auto d = to_device(dy), in = upload(type, x), weight = upload(type, w), dx = to_device(want_dx), dw = to_device(want_dw);
    const device_buffer scratch(std::size_t(n + 256 * h) * sizeof(float));
    rms_norm_backward(type, as<float>(d), h, in.data(), h, weight.data(), 1e-5f, n, 1, h, as<float>(dx), h, add, as<float>(dw),
                      as<float>(scratch), nullptr);
    if (!add)
      want_dx.assign(want_dx.size(), 0.f);
    reference_gradients(dy, x, w, want_dx, want_dw);
    expect_near(to_host<float>(dx), want_dx, 1e-5f, 2e-5f);
    expect_near(to_host<float>(dw), want_dw, 1e-5f, 1e-3f);
  }
}

TEST_P(rms_norms, gradients_of_heads_are_those_of_rows) {
  const auto [type, n, h] = GetParam();
  if (h > 1024)
    GTEST_SKIP() << "no head is so wide";
  const auto dy = noise(dtype::f32, 4 * n * h, 9), x = noise(type, 4 * n * h, 10), w = noise(type, h, 11);
  const auto d = to_device(dy), in = upload(type, x), weight = upload(type, w);
  const device_buffer scratch(std::size_t(4 * n + 256 * h) * sizeof(float));
  std::vector<float> dx[2], dw[2];
  for (const int heads : {1, 4}) { // the same memory, seen both ways
    const auto gradient = room(dtype::f32, 4 * n * h), weight_gradient = to_device(std::vector<float>(std::size_t(h), 0.f));
    rms_norm_backward(type, as<float>(d), heads * h, in.data(), heads * h, weight.data(), 1e-5f, 4 * n / heads, heads, h,
                      as<float>(gradient), heads * h, false, as<float>(weight_gradient), as<float>(scratch), nullptr);
    dx[heads / 4] = to_host<float>(gradient), dw[heads / 4] = to_host<float>(weight_gradient);
  }
  EXPECT_EQ(dx[0], dx[1]);
  EXPECT_EQ(dw[0], dw[1]);
}

INSTANTIATE_TEST_SUITE_P(shapes, rms_norms,
                         testing::Combine(testing::Values(dtype::f32, dtype::bf16), testing::Values(1, 7, 300),
                                          testing::Values(1, 31, 576, 1023, 2048, 4096, 8192)));

TEST(add_rms_norm_errors, names_what_it_cannot_do) {
  const auto code = [](dtype type, std::int64_t h) {
    try {
      add_rms_norm(type, nullptr, nullptr, nullptr, 1e-5f, 1, h, nullptr, nullptr);
    } catch (const error& e) {
      return e.code();
    }
    return errc::failed;
  };
  EXPECT_EQ(code(dtype::f16, 8), errc::unsupported);
  EXPECT_EQ(code(dtype::f32, 0), errc::bad_shape);
  EXPECT_EQ(code(dtype::f32, 16388), errc::bad_shape);
  EXPECT_EQ(code(dtype::bf16, 32776), errc::bad_shape);
  EXPECT_EQ(code(dtype::bf16, 4097), errc::bad_shape);
}

} // namespace
} // namespace troupe::cuda
