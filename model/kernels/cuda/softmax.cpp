#include "model/kernels/cuda/softmax.hpp"
#include <algorithm>
#include <cmath>

namespace troupe::cuda {

kernels::softmax_stats softmax_row_host(const float* logits, std::int64_t vocab, float temperature, bool moment) {
  constexpr std::int64_t column_block = 256;
  kernels::softmax_stats s{};
  s.maximum = *std::max_element(logits, logits + vocab) / temperature + 0.f;
  const auto add_lanes = [](float* lanes) { // the butterfly
    for (int half = 16; half > 0; half /= 2)
      for (int l = 0; l < half; ++l)
        lanes[l] += lanes[l + half];
    return lanes[0];
  };
  float sums[32] = {}, moments[32] = {};
  for (std::int64_t b = 0; b * column_block < vocab; ++b) {
    float block_sums[32] = {}, block_moments[32] = {};
    for (std::int64_t j = b * column_block; j < std::min(vocab, (b + 1) * column_block); ++j) {
      const float z = logits[j] / temperature - s.maximum, e = kernels::exp_negative(z);
      block_sums[j % 32] += e;
      block_moments[j % 32] = std::fma(e, std::clamp(z, -87.f, 87.f), block_moments[j % 32]);
    }
    sums[b % 32] += add_lanes(block_sums);
    moments[b % 32] += add_lanes(block_moments);
  }
  s.sum = add_lanes(sums);
  s.moment = moment ? add_lanes(moments) : 0.f;
  return s;
}

} // namespace troupe::cuda
