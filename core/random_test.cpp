#include "core/random.hpp"
#include <array>
#include <gtest/gtest.h>
#include <set>

namespace troupe {
namespace {

// Source: Random123's tests/kat_vectors, philox4x32 10.
TEST(philox, gives_the_published_vectors) {
  struct known {
    std::array<std::uint32_t, 4> counter;
    std::array<std::uint32_t, 2> key;
    std::array<std::uint32_t, 4> result;
  };
  const known table[] = {
      {{0, 0, 0, 0}, {0, 0}, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
      {{~0u, ~0u, ~0u, ~0u}, {~0u, ~0u}, {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
      {{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}, {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
  };
  for (const auto& row : table)
    EXPECT_EQ(philox4x32(row.counter, row.key), row.result);
}

TEST(draws, every_part_of_a_key_counts) {
  const draw_key base{0x0123456789abcdef, draw::train, 3, 4, 5, 6};
  std::array<draw_key, 8> keys;
  keys.fill(base);
  keys[1].seed ^= 1;
  keys[2].seed ^= std::uint64_t{1} << 63;
  keys[3].domain = draw::validation;
  ++keys[4].step;
  ++keys[5].index;
  ++keys[6].sample;
  ++keys[7].position;
  std::set<std::array<std::uint32_t, 4>> seen;
  for (const auto& key : keys)
    seen.insert(draw_bits(key));
  EXPECT_EQ(seen.size(), keys.size());
  EXPECT_EQ(draw_bits(base), draw_bits(base));
}

TEST(draws, are_uniform) {
  // 2^16 draws in 64 bins: chi-squared has 63 degrees of freedom; 120 has a probability below 2e-5, and the draws are fixed.
  constexpr int n = 1 << 16, bins = 64;
  constexpr double expected = double(n) / bins;
  std::array<int, bins> count{};
  double mean = 0;
  for (int i = 0; i < n; ++i) {
    const float u = draw_uniform({7, draw::generate, 0, std::uint32_t(i / 256), 0, std::uint32_t(i % 256)});
    ASSERT_GE(u, 0.0f);
    ASSERT_LT(u, 1.0f);
    EXPECT_EQ(u * 0x1p24f, float(std::uint32_t(u * 0x1p24f))) << "24 bits";
    ++count[std::size_t(u * bins)];
    mean += double(u) / n;
  }
  double chi_squared = 0;
  for (const int c : count)
    chi_squared += (c - expected) * (c - expected) / expected;
  EXPECT_LT(chi_squared, 120);
  EXPECT_NEAR(mean, 0.5, 0.005);
}

} // namespace
} // namespace troupe
