#include "learner/exact_math.hpp"
#include <algorithm>
#include <cmath>
#include <numbers>

namespace troupe {

double exact_exp(double x) noexcept {
  if (x != x)
    return x;
  x = std::clamp(x, -700.0, 700.0);
  const double k = std::nearbyint(x * std::numbers::log2e);
  // ln 2 in two parts, so that k * high is exact and the remainder small.
  const double r = (x - k * 0x1.62e42feep-1) - k * 0x1.a39ef35793c76p-33;
  double p = 1;
  for (int i = 16; i >= 1; --i)
    p = 1 + p * r / double(i);
  return std::ldexp(p, int(k));
}

double exact_cos_pi(double x) noexcept {
  if (x > 0.5)
    return -exact_cos_pi(1 - x);
  const double y = std::numbers::pi * x, square = y * y;
  double p = 1;
  for (int i = 24; i >= 2; i -= 2)
    p = 1 - p * square / double(i * (i - 1));
  return p;
}

double exact_pow(double base, long long exponent) noexcept {
  double result = 1;
  for (; exponent > 0; exponent >>= 1, base *= base)
    if (exponent & 1)
      result *= base;
  return result;
}

} // namespace troupe
