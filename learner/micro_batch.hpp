#pragma once
#include "experience/trajectory.hpp"
#include "learner/loss.hpp"
#include "model/batch.hpp"
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace troupe {

/// A sample's place in a step's groups.
struct sample_place {
  std::size_t group = 0, sample = 0;
};

/// What one forward and backward pass takes: packed tokens and the samples they belong to, target for target.
struct micro_batch {
  packed_batch packed;
  std::vector<sample_place> samples;
};

/// Cuts `groups` (one mini-batch; `first_group`: its place in the step) into micro-batches of at most max_tokens tokens, in order.
/// A group's prompt is packed once with its responses; a group that is too large is split by responses, and a sequence that is
/// too large alone is its own micro-batch. Left out: empty responses and, with skip_zero, samples with advantage 0.
std::vector<micro_batch> cut_micro_batches(std::span<const scored_group> groups, std::size_t first_group, std::int64_t max_tokens,
                                           bool skip_zero);

/// Counts over all samples, those left out included.
loss_totals totals_of(std::span<const scored_group> groups) noexcept;

/// Throws errc::bad_shape naming prompt and sample where a group's fields disagree in number, errc::failed where a recorded
/// log-probability or an advantage is not finite.
void check_groups(std::span<const scored_group> groups);

} // namespace troupe
