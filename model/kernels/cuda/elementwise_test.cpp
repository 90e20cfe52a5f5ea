#include "core/error.hpp"
#include "model/kernels/cuda/elementwise.hpp"
#include <bit>
#include <cmath>
#include <cstdint>
#include <gtest/gtest.h>
#include <vector>

namespace {

using troupe::dtype;
using troupe::cuda::device_buffer;

/// Nearest bf16, ties to even, widened again.
float round_bf16(float v) {
  const auto bits = std::bit_cast<std::uint32_t>(v);
  return std::bit_cast<float>((bits + 0x7fffu + (bits >> 16 & 1u)) & 0xffff0000u);
}
float round_to(dtype type, float v) { return type == dtype::bf16 ? round_bf16(v) : v; }

/// Host values as the device wants them, and back.
device_buffer upload(dtype type, const std::vector<float>& values) {
  device_buffer buffer(values.size() * troupe::size_of(type));
  if (type == dtype::f32) {
    buffer.upload(values.data());
    return buffer;
  }
  std::vector<std::uint16_t> halves;
  for (const float v : values)
    halves.push_back(std::uint16_t(std::bit_cast<std::uint32_t>(v) >> 16));
  buffer.upload(halves.data());
  return buffer;
}
std::vector<float> download(dtype type, const device_buffer& buffer) {
  std::vector<float> values(buffer.size() / troupe::size_of(type));
  if (type == dtype::f32) {
    buffer.download(values.data());
    return values;
  }
  std::vector<std::uint16_t> halves(values.size());
  buffer.download(halves.data());
  for (std::size_t i = 0; i < values.size(); ++i)
    values[i] = std::bit_cast<float>(std::uint32_t(halves[i]) << 16);
  return values;
}

std::vector<float> noise(dtype type, std::size_t n, std::uint32_t seed) {
  std::vector<float> values(n);
  for (auto& v : values) {
    seed = seed * 1664525u + 1013904223u;
    v = round_to(type, float(std::int32_t(seed) / 65536) / 8192.f);
  }
  return values;
}

struct outputs {
  std::vector<float> residual, y;
};

outputs run(dtype type, const std::vector<float>* x, const std::vector<float>& residual, const std::vector<float>& w, std::int64_t n) {
  const auto h = std::int64_t(w.size());
  const device_buffer in = x ? upload(type, *x) : device_buffer();
  const device_buffer res = upload(type, residual), weight = upload(type, w), out(residual.size() * troupe::size_of(type));
  troupe::cuda::add_rms_norm(type, in.data(), res.data(), weight.data(), 1e-5f, n, h, out.data(), nullptr);
  troupe::cuda::synchronize();
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

class add_rms_norm : public testing::TestWithParam<std::tuple<dtype, std::int64_t, std::int64_t>> {
protected:
  void SetUp() override {
    if (troupe::cuda::device_count() == 0)
      GTEST_SKIP() << "no GPU";
  }
};

TEST_P(add_rms_norm, agrees_with_the_reference) {
  const auto [type, n, h] = GetParam();
  const auto x = noise(type, std::size_t(n * h), 1), residual = noise(type, std::size_t(n * h), 2), w = noise(type, std::size_t(h), 3);
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

TEST_P(add_rms_norm, rows_do_not_depend_on_their_company) {
  const auto [type, n, h] = GetParam();
  const auto x = noise(type, std::size_t(n * h), 4), residual = noise(type, std::size_t(n * h), 5), w = noise(type, std::size_t(h), 6);
  const outputs together = run(type, &x, residual, w, n);
  for (const std::int64_t row : {std::int64_t(0), n - 1}) {
    const auto cut = [&, h = h](const std::vector<float>& v) { return std::vector<float>(v.begin() + row * h, v.begin() + (row + 1) * h); };
    const auto row_x = cut(x);
    EXPECT_EQ(run(type, &row_x, cut(residual), w, 1).y, cut(together.y)) << "row " << row;
  }
}

INSTANTIATE_TEST_SUITE_P(shapes, add_rms_norm,
                         testing::Combine(testing::Values(dtype::f32, dtype::bf16), testing::Values(1, 7, 300),
                                          testing::Values(1, 31, 576, 1023, 2048, 4096, 8192)));

TEST(add_rms_norm_errors, names_what_it_cannot_do) {
  const auto code = [](dtype type, std::int64_t h) {
    try {
      troupe::cuda::add_rms_norm(type, nullptr, nullptr, nullptr, 1e-5f, 1, h, nullptr, nullptr);
    } catch (const troupe::error& e) {
      return e.code();
    }
    return troupe::errc::failed;
  };
  EXPECT_EQ(code(dtype::f16, 8), troupe::errc::unsupported);
  EXPECT_EQ(code(dtype::f32, 0), troupe::errc::bad_shape);
  EXPECT_EQ(code(dtype::f32, 16388), troupe::errc::bad_shape);
  EXPECT_EQ(code(dtype::bf16, 32776), troupe::errc::bad_shape);
  EXPECT_EQ(code(dtype::bf16, 4097), troupe::errc::bad_shape);
}

} // namespace
