#pragma once
#include "actors/run.hpp"

namespace troupe {

/// `sft` and `distill`: a learner alone, in this process; nothing generates and nothing is scored, so there is no actor.
/// Stops, saves and goes on as `run_training` does for `rl`.
void run_supervised(const run_inputs& inputs, run_outputs& outputs);

} // namespace troupe
