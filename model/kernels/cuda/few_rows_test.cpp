#include "model/kernels/cuda/elementwise.hpp"
#include "model/kernels/cuda/few_rows.hpp"
#include "model/kernels/cuda/linear.hpp"
#include "model/kernels/cuda/test_support.hpp"
#include <algorithm>

namespace troupe::cuda {
namespace {

constexpr auto T = dtype::bf16;

struct widths {
  std::int64_t k, m;
};

using kernels::bf16;

// The kernels with something fused into them have the bits of the separate ones, however the matrix streams.
class few_rows_kernels : public gpu_table<std::tuple<widths, int, bool>> { // shape, n, bias
protected:
  void SetUp() override {
    gpu_table::SetUp();
    if (IsSkipped())
      return;
    if (!few_rows::takes(T, n, m, k))
      GTEST_SKIP() << "a build without these kernels";
    x = values(n * k, 1, 1.f), w = values(m * k, 2, 0.01f), norm = values(k, 4, 0.25f), normalised = room(T, n * k);
    if (std::get<2>(GetParam()))
      bias = values(m, 3, 1.f);
  }
  static device_buffer values(std::int64_t count, std::uint32_t seed, float scale) {
    auto v = noise(dtype::f32, count, seed);
    for (auto& e : v)
      e *= scale;
    return upload(T, v);
  }
  const std::int64_t k = std::get<0>(GetParam()).k, m = std::get<0>(GetParam()).m, n = std::get<1>(GetParam());
  device_buffer x, w, bias, norm, normalised;
  // d: of a rotated product, whose blocks stay within half a head.
  std::vector<few_rows::streaming> ways(int d = 0) const { return {{16, 40}, {32, 84}, {d ? std::min(64, d) : 64, 200}}; }
  few_rows::operands operands(bool with_norm) const {
    return {x.data(), w.data(), bias.data(), n, m, k, with_norm ? norm.data() : nullptr, 1e-5f, normalised.data()};
  }
  // y [n, m] by separate kernels; more rows than the fused ones take, so that the library computes them.
  device_buffer separate(bool with_norm) const {
    const std::int64_t rows = few_rows::most_rows + 1;
    const device_buffer in = room(T, rows * k), y = room(T, rows * m);
    fill_zero(in.data(), in.size(), nullptr);
    if (with_norm)
      add_rms_norm(T, nullptr, x.data(), norm.data(), 1e-5f, n, k, in.data(), nullptr);
    else
      copy_async(in.data(), x.data(), x.size(), nullptr);
    matmul().forward(T, in.data(), w.data(), bias.data(), rows, m, k, y.data(), T, nullptr);
    device_buffer kept = room(T, n * m);
    copy_async(kept.data(), y.data(), kept.size(), nullptr);
    synchronize();
    return kept;
  }
  // Not the values, of which there are many.
  static void expect_equal(const device_buffer& got, const device_buffer& want, const few_rows::streaming& how, int of) {
    EXPECT_TRUE(to_host<bf16>(got) == to_host<bf16>(want)) << how.rows << " rows, " << how.ring_kib << " KiB, " << of;
  }
};

TEST_P(few_rows_kernels, product) {
  for (const bool with_norm : {false, true}) {
    const auto want = separate(with_norm);
    for (const auto& how : ways()) {
      const auto y = room(T, n * m);
      few_rows::product(operands(with_norm), y.data(), T, nullptr, &how);
      expect_equal(y, want, how, with_norm);
    }
  }
}

TEST_P(few_rows_kernels, added) {
  const auto before = noise(T, n * m, 5);
  const auto want = upload(T, before), y = separate(false);
  add(T, want.data(), y.data(), n * m, nullptr);
  for (const auto& how : ways()) {
    const auto residual = upload(T, before);
    few_rows::add_product(operands(false), residual.data(), nullptr, &how);
    expect_equal(residual, want, how, 0);
  }
}

TEST_P(few_rows_kernels, gated) {
  for (const bool with_norm : {false, true}) {
    const auto y = separate(with_norm), want = room(T, n * m / 2);
    silu_mul(T, y.data(), n, m / 2, want.data(), nullptr);
    for (const auto& how : ways()) {
      const auto act = room(T, n * m / 2);
      few_rows::gated_product(operands(with_norm), act.data(), nullptr, &how);
      expect_equal(act, want, how, with_norm);
    }
  }
}

TEST_P(few_rows_kernels, rotated) {
  for (const int d : {32, 64, 128}) {
    if (m % (3 * d) != 0)
      continue;
    const attention_shape heads{int(m) / d / 3, int(m) / d / 3, d, 0};
    const auto table = upload(dtype::f32, noise(dtype::f32, 256 * d, 6));
    std::vector<std::int32_t> positions, slots;
    for (int i = 0; i < int(n); ++i)
      positions.push_back(255 - 3 * i), slots.push_back(i == 1 ? -1 : 37 * i);
    const auto at = to_device(positions), to = to_device(slots);
    const auto want = separate(true), want_cache = room(T, 75 * heads.block_elements()), cache = room(T, 75 * heads.block_elements());
    fill_zero(want_cache.data(), want_cache.size(), nullptr);
    rope_write(T, heads, want.data(), n, as<std::int32_t>(at), as<float>(table), as<std::int32_t>(to), want_cache.data(), 0, nullptr,
               nullptr, nullptr);
    const auto check = [&](const few_rows::streaming* how) {
      const auto qkv = room(T, n * m);
      fill_zero(cache.data(), cache.size(), nullptr);
      few_rows::rotated_product(operands(true), {heads, as<std::int32_t>(at), as<float>(table), as<std::int32_t>(to), cache.data()},
                                qkv.data(), nullptr, how);
      expect_equal(qkv, want, how ? *how : few_rows::streaming(), d);
      expect_equal(cache, want_cache, how ? *how : few_rows::streaming(), d);
    };
    check(nullptr);
    for (const auto& how : ways(d))
      check(&how);
  }
}

INSTANTIATE_TEST_SUITE_P(smollm2, few_rows_kernels,
                         testing::Combine(testing::Values(widths{576, 960}, widths{1536, 576}), testing::Values(1, 3, 8, 11, 16),
                                          testing::Bool()));
INSTANTIATE_TEST_SUITE_P(llama, few_rows_kernels,
                         testing::Combine(testing::Values(widths{4096, 6144}, widths{2048, 3072}, widths{8192, 2048}),
                                          testing::Values(1, 4, 16), testing::Values(false)));

} // namespace
} // namespace troupe::cuda
