#include "cli/progress.hpp"
#include "cli/report.hpp"
#include "core/error.hpp"
#include "core/files.hpp"
#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <ctime>
#include <sys/ioctl.h>
#include <unistd.h>

namespace troupe {
namespace {

std::string spelled(const char* format, auto... values) {
  char text[256];
  std::snprintf(text, sizeof text, format, values...);
  return text;
}

std::string spelled_time(double seconds) {
  const auto s = std::llround(seconds);
  if (s >= 3600)
    return spelled("%lldh%02lldm", s / 3600, s / 60 % 60);
  return s >= 60 ? spelled("%lldm%02llds", s / 60, s % 60) : spelled("%llds", s);
}

double value(const metric_map& metrics, const char* name) {
  const auto it = metrics.find(name);
  return it == metrics.end() ? 0.0 : it->second;
}

} // namespace

train_outputs::train_outputs(const config& cfg, std::int64_t total_steps)
    : run_dir_(cfg.run_dir()), total_steps_(std::uint32_t(total_steps)), terminal_(isatty(STDERR_FILENO) != 0) {
  const std::string path = (run_dir_ / "log.txt").string();
  log_ = std::fopen(path.c_str(), "ae"); // e: the workers open it themselves
  if (log_ == nullptr)
    throw error(errc::io, path + ": cannot be written: " + write_failure(errno));
}

train_outputs::~train_outputs() {
  close();
  std::fclose(log_);
}

void train_outputs::begin(std::uint32_t step) {
  first_step_ = last_step_ = step;
  sink_ = std::make_unique<metric_sink>(run_dir_, step);
  if (step > 0)
    say("going on after step " + std::to_string(step));
}

double train_outputs::seconds_left(std::uint32_t step) const {
  const double done = std::max(1.0, double(step - std::min(step, first_step_)));
  return trained_seconds_ / done * double(total_steps_ - std::min(step, total_steps_));
}

void train_outputs::record(std::uint32_t step, const metric_map& metrics) {
  sink_->write(step, metrics);
  if (metrics.count("timing_s/step") != 0) {
    last_step_ = step;
    trained_seconds_ += value(metrics, "timing_s/step");
    if (metrics.count("train/loss") != 0)
      say(spelled("step %u/%u  loss %.4f  %.1f s  left %s", step, total_steps_, value(metrics, "train/loss"),
                  value(metrics, "timing_s/step"), spelled_time(seconds_left(step)).c_str()));
    else
      say(spelled("step %u/%u  reward %.3f  length %.1f  %.1f s  left %s", step, total_steps_, value(metrics, "critic/rewards/mean"),
                  value(metrics, "response_length/mean"), value(metrics, "timing_s/step"), spelled_time(seconds_left(step)).c_str()));
  }
  if (metrics.count("val/loss") != 0) {
    say(spelled("validation after step %u: loss %.4f", step, value(metrics, "val/loss")));
    write_report(run_dir_);
  }
  if (metrics.count("val/accuracy") != 0) {
    say(spelled("validation after step %u: accuracy %.3f", step, value(metrics, "val/accuracy")));
    write_report(run_dir_);
  }
}

void train_outputs::progress(std::uint32_t step, bool validation, std::uint32_t done, std::uint32_t wanted) {
  if (!terminal_)
    return;
  const std::uint32_t width = 24, full = wanted == 0 ? 0 : done * width / wanted;
  bar(spelled("%s %u/%u [%s%s] %u/%u", validation ? "validating after step" : "step", step, total_steps_, std::string(full, '#').c_str(),
              std::string(width - full, '.').c_str(), done, wanted) +
      (last_step_ > first_step_ ? "  left " + spelled_time(seconds_left(last_step_)) : ""));
}

void train_outputs::log(const std::string& line) {
  const std::lock_guard lock(log_mutex_);
  char when[32];
  const std::time_t now = std::time(nullptr);
  std::tm parts{};
  std::strftime(when, sizeof when, "%Y-%m-%dT%H:%M:%SZ", gmtime_r(&now, &parts));
  std::fprintf(log_, "%s %s\n", when, line.c_str());
  std::fflush(log_);
}

void train_outputs::bar(std::string text) {
  winsize size{};
  if (ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0 && text.size() >= size.ws_col)
    text.resize(size.ws_col - 1); // a second line could not be erased
  std::fprintf(stderr, "\r\033[K%s", text.c_str());
  std::fflush(stderr);
  bar_shown_ = true;
}

void train_outputs::close() {
  if (bar_shown_)
    std::fprintf(stderr, "\r\033[K");
  bar_shown_ = false;
}

void train_outputs::say(const std::string& line) {
  close();
  std::printf("%s\n", line.c_str());
  std::fflush(stdout);
  log(line);
}

} // namespace troupe
