#pragma once
#include "core/config.hpp"
#include "core/metrics.hpp"
#include "experience/trajectory.hpp"
#include "model/causal_lm.hpp"
#include <cstdint>
#include <filesystem>
#include <memory>
#include <vector>

namespace troupe {

class compute;

/// Updates a policy from batches of scored groups. One thread. The same batches in the same order give the same weights, bit for bit.
class learner {
public:
  /// policy: made with model_options::training. reference: null unless a KL is asked for. total_steps: for the schedule.
  /// `where` must outlive the learner; it may be the models' own.
  learner(const config& cfg, std::shared_ptr<causal_lm> policy, std::shared_ptr<causal_lm> reference, std::int64_t total_steps,
          compute& where);
  ~learner();
  /// One step: all mini-batches and epochs of `groups` (dispatch order; advantages filled in), then the model's values are published.
  /// Returns actor/*, exact/logprob_diff_max and timing_s/* of the step.
  metric_map step(const std::vector<scored_group>& groups);
  std::int64_t steps_done() const; // updates of the run so far
  weights_version version() const;
  void set_incarnation(std::uint32_t incarnation);

  /// Writes tensors, optimizer state and counters into `dir` (an existing, empty, staged directory): a Hugging Face directory
  /// with `optimizer.safetensors` and `learner.json` beside. `source`: the directory whose tokenizer files are carried over.
  void save(const std::filesystem::path& dir, const std::filesystem::path& source) const;
  /// Restores what save wrote. Throws errc::bad_input naming what is missing or damaged; the learner is then unchanged.
  void load(const std::filesystem::path& dir);

private:
  struct impl;
  std::unique_ptr<impl> impl_;
};

} // namespace troupe
