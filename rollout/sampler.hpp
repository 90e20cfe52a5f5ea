#pragma once
#include "core/random.hpp"
#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace troupe {

/// How one request is sampled. Order: temperature, then top-k, top-p (renormalised after top-k), min-p.
struct sampling_params {
  double temperature = 1.0; // 0: greedy, ties to the lowest id
  double top_p = 1.0;
  std::int64_t top_k = 0; // 0 or -1: off
  double min_p = 0.0;     // relative to the most probable
  std::int64_t max_tokens = 128;
  std::vector<std::int32_t> stop_ids; // end tokens, added to the model's unless ignore_eos
  std::vector<std::string> stop_strings;
  bool ignore_eos = false;
};

/// Draws one token from a row of untempered logits. [vocab] f32 -> id. key.position: the place in the sequence of the token drawn.
/// Deterministic: key, logits and params alone. Any thread. Throws errc::failed when a logit is not finite.
std::int32_t sample_token(std::span<const float> logits, const sampling_params& params, const draw_key& key);

/// Throws errc::bad_usage naming the first field that is out of range.
void check_sampling(const sampling_params& params);

} // namespace troupe
