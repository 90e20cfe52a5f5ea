#pragma once
#include <array>
#include <cstdint>

namespace troupe {

/// Philox4x32-10: a counter-based generator, so a draw depends on its key and counter alone.
/// Pure; any thread. Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC11).
std::array<std::uint32_t, 4> philox4x32(std::array<std::uint32_t, 4> counter, std::array<std::uint32_t, 2> key) noexcept;

/// What a draw is for: keeps streams of one seed apart.
enum class draw : std::uint32_t {
  train = 0, // (run seed, step, prompt's place in the step, sample, position)
  validation = 1,
  generate = 2,        // (seed, 0, line index, sample, position)
  generate_seeded = 3, // (the request's seed, 0, 0, sample, position)
  shuffle = 4,         // (seed, epoch, 0, 0, i)
  init = 5,            // new weights
};

/// Names one random draw of a run. Equal keys give equal numbers on every machine.
struct draw_key {
  std::uint64_t seed = 0;
  draw domain = draw::train;
  std::uint32_t step = 0;  // < 2^28
  std::uint32_t index = 0; // the prompt's place in the step, or the request's line
  std::uint32_t sample = 0;
  std::uint32_t position = 0; // token position in the sequence
};

/// 128 random bits of a key.
std::array<std::uint32_t, 4> draw_bits(const draw_key& key) noexcept;

/// Uniform in [0, 1) with 24 random bits, exactly representable in float32.
float draw_uniform(const draw_key& key) noexcept;

} // namespace troupe
