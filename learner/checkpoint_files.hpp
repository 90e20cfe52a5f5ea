#pragma once
#include "core/dtype.hpp"
#include "learner/optimizer.hpp"
#include "model/causal_lm.hpp"
#include <cstdint>
#include <filesystem>
#include <span>
#include <vector>

namespace troupe {

/// A learner's counters, as learner.json holds them.
struct learner_counters {
  std::int64_t step = 0, optimizer_steps = 0;
  std::uint32_t incarnation = 0;
};

/// Writes a learner's checkpoint into `dir` and seals it (trainee::save): masters, and what is frozen as it stands in `source`. state: of
/// the trainable parameters, in order. Throws errc::failed where a frozen tensor there is none that the model holds.
void write_learner_files(const std::filesystem::path& dir, const std::filesystem::path& source, causal_lm& model, dtype declared,
                         std::span<const moments> state, const learner_counters& counters);

/// Reads such a directory, validated whole before anything is changed: checksums, names, shapes, types, counters.
/// Fills the model's masters (publishing is the caller's) and `state`; frozen tensors are compared. Throws errc::bad_input naming file
/// and tensor.
learner_counters read_learner_files(const std::filesystem::path& dir, causal_lm& model, std::span<moments> state);

} // namespace troupe
