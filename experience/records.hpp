#pragma once
#include "experience/trajectory.hpp"
#include <cstdint>
#include <filesystem>
#include <vector>

namespace troupe {

/// `run_dir/rollouts/step-000012.jsonl`, one line a sample (docs/run-directory.md); written whole and flushed before the update that uses it.
void write_rollouts(const std::filesystem::path& run_dir, std::int64_t step, const std::vector<scored_group>& groups);

/// Reads such a file back: the same groups, bits included. Throws errc::bad_input with file and line.
std::vector<scored_group> read_rollouts(const std::filesystem::path& run_dir, std::int64_t step);
std::filesystem::path rollouts_file(const std::filesystem::path& run_dir, std::int64_t step);

} // namespace troupe
