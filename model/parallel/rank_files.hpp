#pragma once
#include "model/causal_lm.hpp"
#include "model/parallel/communicator.hpp"
#include <filesystem>

namespace troupe {

/// Writes the canonical tensors of a model that ranks share into `dir`, as float32 masters or, with `type` bf16, rounded once: one
/// tensor in memory at a time, at the first rank, which alone writes. Called by all ranks of the mesh's first data-parallel row.
/// Throws errc::io; errc::bad_shape when the model has no masters.
void save_rank_weights(causal_lm& model, const rank_context& ranks, const std::filesystem::path& dir, dtype type);

} // namespace troupe
