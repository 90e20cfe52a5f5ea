#pragma once
#include "core/metrics.hpp"
#include <chrono>
#include <cstdint>

namespace troupe {

/// A metric's mean over a step's updates; absent without one.
class running_mean {
public:
  void add(double x) {
    sum_ += x;
    ++count_;
  }
  void put(metric_map& out, const char* name) const {
    if (count_ > 0)
      out[name] = sum_ / double(count_);
  }

private:
  double sum_ = 0;
  std::int64_t count_ = 0;
};

inline double seconds_since(std::chrono::steady_clock::time_point begin) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

} // namespace troupe
