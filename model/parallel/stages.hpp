#pragma once
#include "model/layout.hpp"
#include <cstddef>
#include <vector>

namespace troupe {

/// Cuts a chain of blocks into that many stages of consecutive blocks, at least one each, so that the most expensive stage is as
/// cheap as it can be. Returns the first block of every stage, and the number of blocks. Pure.
/// Throws errc::bad_config when there are more stages than blocks.
std::vector<std::size_t> stage_cuts(const std::vector<block_spec>& blocks, int stages);

} // namespace troupe
