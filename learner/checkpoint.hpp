#pragma once
#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>

namespace troupe {

class trainee;

/// `run_dir/checkpoints/step-000040`.
std::filesystem::path checkpoint_path(const std::filesystem::path& run_dir, std::int64_t step);
/// The step in such a name; none for any other name.
std::optional<std::int64_t> checkpoint_step(const std::filesystem::path& dir);

/// Writes `dir/checksums.json` over all files there: sizes and XXH64. Last of all; again after a file is added. Throws errc::io.
void seal_directory(const std::filesystem::path& dir);
/// Throws errc::bad_input naming the file that is missing, of another size or damaged; a flipped bit anywhere is noticed.
/// Files that were added since are not looked at.
void verify_sealed(const std::filesystem::path& dir);

/// The whole checkpoint of the latest step, none without one. `log` gets a line for each damaged one that is passed over.
std::optional<std::filesystem::path> newest_whole_checkpoint(const std::filesystem::path& run_dir,
                                                             const std::function<void(std::string)>& log);

/// Writes a checkpoint of the step it has done; complete or absent. One of the same step (the step was done again
/// after a resume from an earlier one) is replaced. `add` writes further files into the still empty directory, sealed with the rest; may be
/// null. Returns the directory. Throws errc::io.
std::filesystem::path write_checkpoint(const std::filesystem::path& run_dir, const trainee& from,
                                       const std::filesystem::path& tokenizer_source,
                                       const std::function<void(const std::filesystem::path&)>& add = {});

} // namespace troupe
