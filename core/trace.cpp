#include "core/trace.hpp"
#include "core/error.hpp"
#include "core/files.hpp"
#include <atomic>
#include <cstdint>
#include <cstdio>
#include <mutex>
#include <nlohmann/json.hpp>
#include <unistd.h>
#include <vector>

namespace troupe {
namespace {

using clock = std::chrono::steady_clock;

struct span_record {
  const char* name;
  std::int64_t thread, begin_ns, duration_ns;
};

// A span a millisecond for a quarter of an hour; what comes after is counted, not kept.
constexpr std::size_t most_spans = 1'000'000;

struct recorder {
  std::mutex mutex; // guards all below
  std::filesystem::path file;
  clock::time_point start;
  std::vector<span_record> spans;
  std::size_t dropped = 0;
};

std::atomic<bool> recording{false};

recorder& the_recorder() {
  static recorder r;
  return r;
}

std::int64_t thread_number() {
  static std::atomic<std::int64_t> next{1};
  thread_local const std::int64_t number = next++;
  return number;
}

std::int64_t nanoseconds(clock::duration d) { return std::chrono::duration_cast<std::chrono::nanoseconds>(d).count(); }

std::string microseconds(std::int64_t ns) {
  char text[40];
  std::snprintf(text, sizeof text, "%lld.%03d", static_cast<long long>(ns / 1000), int(ns % 1000));
  return text;
}

} // namespace

void start_trace(const std::filesystem::path& file) {
  auto& r = the_recorder();
  const std::lock_guard lock(r.mutex);
  r.file = file;
  r.start = clock::now();
  r.spans.clear();
  r.dropped = 0;
  recording = true;
}

void stop_trace() {
  auto& r = the_recorder();
  const std::lock_guard lock(r.mutex);
  if (!recording.exchange(false))
    return;
  std::string out =
      "{\"displayTimeUnit\": \"ms\", \"otherData\": {\"dropped_spans\": " + std::to_string(r.dropped) + "}, \"traceEvents\": [";
  const std::string pid = std::to_string(::getpid());
  const char* separator = "\n";
  for (const auto& s : r.spans) {
    out += separator;
    out += "{\"ph\": \"X\", \"name\": " + nlohmann::json(s.name).dump() + ", \"pid\": " + pid + ", \"tid\": " + std::to_string(s.thread) +
           ", \"ts\": " + microseconds(s.begin_ns) + ", \"dur\": " + microseconds(s.duration_ns) + "}";
    separator = ",\n";
  }
  r.spans.clear();
  write_file(r.file, out + "\n]}\n");
}

trace_span::~trace_span() {
  if (!recording.load(std::memory_order_relaxed))
    return;
  const auto end = clock::now();
  auto& r = the_recorder();
  const std::lock_guard lock(r.mutex);
  if (!recording || begin_ < r.start)
    return;
  if (r.spans.size() < most_spans)
    r.spans.push_back({name_, thread_number(), nanoseconds(begin_ - r.start), nanoseconds(end - begin_)});
  else
    ++r.dropped;
}

} // namespace troupe
