#pragma once
#include "model/registry.hpp"
#include <chrono>
#include <cstdio>

namespace troupe {

/// How far a model is loaded, as a line that is written over and, at the end, erased; shown from `after` on. One thread.
class loading_line {
public:
  using clock = std::chrono::steady_clock;

  /// out: a terminal; null: nothing is written. Default: stderr where that is one.
  explicit loading_line(std::FILE* out = terminal(), clock::duration after = std::chrono::seconds(2));
  ~loading_line() { erase(); }
  loading_line(const loading_line&) = delete;
  loading_line& operator=(const loading_line&) = delete;
  void show(std::uint64_t read, std::uint64_t all);
  load_progress progress() {
    return [this](std::uint64_t read, std::uint64_t all) { show(read, all); };
  }

private:
  static std::FILE* terminal();
  void erase();
  std::FILE* out_;
  clock::time_point from_;
  bool shown_ = false;
};

} // namespace troupe
