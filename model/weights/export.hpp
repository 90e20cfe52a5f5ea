#pragma once
#include "model/config.hpp"
#include <filesystem>

namespace troupe {

/// Copies what stands beside the weights of a Hugging Face directory: tokenizer, chat template, generation configuration
/// and vocabulary files, each when present; config.json and the weights are not among them. Existing files are replaced.
/// Throws errc::bad_input (unreadable source), errc::io.
void copy_tokenizer_files(const std::filesystem::path& source, const std::filesystem::path& target);

/// Writes config.json and, for a split model, the modeling file that its `auto_map` names. Throws errc::io.
void write_model_config(const std::filesystem::path& dir, const model_config& cfg, dtype declared);
/// The modeling file alone, where `cfg` has one.
void write_modeling_file(const std::filesystem::path& dir, const model_config& cfg);

} // namespace troupe
