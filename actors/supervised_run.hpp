#pragma once
#include "actors/run.hpp"

namespace troupe {

/// `sft` and `distill`: a learner alone, in this process or, with placement.processes, as the first rank of several; nothing generates
/// and nothing is scored.
/// Stops, saves and goes on as `run_training` does for `rl`.
void run_supervised(const run_inputs& inputs, run_outputs& outputs);

} // namespace troupe
