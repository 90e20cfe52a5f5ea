#include "model/rope.hpp"
#include "model/kernels/elementwise.hpp"
#include <algorithm>
#include <cmath>
#include <optional>

namespace troupe {

namespace {

// e^x: 2^n times the Taylor series of the rest.
double exp_exact(double x) {
  const double n = std::nearbyint(x * 1.44269504088896340736);
  const double r = (x - n * 6.93147180369123816490e-01) - n * 1.90821492927058770002e-10;
  double sum = 1;
  for (int k = 18; k >= 1; --k)
    sum = 1 + r * sum / k;
  return std::ldexp(sum, int(n));
}

} // namespace

void sincos_exact(double x, double* sine, double* cosine) {
  // Cody-Waite with a three-part pi/2; the parts have 33 bits, so their products with |n| < 2^27 / 1.5 are near exact.
  const double n = std::nearbyint(x * 0.63661977236758134308);
  const double r = ((x - n * 1.57079632673412561417e+00) - n * 6.07710050630396597660e-11) - n * 2.02226624879595063154e-21;
  const double r2 = r * r;
  double s = 1, c = 1;
  for (int k = 21; k >= 3; k -= 2)
    s = 1 - r2 * s / double(k * (k - 1));
  for (int k = 22; k >= 2; k -= 2)
    c = 1 - r2 * c / double(k * (k - 1));
  s *= r;
  switch (std::int64_t(n) & 3) {
  case 0:
    *sine = s, *cosine = c;
    break;
  case 1:
    *sine = c, *cosine = -s;
    break;
  case 2:
    *sine = -s, *cosine = -c;
    break;
  default:
    *sine = -c, *cosine = s;
    break;
  }
}

double pow_exact(double base, double exponent) { return exp_exact(exponent * kernels::log_exact(base)); }

namespace {

/// Yarn's share of the unscaled frequency, by dimension pair: 1 up to where a pair turns beta_fast times within the original length,
/// 0 from where it turns beta_slow times, a ramp between.
class yarn_ramp {
public:
  yarn_ramp(const rope_config& rope, std::int64_t head_dim) {
    const auto dimension = [&](double turns) {
      constexpr double two_pi = 6.28318530717958647693;
      return double(head_dim) * kernels::log_exact(double(rope.original_max_position) / (turns * two_pi)) /
             (2 * kernels::log_exact(rope.theta));
    };
    low_ = dimension(rope.beta_fast), high_ = dimension(rope.beta_slow);
    if (rope.truncate)
      low_ = std::floor(low_), high_ = std::ceil(high_);
    low_ = std::max(low_, 0.0), high_ = std::min(high_, double(head_dim - 1));
    if (low_ == high_)
      high_ += 0.001;
  }
  float unscaled(std::int64_t pair) const { return 1.f - std::clamp((float(pair) - float(low_)) / float(high_ - low_), 0.f, 1.f); }

private:
  double low_, high_;
};

// As Transformers has it.
double yarn_attention_factor(const rope_config& rope) {
  const auto scale = [&](double by) { return rope.factor <= 1 ? 1.0 : 0.1 * by * kernels::log_exact(rope.factor) + 1.0; };
  if (rope.attention_factor > 0)
    return rope.attention_factor;
  return rope.mscale > 0 && rope.mscale_all_dim > 0 ? scale(rope.mscale) / scale(rope.mscale_all_dim) : scale(1.0);
}

} // namespace

rope_table::rope_table(const rope_config& rope, std::int64_t head_dim)
    : head_dim_(head_dim), attention_factor_(rope.kind == rope_kind::yarn ? float(yarn_attention_factor(rope)) : 1.f) {
  constexpr double two_pi = 6.28318530717958647693;
  const std::optional<yarn_ramp> ramp = rope.kind == rope_kind::yarn ? std::optional(yarn_ramp(rope, head_dim)) : std::nullopt;
  for (std::int64_t i = 0; i < head_dim / 2; ++i) {
    auto f = float(1.0 / double(float(pow_exact(rope.theta, double(2 * i) / double(head_dim)))));
    if (rope.kind == rope_kind::linear)
      f = float(f / rope.factor);
    if (rope.kind == rope_kind::llama3) {
      const double wavelength = two_pi / f, original = double(rope.original_max_position);
      const double low = original / rope.low_freq_factor, high = original / rope.high_freq_factor;
      const double smooth = (original / wavelength - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor);
      if (wavelength > low)
        f = float(f / rope.factor);
      else if (wavelength >= high)
        f = float((1 - smooth) * f / rope.factor + smooth * f);
    }
    if (ramp) {
      const float power = float(pow_exact(rope.theta, double(2 * i) / double(head_dim)));
      const float share = ramp->unscaled(i);
      f = 1.f / (float(rope.factor) * power) * (1.f - share) + 1.f / power * share;
    }
    // dynamic scales beyond max_position_embeddings alone, and no sequence may be longer than that.
    inverse_.push_back(f);
  }
}

const float* rope_table::upto(std::int64_t last) {
  const std::int64_t half = head_dim_ / 2;
  auto have = std::int64_t(table_.size()) / head_dim_;
  if (last >= have) {
    const std::int64_t want = std::max<std::int64_t>(last + 1, std::max<std::int64_t>(2 * have, 128));
    table_.resize(std::size_t(want * head_dim_));
    for (; have < want; ++have)
      for (std::int64_t i = 0; i < half; ++i) {
        double s = 0, c = 0;
        sincos_exact(double(float(have) * inverse_[std::size_t(i)]), &s, &c);
        table_[std::size_t(have * head_dim_ + i)] = float(c) * attention_factor_;
        table_[std::size_t(have * head_dim_ + half + i)] = float(s) * attention_factor_;
      }
  }
  return table_.data();
}

} // namespace troupe
