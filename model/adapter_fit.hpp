#pragma once
#include "model/compute.hpp"
#include "model/config.hpp"
#include "model/weights/safetensors.hpp"
#include <cstdint>
#include <vector>

namespace troupe {

/// What a fitted adapter achieves, on text that it was not fitted to: the last tenth of the sequences.
struct fit_report {
  std::int64_t tokens = 0, held_out = 0;              // fitted to, measured on
  double explained_before = 0, explained_after = 0;   // of the second model's hidden states at the cut, rows weighted by 1/|y|^2
  double perplexity_before = 0, perplexity_after = 0; // of the split model; before: the identity start
};

struct fitted_adapter {
  std::vector<float> linear1, linear2; // [h70, h8], [h70, h70]
  fit_report report;
};

/// Least squares from the first model's hidden states after its first n_layers_8 layers to the second's where its last n_layers_70
/// begin, rows weighted by 1/|y|^2: linear1 the solution, linear2 the identity; with `mlp` linear2 is solved a second time on
/// relu(linear1 x), which reads the text again. sequences: at least 10, none empty. chunk_tokens: hidden states that exist at once
/// (0: half a GiB of them); each chunk reads the layers anew, one of one model in memory at a time, and no result depends on it.
/// Throws errc::bad_input.
fitted_adapter fit_adapter(const model_config& split, const safetensors_reader& first, const safetensors_reader& second,
                           const std::vector<std::vector<std::int32_t>>& sequences, double ridge, compute& where,
                           std::int64_t chunk_tokens = 0);

} // namespace troupe
