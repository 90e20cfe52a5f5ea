#pragma once
#include <algorithm>
#include <csignal>

namespace troupe {

/// SIGINT and SIGTERM, held back from every thread made after it and asked for by one.
class held_signals {
public:
  held_signals() {
    sigemptyset(&set_);
    sigaddset(&set_, SIGINT);
    sigaddset(&set_, SIGTERM);
    pthread_sigmask(SIG_BLOCK, &set_, &before_);
  }
  ~held_signals() { pthread_sigmask(SIG_SETMASK, &before_, nullptr); }
  held_signals(const held_signals&) = delete;
  held_signals& operator=(const held_signals&) = delete;
  /// 0: none came.
  int take() const {
    const timespec now{};
    return std::max(0, sigtimedwait(&set_, nullptr, &now));
  }

private:
  sigset_t set_, before_;
};

} // namespace troupe
