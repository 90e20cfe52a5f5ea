#pragma once
#include "model/layout.hpp"
#include <string>
#include <vector>

namespace troupe {

/// Blocks [first, last) of a chain, a line for each run of like ones: their names, how wide they are and, of a split model, which
/// layers of which of the two models they are.
std::vector<std::string> layer_map(const model_config& cfg, const std::vector<block_spec>& blocks, std::size_t first, std::size_t last);

} // namespace troupe
