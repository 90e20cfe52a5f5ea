#pragma once
#include <filesystem>

namespace troupe {

/// Writes `run_dir/report.html` from metrics.jsonl, rollouts/ and config.toml: curves, samples and the configuration in one
/// file that opens from disk. What is missing is left out. Throws errc::bad_input (a damaged file), errc::io.
void write_report(const std::filesystem::path& run_dir);

} // namespace troupe
