#pragma once
#include "experience/dataset.hpp"
#include "rollout/sampler.hpp"
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

namespace troupe {

/// What token ids and lengths a model can take.
struct model_limits {
  std::int64_t vocab_size = 0;
  std::int64_t max_position_embeddings = 0;
};

inline constexpr std::int64_t most_samples = std::int64_t{1} << 20;

/// What the command line says for all requests, and a request for itself.
struct request_options {
  std::int64_t n = 1; // samples
  sampling_params params;
};

/// A line of `generate`'s input, encoded.
struct generate_line {
  std::vector<std::int32_t> ids;
  std::optional<std::uint64_t> seed;
  request_options options;
};

/// A line of `score`'s input.
struct score_line {
  std::vector<std::int32_t> ids;
  std::int32_t from = 1; // the first position scored
};

/// Reads and checks the whole file. Throws errc::bad_input with file and line: wrong JSON, a key that is unknown or of a wrong
/// type, not exactly one of prompt, messages and input_ids, an id outside the vocabulary, no token, no room for one more.
/// options: of a line that says nothing else.
std::vector<generate_line> read_generate_lines(const std::filesystem::path& file, const prompt_encoder& encoder, const model_limits& limits,
                                               const request_options& options = {});

/// The same for {"input_ids": [...], "from": N}; `from` is in 1 .. number of ids.
std::vector<score_line> read_score_lines(const std::filesystem::path& file, const model_limits& limits);

} // namespace troupe
