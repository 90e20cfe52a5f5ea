#include "model/kernels/isa.hpp"
#include "model/weights/half.hpp"
#include "model/weights/safetensors.hpp"
#include "model/weights/test_support.hpp"
#include <bit>
#include <cmath>
#include <immintrin.h>
#include <limits>
#include <numeric>
#include <rapidcheck/gtest.h>

namespace troupe {
namespace {

/// A 16-bit float's value, by its definition, in double.
double value_of(std::uint16_t bits, int exponent_bits) {
  const int mantissa_bits = 15 - exponent_bits, bias = (1 << (exponent_bits - 1)) - 1;
  const int exponent = bits >> mantissa_bits & ((1 << exponent_bits) - 1), mantissa = bits & ((1 << mantissa_bits) - 1);
  const double sign = bits & 0x8000 ? -1 : 1;
  if (exponent == (1 << exponent_bits) - 1)
    return mantissa == 0 ? sign * std::numeric_limits<double>::infinity() : std::numeric_limits<double>::quiet_NaN();
  if (exponent == 0)
    return sign * std::ldexp(mantissa, 1 - bias - mantissa_bits);
  return sign * std::ldexp((1 << mantissa_bits) + mantissa, exponent - bias - mantissa_bits);
}

/// The nearest 16-bit float to a finite value, ties to even, found by search over all of them.
std::uint16_t nearest(double value, int exponent_bits) {
  const auto magnitude = std::fabs(value);
  std::uint16_t low = 0, high = std::uint16_t(((1 << exponent_bits) - 1) << (15 - exponent_bits)); // 0 .. infinity
  const std::uint16_t infinity = high;
  while (high - low > 1) {
    const auto middle = std::uint16_t((low + high) / 2);
    (value_of(middle, exponent_bits) <= magnitude ? low : high) = middle;
  }
  // Infinity stands one step above the largest number.
  const double below = value_of(low, exponent_bits);
  const double above = high == infinity ? below + (below - value_of(std::uint16_t(low - 1), exponent_bits)) : value_of(high, exponent_bits);
  const double middle = below + (above - below) / 2;
  const auto chosen = magnitude < middle || (magnitude == middle && low % 2 == 0) ? low : high;
  return std::uint16_t(chosen | (std::signbit(value) ? 0x8000 : 0));
}

template <class To, class From>
To converted(dtype from, From value, dtype to) {
  To out;
  convert_elements(from, reinterpret_cast<const std::byte*>(&value), to, reinterpret_cast<std::byte*>(&out), 1);
  return out;
}

struct narrow {
  dtype type;
  int exponent_bits;
};
constexpr narrow narrows[] = {{dtype::f16, 5}, {dtype::bf16, 8}};

TEST(elements, widens_every_16_bit_float_exactly_and_back) {
  for (const auto& [type, exponent_bits] : narrows)
    for (std::uint32_t i = 0; i < 0x10000; ++i) {
      const auto bits = std::uint16_t(i);
      const auto wanted = value_of(bits, exponent_bits);
      const auto single = converted<float>(type, bits, dtype::f32);
      const auto twice = converted<double>(type, bits, dtype::f64);
      if (std::isnan(wanted)) {
        ASSERT_TRUE(std::isnan(single) && std::isnan(twice)) << i;
        ASSERT_TRUE(std::isnan(value_of(converted<std::uint16_t>(dtype::f32, single, type), exponent_bits))) << i;
        continue;
      }
      ASSERT_EQ(double(single), wanted) << i;
      ASSERT_EQ(twice, wanted) << i;
      ASSERT_EQ(std::signbit(single), bool(bits & 0x8000)) << i;
      ASSERT_EQ(converted<std::uint16_t>(dtype::f32, single, type), bits);
      ASSERT_EQ(converted<std::uint16_t>(dtype::f64, twice, type), bits);
    }
}

TEST(elements, rounds_the_neighbourhood_of_every_tie_to_nearest_even) {
  for (const auto& [type, exponent_bits] : narrows) {
    const auto largest = std::uint16_t((((1 << exponent_bits) - 1) << (15 - exponent_bits)) - 1);
    for (std::uint32_t i = 0; i < largest; ++i) {
      const double tie = value_of(std::uint16_t(i), exponent_bits) / 2 + value_of(std::uint16_t(i + 1), exponent_bits) / 2;
      for (const double value : {tie, std::nextafter(tie, 0.0), std::nextafter(tie, 1e300), -tie})
        ASSERT_EQ(converted<std::uint16_t>(dtype::f64, value, type), nearest(value, exponent_bits)) << value;
      const auto single = float(tie);
      for (const float value : {single, std::nextafter(single, 0.0f), std::nextafter(single, 3e38f)})
        ASSERT_EQ(converted<std::uint16_t>(dtype::f32, value, type), nearest(value, exponent_bits)) << value;
    }
  }
}

RC_GTEST_PROP(elements, rounds_any_float_to_nearest_even, (std::uint32_t bits)) {
  const auto value = std::bit_cast<float>(bits);
  for (const auto& [type, exponent_bits] : narrows) {
    const auto out = converted<std::uint16_t>(dtype::f32, value, type);
    if (std::isnan(value))
      RC_ASSERT(std::isnan(value_of(out, exponent_bits)));
    else if (std::isinf(value))
      RC_ASSERT(value_of(out, exponent_bits) == double(value));
    else
      RC_ASSERT(out == nearest(value, exponent_bits));
  }
}

TEST(elements, overflow_and_specials) {
  struct row {
    double value;
    std::uint16_t f16, bf16;
  };
  const double infinity = std::numeric_limits<double>::infinity();
  for (const auto& [value, f16, bf16] :
       {row{65504, 0x7bff, 0x4780}, row{65519.99, 0x7bff, 0x4780}, row{65520, 0x7c00, 0x4780}, row{1e300, 0x7c00, 0x7f80},
        row{-1e300, 0xfc00, 0xff80}, row{infinity, 0x7c00, 0x7f80}, row{-0.0, 0x8000, 0x8000}, row{1e-300, 0, 0}}) {
    EXPECT_EQ(converted<std::uint16_t>(dtype::f64, value, dtype::f16), f16) << value;
    EXPECT_EQ(converted<std::uint16_t>(dtype::f64, value, dtype::bf16), bf16) << value;
  }
  // One rounding, not two: just above the tie between 1 and 1 + 2^-7 by less than float32 can hold.
  EXPECT_EQ(converted<std::uint16_t>(dtype::f64, 1 + std::ldexp(1.0, -8) + std::ldexp(1.0, -40), dtype::bf16), 0x3f81);
  EXPECT_EQ(converted<std::uint16_t>(dtype::f64, 1 + std::ldexp(1.0, -8), dtype::bf16), 0x3f80);
}

// The scalar loop is the reference: every 16-bit pattern, and float32 and float64 patterns around each of their roundings.
TEST(elements, every_instruction_set_gives_the_scalar_bits) {
  std::vector<std::uint16_t> all(0x10000);
  std::iota(all.begin(), all.end(), std::uint16_t{0});
  std::vector<std::uint32_t> singles;
  std::vector<std::uint64_t> doubles;
  for (std::uint32_t high = 0; high < 0x10000; ++high)
    for (const std::uint32_t low : {0x0000u, 0x0001u, 0x0fffu, 0x1000u, 0x1001u, 0x7fffu, 0x8000u, 0x8001u, 0xffffu})
      singles.push_back(high << 16 | low);
  for (const auto bits : singles)
    for (const std::uint64_t delta : {std::uint64_t{0}, std::uint64_t{1}, ~std::uint64_t{0}, std::uint64_t{1} << 28})
      doubles.push_back(std::bit_cast<std::uint64_t>(double(std::bit_cast<float>(bits))) + delta);
  for (const double large : {3.4028235e38, 3.5e38, 1e300, 1e-300, 5e-324, 1e-45, 1e-38})
    for (const double value : {large, -large})
      doubles.push_back(std::bit_cast<std::uint64_t>(value));
  const auto pieces = [](const auto& v) { return std::as_bytes(std::span(v)); };
  const std::pair<dtype, std::span<const std::byte>> sources[] = {
      {dtype::f16, pieces(all)}, {dtype::bf16, pieces(all)}, {dtype::f32, pieces(singles)}, {dtype::f64, pieces(doubles)}};
  for (const auto& [from, bytes] : sources)
    for (const auto to : {dtype::f16, dtype::bf16, dtype::f32, dtype::f64})
      for (const auto which : {isa::avx2, isa::avx512}) {
        if (!supported(which))
          continue;
        const std::size_t n = bytes.size() / size_of(from) - 3; // ends within a vector, and begins beside its alignment
        std::vector<std::byte> wanted(n * size_of(to)), found(n * size_of(to) + 1);
        convert_elements(from, bytes.data() + 2 * size_of(from), to, wanted.data(), n, isa::scalar);
        // The kernels' threads take subnormals as zero; only float64 goes through arithmetic that knows of it.
        for (const unsigned flush : {0u, 0x8040u}) {
          if (flush != 0 && (from == dtype::f64 || to == dtype::f64))
            continue;
          _mm_setcsr(_mm_getcsr() | flush);
          convert_elements(from, bytes.data() + 2 * size_of(from), to, found.data() + 1, n, which);
          _mm_setcsr(_mm_getcsr() & ~flush);
          ASSERT_EQ(std::memcmp(wanted.data(), found.data() + 1, wanted.size()), 0)
              << name_of(from) << " to " << name_of(to) << ", " << name_of(which) << ", mode " << flush;
        }
      }
}

TEST(elements, other_types_are_copied_but_not_converted) {
  EXPECT_EQ(converted<std::int64_t>(dtype::i64, std::int64_t{-5}, dtype::i64), -5);
  EXPECT_EQ(test::message_of("/none", errc::unsupported, [] { converted<float>(dtype::i64, std::int64_t{1}, dtype::f32); }),
            "cannot convert I64 to F32; only F64, F32, F16 and BF16 convert into one another");
}

} // namespace
} // namespace troupe
