#pragma once
#include "model/config.hpp"
#include <cstdint>
#include <vector>

namespace troupe {

/// Cosines and sines by position, [positions][head_dim]: head_dim/2 cosines, then sines. Grows on demand; one thread.
/// Angles as Transformers forms them: inverse frequencies and their products with positions are rounded to float32.
class rope_table {
public:
  rope_table(const rope_config& rope, std::int64_t head_dim);
  /// The table, valid for positions 0 .. last, until the next call.
  const float* upto(std::int64_t last);
  const std::vector<float>& inverse_frequencies() const { return inverse_; }

private:
  std::int64_t head_dim_;
  float attention_factor_;
  std::vector<float> inverse_, table_;
};

/// sin and cos in plain double arithmetic, the same on every processor; |x| < 2^27.
void sincos_exact(double x, double* sine, double* cosine);
/// base^exponent likewise; base > 0.
double pow_exact(double base, double exponent);

} // namespace troupe
