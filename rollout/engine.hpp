#pragma once
#include "rollout/request_desk.hpp"
#include <cstdint>
#include <memory>
#include <thread>

namespace troupe {

/// A desk with a generator of its own and a thread that does nothing but passes.
class engine : public request_desk {
public:
  engine(std::unique_ptr<generator> g, std::int64_t max_waiting);
  ~engine(); // ends as cancel does

private:
  struct news;
  void run();
  std::unique_ptr<generator> generator_;
  std::shared_ptr<news> news_;
  std::thread thread_; // the last: it uses all others
};

} // namespace troupe
