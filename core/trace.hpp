#pragma once
#include <chrono>
#include <filesystem>
#include <string>
#include <string_view>

namespace troupe {

/// Records spans for chrome://tracing and Perfetto; off until `start_trace`. Any thread. `name` must outlive the program (a literal).
void start_trace(const std::filesystem::path& file);
/// Writes the file. Throws errc::io.
void stop_trace();

/// Records the time from construction to destruction.
class trace_span {
public:
  explicit trace_span(const char* name) noexcept : name_(name), begin_(std::chrono::steady_clock::now()) {}
  ~trace_span();
  trace_span(const trace_span&) = delete;
  trace_span& operator=(const trace_span&) = delete;

private:
  const char* name_;
  std::chrono::steady_clock::time_point begin_;
};

} // namespace troupe
