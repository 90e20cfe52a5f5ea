#pragma once
#include "core/dtype.hpp"
#include <cstdint>
#include <filesystem>
#include <optional>
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

/// An adapter made by who calls convert_split: its two tensors, row-major, and a report that is written beside the weights.
struct new_adapter {
  std::vector<float> linear1, linear2; // [h70, h8], [h70, h70]
  std::string report;                  // text of adapter_fit.json
};

/// Two models and an adapter, as a split model's configuration file says, to one split checkpoint. type: of every tensor; none:
/// each keeps its source's, a new adapter the second model's. adapter: with `adapter_init = "fit"`. seed: of `adapter_init = "normal"` and
/// of a new value head. Tokenizer and generation configuration are the first model's. Memory: the largest tensor. Same promises as
/// convert_gguf.
conversion convert_split(const std::filesystem::path& config, const std::filesystem::path& target, std::optional<dtype> type,
                         std::uint64_t seed, const new_adapter* adapter = nullptr);

/// A model's directory, a split model's configuration file (as convert_split, seed 0), or what convert_shard wrote for another layout,
/// as one directory a rank, rank-pp0-tp0 and so on, each with its parts of the tensors under their own
/// names, and layout.json, which says how many. The last two take the room of the whole model on disk meanwhile. Same promises as
/// convert_gguf; errc::bad_config where ranks cannot share the model.
conversion convert_shard(const std::filesystem::path& source, const std::filesystem::path& target, std::int64_t tp, std::int64_t pp);

/// Such ranks as one model's directory: the bytes that convert_shard read. Ranks that hold the same part must agree.
conversion convert_join(const std::filesystem::path& source, const std::filesystem::path& target);

} // namespace troupe
