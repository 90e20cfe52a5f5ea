#include "learner/micro_batch.hpp"
#include "core/error.hpp"
#include <cmath>
#include <string>

namespace troupe {

namespace {

// Packs parts of groups and starts a new micro-batch when told to.
class cutter {
public:
  explicit cutter(std::int64_t max_tokens) : max_tokens_(max_tokens) {}

  void add_group(const trajectory_group& group, std::size_t place, const std::vector<std::size_t>& kept) {
    const auto prompt = std::int64_t(group.prompt_ids.size());
    std::int64_t whole = prompt;
    for (auto s : kept)
      whole += length(group, s);
    if (used_ + whole > max_tokens_)
      flush();
    std::vector<std::size_t> part;
    std::int64_t size = prompt;
    for (auto s : kept) {
      if (!part.empty() && used_ + size + length(group, s) > max_tokens_) {
        add_part(group, place, part, size);
        flush();
        part.clear();
        size = prompt;
      }
      part.push_back(s);
      size += length(group, s);
    }
    add_part(group, place, part, size);
  }

  std::vector<micro_batch> take() {
    flush();
    return std::move(done_);
  }

private:
  static std::int64_t length(const trajectory_group& group, std::size_t s) { return std::int64_t(group.samples[s].output_ids.size()); }

  void add_part(const trajectory_group& group, std::size_t place, const std::vector<std::size_t>& part, std::int64_t size) {
    std::vector<std::vector<std::int32_t>> responses;
    for (auto s : part) {
      responses.push_back(group.samples[s].output_ids);
      samples_.push_back({place, s});
    }
    builder_.add_group(group.prompt_ids, responses);
    used_ += size;
  }

  void flush() {
    if (!samples_.empty())
      done_.push_back({builder_.take(), std::move(samples_)});
    samples_.clear();
    used_ = 0;
  }

  std::int64_t max_tokens_, used_ = 0;
  batch_builder builder_;
  std::vector<sample_place> samples_;
  std::vector<micro_batch> done_;
};

} // namespace

std::vector<micro_batch> cut_micro_batches(std::span<const scored_group> groups, std::size_t first_group, std::int64_t max_tokens,
                                           bool skip_zero) {
  cutter cut(max_tokens);
  for (std::size_t g = 0; g < groups.size(); ++g) {
    std::vector<std::size_t> kept;
    for (std::size_t s = 0; s < groups[g].group.samples.size(); ++s)
      if (!groups[g].group.samples[s].output_ids.empty() && !(skip_zero && groups[g].advantages[s] == 0))
        kept.push_back(s);
    if (!kept.empty())
      cut.add_group(groups[g].group, first_group + g, kept);
  }
  return cut.take();
}

loss_totals totals_of(std::span<const scored_group> groups) noexcept {
  loss_totals totals;
  for (const auto& g : groups)
    for (const auto& s : g.group.samples) {
      totals.tokens += std::int64_t(s.output_ids.size());
      ++totals.samples;
    }
  return totals;
}

void check_groups(std::span<const scored_group> groups) {
  for (const auto& g : groups) {
    const auto where = "prompt " + std::to_string(g.group.key.index) + " of step " + std::to_string(g.group.key.step);
    if (g.group.prompt_ids.empty() || g.group.samples.empty())
      throw error{errc::bad_shape, where + ": a group to train on needs a prompt and at least one sample"};
    if (g.advantages.size() != g.group.samples.size())
      throw error{errc::bad_shape, where + ": " + std::to_string(g.advantages.size()) + " advantages for " +
                                       std::to_string(g.group.samples.size()) + " samples"};
    for (std::size_t s = 0; s < g.group.samples.size(); ++s) {
      const auto& one = g.group.samples[s];
      const auto which = where + ", sample " + std::to_string(s);
      if (one.logprobs.size() != one.output_ids.size() || one.versions.size() != one.output_ids.size())
        throw error{errc::bad_shape, which + ": " + std::to_string(one.output_ids.size()) + " tokens, " +
                                         std::to_string(one.logprobs.size()) + " log-probabilities, " +
                                         std::to_string(one.versions.size()) + " versions: the three must agree"};
      if (!std::isfinite(g.advantages[s]))
        throw error{errc::failed, which + ": the advantage is " + std::to_string(g.advantages[s])};
      for (std::size_t t = 0; t < one.logprobs.size(); ++t)
        if (!std::isfinite(one.logprobs[t]))
          throw error{errc::failed,
                      which + ", token " + std::to_string(t) + ": the recorded log-probability is " + std::to_string(one.logprobs[t])};
    }
  }
}

} // namespace troupe
