#pragma once
#include "actors/run_host.hpp"
#include "cli/loading.hpp"
#include "core/config.hpp"
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <mutex>

namespace troupe {

/// A run's files and what its user sees: metrics.jsonl and events, log.txt, report.html; a bar with the time left on a
/// terminal's stderr, else a line a step on stdout.
class train_outputs : public run_outputs {
public:
  /// Opens log.txt for appending. Throws errc::io.
  train_outputs(const config& cfg, std::int64_t total_steps);
  ~train_outputs() override;
  void begin(std::uint32_t step) override;
  void record(std::uint32_t step, const metric_map& metrics) override;
  void progress(std::uint32_t step, bool validation, std::uint32_t done, std::uint32_t wanted) override;
  void loading(std::uint64_t read, std::uint64_t all) override { loading_.show(read, all); }
  void log(const std::string& line) override; // any thread
  /// Ends the bar's line.
  void close();

private:
  using clock = std::chrono::steady_clock;
  double seconds_left(std::uint32_t step) const;
  void bar(std::string text);
  void say(const std::string& line);

  std::filesystem::path run_dir_;
  std::uint32_t total_steps_, first_step_ = 0, last_step_ = 0;
  bool terminal_, bar_shown_ = false;
  double trained_seconds_ = 0;
  std::FILE* log_ = nullptr;
  std::mutex log_mutex_;
  loading_line loading_;
  std::unique_ptr<metric_sink> sink_;
};

} // namespace troupe
