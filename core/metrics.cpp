#include "core/metrics.hpp"
#include "core/error.hpp"
#include "core/files.hpp"
#include "core/tfrecord.hpp"
#include "tensorboard_event.pb.h"
#include <array>
#include <atomic>
#include <cerrno>
#include <charconv>
#include <chrono>
#include <cmath>
#include <fcntl.h>
#include <nlohmann/json.hpp>
#include <set>
#include <unistd.h>

namespace fs = std::filesystem;

namespace troupe {
namespace {

/// Appends to a file; a write is on the disk when it returns.
class appended_file {
public:
  appended_file(fs::path file, int flags)
      : file_(std::move(file)), fd_(::open(file_.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC | flags, 0666)) {
    if (fd_ < 0)
      fail();
  }
  ~appended_file() {
    if (fd_ >= 0)
      ::close(fd_);
  }
  appended_file(const appended_file&) = delete;
  appended_file& operator=(const appended_file&) = delete;
  void append(std::string_view bytes) {
    while (!bytes.empty()) {
      const ssize_t n = ::write(fd_, bytes.data(), bytes.size());
      if (n < 0 && errno != EINTR)
        fail();
      bytes.remove_prefix(std::size_t(std::max<ssize_t>(n, 0)));
    }
    if (::fdatasync(fd_) != 0)
      fail();
  }

private:
  [[noreturn]] void fail() const { throw error(errc::io, "cannot write " + file_.string() + ": " + write_failure(errno)); }
  fs::path file_;
  int fd_;
};

std::string number(double value) {
  if (!std::isfinite(value))
    return "null"; // JSON has no other word for it
  if (value == 0 && std::signbit(value))
    return "-0.0"; // "-0" is read as an integer, which has no sign
  std::array<char, 32> text;
  return std::string(text.data(), std::to_chars(text.data(), text.data() + text.size(), value).ptr);
}

std::string json_line(std::int64_t step, const metric_map& values) {
  std::string line = "{\"step\": " + std::to_string(step);
  for (const auto& [name, value] : values)
    line += ", " + nlohmann::json(name).dump() + ": " + number(value);
  return line + "}\n";
}

std::int64_t step_of(std::string_view line, const std::string& where) {
  const auto row = nlohmann::json::parse(line, nullptr, false);
  if (!row.is_object() || !row.contains("step") || !row["step"].is_number_integer())
    throw error(errc::bad_input, where + ": not a line of metrics, an object with an integer \"step\"; the file is damaged");
  return row["step"].get<std::int64_t>();
}

/// Drops the lines after `last_step` and a half-written last one; returns the steps that stay.
std::set<std::int64_t> keep_until(const fs::path& file, std::int64_t last_step) {
  std::set<std::int64_t> steps;
  if (!is_there(file))
    return steps;
  const std::string bytes = read_file(file);
  std::string kept;
  std::size_t number = 0;
  for (std::size_t begin = 0; begin < bytes.size();) {
    const std::size_t end = bytes.find('\n', begin);
    const std::string_view line = std::string_view(bytes).substr(begin, end == std::string::npos ? end : end - begin);
    begin = end == std::string::npos ? bytes.size() : end + 1;
    ++number;
    if (end == std::string::npos && !nlohmann::json::accept(line))
      break; // the process died while it wrote
    if (line.empty())
      continue;
    const std::int64_t step = step_of(line, file.string() + ":" + std::to_string(number));
    if (step <= last_step && steps.insert(step).second)
      kept.append(line) += '\n';
  }
  if (kept != bytes)
    write_file(file, kept);
  return steps;
}

double wall_time() { return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count(); }

fs::path events_file(const fs::path& run_dir) {
  static std::atomic<int> made{0};
  std::array<char, 256> host{};
  if (::gethostname(host.data(), host.size() - 1) != 0)
    host = {'h', 'o', 's', 't'};
  return run_dir / ("events.out.tfevents." + std::to_string(std::int64_t(wall_time())) + "." + host.data() + "." +
                    std::to_string(::getpid()) + "." + std::to_string(made++));
}

} // namespace

struct metric_sink::impl {
  impl(const fs::path& run_dir, std::int64_t last_step)
      : steps(keep_until(run_dir / "metrics.jsonl", last_step)), lines(run_dir / "metrics.jsonl", O_APPEND),
        events(events_file(run_dir), O_TRUNC) {
    tensorboard::Event version;
    version.set_wall_time(wall_time());
    version.set_file_version("brain.Event:2");
    tensorboard::Event start;
    start.set_wall_time(wall_time());
    start.set_step(last_step + 1);
    start.mutable_session_log()->set_status(1);
    events.append(tfrecord(version.SerializeAsString()) + tfrecord(start.SerializeAsString()));
  }
  std::set<std::int64_t> steps;
  appended_file lines, events;
};

metric_sink::metric_sink(const fs::path& run_dir, std::int64_t last_step) : impl_(std::make_unique<impl>(run_dir, last_step)) {}
metric_sink::~metric_sink() = default;

void metric_sink::write(std::int64_t step, const metric_map& values) {
  if (!impl_->steps.insert(step).second)
    return;
  impl_->lines.append(json_line(step, values));
  tensorboard::Event event;
  event.set_wall_time(wall_time());
  event.set_step(step);
  for (const auto& [name, value] : values) {
    auto* entry = event.mutable_summary()->add_value();
    entry->set_tag(name);
    entry->set_simple_value(float(value));
  }
  impl_->events.append(tfrecord(event.SerializeAsString()));
}

} // namespace troupe
