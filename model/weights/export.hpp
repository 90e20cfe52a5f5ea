#pragma once
#include <filesystem>

namespace troupe {

/// Copies what stands beside the weights of a Hugging Face directory: tokenizer, chat template, generation configuration
/// and vocabulary files, each when present; config.json and the weights are not among them. Existing files are replaced.
/// Throws errc::bad_input (unreadable source), errc::io.
void copy_tokenizer_files(const std::filesystem::path& source, const std::filesystem::path& target);

} // namespace troupe
