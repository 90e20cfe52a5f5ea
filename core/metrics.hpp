#pragma once
#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <string>

namespace troupe {

/// Metric names and values of one step, sorted by name.
using metric_map = std::map<std::string, double>;

/// The one place a run's metrics go: `metrics.jsonl` (one object a step, "step" first) and TensorBoard events.
/// Owned by the run's driver; one thread. Throws errc::io with the path and the reason.
class metric_sink {
public:
  /// Opens for appending; lines of steps after `last_step` are dropped first (a resumed run writes them again); -1: a new run.
  metric_sink(const std::filesystem::path& run_dir, std::int64_t last_step);
  ~metric_sink();
  /// Adds a step's values; a step already written is ignored, so that work done again is recorded once.
  void write(std::int64_t step, const metric_map& values);

private:
  struct impl;
  std::unique_ptr<impl> impl_;
};

} // namespace troupe
