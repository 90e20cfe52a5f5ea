#include "core/error.hpp"
#include "model/weights/half.hpp"
#include "model/weights/safetensors.hpp"
#include <bit>
#include <cmath>
#include <cstring>
#include <string>

namespace troupe {

namespace {

/// f64 to f32 rounded to odd: a second rounding to 11 bits or fewer then gives what one rounding would.
std::uint32_t f32_to_odd(double value) noexcept {
  const auto nearest = static_cast<float>(value);
  if (std::isnan(value) || double(nearest) == value)
    return std::bit_cast<std::uint32_t>(nearest);
  // Bit patterns of one sign are ordered by magnitude: step back to the truncated value, then mark it inexact.
  auto bits = std::bit_cast<std::uint32_t>(nearest);
  if (std::fabs(double(nearest)) > std::fabs(value))
    --bits;
  return bits | 1u;
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
void convert(const std::byte* source, std::byte* target, std::size_t count) noexcept {
  for (std::size_t i = 0; i < count; ++i)
    To::write(target + i * To::size, From::read(source + i * From::size));
}

template <class From>
bool convert_from(const std::byte* source, dtype to, std::byte* target, std::size_t count) noexcept {
  switch (to) {
  case dtype::f32:
    convert<From, as_f32>(source, target, count);
    return true;
  case dtype::f64:
    convert<From, as_f64>(source, target, count);
    return true;
  case dtype::bf16:
    convert<From, as_bf16>(source, target, count);
    return true;
  case dtype::f16:
    convert<From, as_f16>(source, target, count);
    return true;
  default:
    return false;
  }
}

bool convert_any(dtype from, const std::byte* source, dtype to, std::byte* target, std::size_t count) noexcept {
  switch (from) {
  case dtype::f32:
    return convert_from<as_f32>(source, to, target, count);
  case dtype::f64:
    return convert_from<as_f64>(source, to, target, count);
  case dtype::bf16:
    return convert_from<as_bf16>(source, to, target, count);
  case dtype::f16:
    return convert_from<as_f16>(source, to, target, count);
  default:
    return false;
  }
}

} // namespace

void convert_elements(dtype from, const std::byte* source, dtype to, std::byte* target, std::size_t count) {
  if (from == to) {
    if (count > 0)
      std::memcpy(target, source, count * size_of(from));
    return;
  }
  if (!convert_any(from, source, to, target, count))
    throw error(errc::unsupported, "cannot convert " + std::string(name_of(from)) + " to " + std::string(name_of(to)) +
                                       "; only F64, F32, F16 and BF16 convert into one another");
}

} // namespace troupe
