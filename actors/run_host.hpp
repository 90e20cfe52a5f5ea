#pragma once
#include "core/error.hpp"
#include "core/metrics.hpp"
#include <cstdint>
#include <string>

namespace troupe {

/// Where a run's results go: files, the terminal. Called from the coordinator's thread, one call at a time; must not block for long.
class run_outputs {
public:
  virtual ~run_outputs() = default;
  /// The run goes on after `step`: from here on, later steps are written anew.
  virtual void begin(std::uint32_t step) = 0;
  virtual void record(std::uint32_t step, const metric_map& metrics) = 0;
  /// `done` of `wanted` groups of a step (validation: after that many updates) are scored.
  virtual void progress(std::uint32_t step, bool validation, std::uint32_t done, std::uint32_t wanted) = 0;
  /// Of a model that this process loads, in bytes.
  virtual void loading(std::uint64_t read, std::uint64_t all) {
    (void)read;
    (void)all;
  }
  virtual void log(const std::string& line) = 0;
};

/// The same with what stands around a run: processes, and who waits for its end.
class run_host : public run_outputs {
public:
  /// A worker's process does not answer any more: end it, if it is one of this machine's.
  virtual void end_process(std::int64_t pid) = 0;
  /// The run is over; errc{} for success.
  virtual void ended(errc code, const std::string& text) = 0;
};

} // namespace troupe
