#pragma once
#include "model/weights/convert.hpp"
#include <cstdint>
#include <filesystem>

namespace troupe {

class compute;

struct fit_command {
  std::filesystem::path text;         // UTF-8
  std::int64_t tokens = 65536;        // at most so many of it
  std::int64_t sequence_length = 512; // tokens of one sequence
  double ridge = 1e-6;                // relative to the mean second moment of the inputs
};

/// Fits the adapter of the split model that `config` describes to a text, and prints the report on stderr.
new_adapter fit_to_text(const std::filesystem::path& config, const fit_command& options, compute& where);

} // namespace troupe
