#pragma once
#include "core/config.hpp"
#include "experience/dataset.hpp"
#include "experience/trajectory.hpp"
#include "model/tokenizer/tokenizer.hpp"
#include "rollout/generator.hpp"
#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace troupe {

/// The prompts of a run, by group. Immutable; any thread.
class run_data {
public:
  /// Throws errc::bad_config when a batch has more prompts than there are rows.
  run_data(const config& cfg, std::vector<prompt_row> train, std::vector<prompt_row> validation);
  /// The prompt of a group: by the sampler's order in training, by its place in the files in validation.
  const prompt_row& row(const group_key& key) const;
  /// The row of the files with that number.
  const prompt_row& row_of_source(bool validation, std::uint64_t source) const;
  std::uint64_t steps_per_epoch() const { return sampler_.steps_per_epoch(); }
  std::size_t validation_size() const { return validation_.size(); }

private:
  std::vector<prompt_row> train_, validation_;
  std::map<std::uint64_t, std::size_t> train_rows_, validation_rows_; // by source
  batch_sampler sampler_;
  mutable std::uint64_t cached_step_ = 0; // of the sampler's rows; guarded by the one caller of `row`
  mutable std::vector<std::uint64_t> cached_rows_;
};

/// How a group of a run is sampled: [rollout] in training, [validation] in validation; draws keyed by the group.
generation_request make_request(const config& cfg, const std::vector<std::int32_t>& end_tokens, const group_key& key,
                                const std::vector<std::int32_t>& prompt_ids);
/// What a sample says: its ids without special tokens, before the first of rollout.stop.
std::string response_text(const config& cfg, const tokenizer& tok, const std::vector<std::int32_t>& output_ids);
/// Samples a prompt in training or validation.
std::int64_t samples_of(const config& cfg, bool validation);

} // namespace troupe
