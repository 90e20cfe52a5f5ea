#include "core/random.hpp"

namespace troupe {

std::array<std::uint32_t, 4> philox4x32(std::array<std::uint32_t, 4> c, std::array<std::uint32_t, 2> k) noexcept {
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t a = std::uint64_t{0xD2511F53u} * c[0];
    const std::uint64_t b = std::uint64_t{0xCD9E8D57u} * c[2];
    c = {std::uint32_t(b >> 32) ^ c[1] ^ k[0], std::uint32_t(b), std::uint32_t(a >> 32) ^ c[3] ^ k[1], std::uint32_t(a)};
    k = {k[0] + 0x9E3779B9u, k[1] + 0xBB67AE85u};
  }
  return c;
}

std::array<std::uint32_t, 4> draw_bits(const draw_key& key) noexcept {
  // The domain takes the step's four upper bits: a step stays below 2^28.
  const std::uint32_t step = key.step | std::uint32_t(key.domain) << 28;
  return philox4x32({key.position, key.sample, key.index, step}, {std::uint32_t(key.seed), std::uint32_t(key.seed >> 32)});
}

float draw_uniform(const draw_key& key) noexcept { return float(draw_bits(key)[0] >> 8) * 0x1p-24f; }

} // namespace troupe
