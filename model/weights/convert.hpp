#pragma once
#include "core/dtype.hpp"
#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

namespace troupe {

/// What was written.
struct conversion {
  std::size_t tensors = 0;
  std::uint64_t parameters = 0;
  std::filesystem::path source;         // the directory or file that was read
  std::vector<std::string> passed_over; // damaged checkpoints, one line each
};

/// A GGUF file of the Llama family to a Hugging Face directory: weights under Hugging Face's names, q and k rows in its order,
/// config.json, generation_config.json, tokenizer and chat template. `type`: f32 or bf16.
/// `target` must not exist or be empty; it is complete or absent afterwards. Memory: the largest tensor, twice.
/// Throws errc::bad_input, errc::unsupported (naming key, tensor or tokenizer part), errc::io.
conversion convert_gguf(const std::filesystem::path& source, const std::filesystem::path& target, dtype type);

/// A run's newest whole checkpoint, or one checkpoint directory, to a clean Hugging Face directory: float tensors as `type`,
/// everything that is not the model's left out. Same promises as convert_gguf.
conversion convert_hf(const std::filesystem::path& source, const std::filesystem::path& target, dtype type);

} // namespace troupe
