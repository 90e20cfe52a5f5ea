#pragma once
#include "experience/trajectory.hpp"
#include <cstdint>
#include <filesystem>
#include <vector>

namespace troupe {

/// Writes `run_dir/rollouts/step-000012.jsonl`, one line a sample (docs/run-directory.md); whole or absent, on the disk on return.
/// A version is recorded by its step alone: a step that is redone after a reload makes the same bits, and so the same file.
/// Throws errc::io, and errc::failed for a number that is not finite, naming step, index and sample.
void write_rollouts(const std::filesystem::path& run_dir, std::int64_t step, const std::vector<scored_group>& groups);

/// Reads such a file back: the same groups, bits included, with incarnation 0 in every version; a group's own version is
/// the oldest of its tokens. Throws errc::bad_input with file and line.
std::vector<scored_group> read_rollouts(const std::filesystem::path& run_dir, std::int64_t step);
std::filesystem::path rollouts_file(const std::filesystem::path& run_dir, std::int64_t step);

} // namespace troupe
