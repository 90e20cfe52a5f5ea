#pragma once
#include "core/config.hpp"
#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

namespace troupe {

class tokenizer;
class chat_template;

/// One prompt of the data, tokenized.
struct prompt_row {
  std::uint64_t source = 0;            // row in the data, from 0, through all files in order
  std::vector<std::int32_t> ids;
  std::string answer;                  // "" when the row has none; numbers and booleans as JSON spells them
};

/// Reads and tokenizes all rows of `files` as [data] says. Validated whole: throws errc::bad_input with file, line and reason
/// (bad JSON, missing key, wrong type, empty prompt, too long, no rows).
std::vector<prompt_row> load_prompts(const std::vector<std::string>& files, const data_section& data,
                                     const tokenizer& tok, const chat_template* chat);

/// The order of prompts: a permutation an epoch by (seed, epoch), cut in batches; an incomplete last batch is dropped.
/// Pure: the rows of any step follow from the configuration alone.
class batch_sampler {
public:
  /// Throws errc::bad_config when batch_size > n_rows.
  batch_sampler(std::uint64_t n_rows, std::uint64_t batch_size, std::uint64_t seed, bool shuffle);
  std::uint64_t steps_per_epoch() const;
  /// Row numbers of step `step` (from 1), [batch_size].
  std::vector<std::uint64_t> rows(std::uint64_t step) const;

private:
  std::uint64_t n_rows_, batch_size_, seed_;
  bool shuffle_;
};

} // namespace troupe
