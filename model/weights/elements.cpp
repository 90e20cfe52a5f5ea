#include "core/error.hpp"
#include "model/kernels/isa.hpp"
#include "model/weights/half.hpp"
#include "model/weights/safetensors.hpp"
#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <immintrin.h>
#include <string>

namespace troupe {

namespace {

/// f64 to f32 rounded to odd: a second rounding to 11 bits or fewer then gives what one rounding would. Without branches, for vectors.
std::uint32_t f32_to_odd(double value) noexcept {
  const auto nearest = static_cast<float>(value);
  // Bit patterns of one sign are ordered by magnitude: step back to the truncated value, then mark it inexact.
  const auto beyond = std::uint32_t(std::fabs(double(nearest)) > std::fabs(value));
  const auto inexact = std::uint32_t(std::fabs(double(nearest)) < std::fabs(value)) | beyond;
  return (std::bit_cast<std::uint32_t>(nearest) - beyond) | inexact;
}

template <class T>
T load(const std::byte* from) noexcept {
  T value;
  std::memcpy(&value, from, sizeof value);
  return value;
}
template <class T>
void store(std::byte* to, T value) noexcept {
  std::memcpy(to, &value, sizeof value);
}

// One struct a type: `read` gives a value that holds it exactly, `write` rounds either kind once.
struct as_f32 {
  static constexpr std::size_t size = 4;
  static float read(const std::byte* p) noexcept { return load<float>(p); }
  static void write(std::byte* p, float v) noexcept { store(p, v); }
  static void write(std::byte* p, double v) noexcept { store(p, static_cast<float>(v)); }
};
struct as_odd_f32 { // on the way to fewer bits
  static constexpr std::size_t size = 4;
  static void write(std::byte* p, double v) noexcept { store(p, f32_to_odd(v)); }
};
struct as_f64 {
  static constexpr std::size_t size = 8;
  static double read(const std::byte* p) noexcept { return load<double>(p); }
  static void write(std::byte* p, double v) noexcept { store(p, v); }
};
struct as_bf16 {
  static constexpr std::size_t size = 2;
  static float read(const std::byte* p) noexcept { return bf16_to_f32(load<std::uint16_t>(p)); }
  static void write(std::byte* p, float v) noexcept { store(p, f32_to_bf16(v)); }
  static void write(std::byte* p, double v) noexcept { store(p, f32_to_bf16(std::bit_cast<float>(f32_to_odd(v)))); }
};
struct as_f16 {
  static constexpr std::size_t size = 2;
  static float read(const std::byte* p) noexcept { return f16_to_f32(load<std::uint16_t>(p)); }
  static void write(std::byte* p, float v) noexcept { store(p, f32_to_f16(v)); }
  static void write(std::byte* p, double v) noexcept { store(p, f32_to_f16(std::bit_cast<float>(f32_to_odd(v)))); }
};

template <class From, class To>
[[gnu::always_inline]] inline void convert(const std::byte* source, std::byte* target, std::size_t count) noexcept {
  for (std::size_t i = 0; i < count; ++i)
    To::write(target + i * To::size, From::read(source + i * From::size));
}

// One loop in the instructions of each set.
template <class From, class To>
[[gnu::target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]] void convert_avx512(const std::byte* source, std::byte* target,
                                                                                   std::size_t count) noexcept {
  convert<From, To>(source, target, count);
}
template <class From, class To>
[[gnu::target("avx2,fma")]] void convert_avx2(const std::byte* source, std::byte* target, std::size_t count) noexcept {
  convert<From, To>(source, target, count);
}
template <class From, class To>
void convert_scalar(const std::byte* source, std::byte* target, std::size_t count) noexcept {
  convert<From, To>(source, target, count);
}

using loop = void (*)(const std::byte*, std::byte*, std::size_t) noexcept;

template <class From, class To>
loop loop_of(isa which) noexcept {
  return which == isa::scalar ? convert_scalar<From, To> : which == isa::avx2 ? convert_avx2<From, To> : convert_avx512<From, To>;
}

template <class From>
loop loop_from(dtype to, isa which) noexcept {
  switch (to) {
  case dtype::f32:
    return loop_of<From, as_f32>(which);
  case dtype::f64:
    return loop_of<From, as_f64>(which);
  case dtype::bf16:
    return loop_of<From, as_bf16>(which);
  case dtype::f16:
    return loop_of<From, as_f16>(which);
  default:
    return nullptr;
  }
}

loop loop_between(dtype from, dtype to, isa which) noexcept {
  switch (from) {
  case dtype::f32:
    return loop_from<as_f32>(to, which);
  case dtype::f64:
    return loop_from<as_f64>(to, which);
  case dtype::bf16:
    return loop_from<as_bf16>(to, which);
  case dtype::f16:
    return loop_from<as_f16>(to, which);
  default:
    return nullptr;
  }
}

// float16 has instructions of its own; every processor with AVX2 has them. They give half.hpp's bits whatever the thread does with
// subnormals.
[[gnu::target("avx2,f16c")]] void widen_f16(const std::byte* source, std::byte* target, std::size_t count) noexcept {
  std::size_t i = 0;
  for (; i + 8 <= count; i += 8)
    _mm256_storeu_ps(reinterpret_cast<float*>(target + i * 4),
                     _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(source + i * 2))));
  convert<as_f16, as_f32>(source + i * 2, target + i * 4, count - i);
}
[[gnu::target("avx2,f16c")]] void narrow_to_f16(const std::byte* source, std::byte* target, std::size_t count) noexcept {
  std::size_t i = 0;
  for (; i + 8 <= count; i += 8)
    _mm_storeu_si128(reinterpret_cast<__m128i*>(target + i * 2),
                     _mm256_cvtps_ph(_mm256_loadu_ps(reinterpret_cast<const float*>(source + i * 4)), _MM_FROUND_TO_NEAREST_INT));
  convert<as_f32, as_f16>(source + i * 4, target + i * 2, count - i);
}

/// The processor's own rounding takes float32's subnormals as zero; no float16 becomes one.
[[gnu::target("avx512f,avx512bw,avx512vl,avx512bf16")]] void f16_to_bf16(const std::byte* source, std::byte* target,
                                                                         std::size_t count) noexcept {
  std::size_t i = 0;
  for (; i + 32 <= count; i += 32) {
    const __m512 low = _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(source + i * 2)));
    const __m512 high = _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(source + i * 2 + 32)));
    const __m512bh rounded = _mm512_cvtne2ps_pbh(high, low);
    std::memcpy(target + i * 2, &rounded, sizeof rounded);
  }
  convert<as_f16, as_bf16>(source + i * 2, target + i * 2, count - i);
}

/// From or to float16 by these, with float32 in between, in pieces that stay in the first cache.
void convert_f16(dtype from, const std::byte* source, dtype to, std::byte* target, std::size_t count, isa which) noexcept {
  constexpr std::size_t piece = 1024;
  std::array<std::byte, piece * 4> room;
  const bool widens = from == dtype::f16;
  const loop second = widens ? loop_between(dtype::f32, to, which) : nullptr;
  const loop first = widens ? nullptr : from == dtype::f64 ? loop_of<as_f64, as_odd_f32>(which) : loop_between(from, dtype::f32, which);
  for (std::size_t at = 0; at < count; at += piece) {
    const std::size_t n = std::min(piece, count - at);
    const std::byte* in = source + at * size_of(from);
    std::byte* out = target + at * size_of(to);
    if (widens) {
      widen_f16(in, room.data(), n);
      second(room.data(), out, n);
    } else {
      first(in, room.data(), n);
      narrow_to_f16(room.data(), out, n);
    }
  }
}

} // namespace

void convert_elements(dtype from, const std::byte* source, dtype to, std::byte* target, std::size_t count) {
  static const isa best = best_isa();
  convert_elements(from, source, to, target, count, best);
}

void convert_elements(dtype from, const std::byte* source, dtype to, std::byte* target, std::size_t count, isa which) {
  static const bool bf16_unit = supported(isa::avx512) && __builtin_cpu_supports("avx512bf16");
  if (from == to) {
    if (count > 0)
      std::memcpy(target, source, count * size_of(from));
    return;
  }
  const loop run = loop_between(from, to, which);
  if (run == nullptr)
    throw error(errc::unsupported, "cannot convert " + std::string(name_of(from)) + " to " + std::string(name_of(to)) +
                                       "; only F64, F32, F16 and BF16 convert into one another");
  if (which == isa::scalar || (from != dtype::f16 && to != dtype::f16))
    run(source, target, count);
  else if (to == dtype::f32)
    widen_f16(source, target, count);
  else if (from == dtype::f32)
    narrow_to_f16(source, target, count);
  else if (from == dtype::f16 && to == dtype::bf16 && which != isa::avx2 && bf16_unit)
    f16_to_bf16(source, target, count);
  else
    convert_f16(from, source, to, target, count, which);
}

} // namespace troupe
