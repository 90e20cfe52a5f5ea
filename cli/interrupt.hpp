#pragma once

namespace troupe {

/// While one lives, the first SIGINT or SIGTERM only asks the command to end in order; a second one ends the program at once, with
/// status 1. Made by the main thread, one at a time.
class interrupt {
public:
  interrupt();
  ~interrupt();
  interrupt(const interrupt&) = delete;
  interrupt& operator=(const interrupt&) = delete;
  /// The signal that came; 0: none. Any thread.
  static int received() noexcept;
};

} // namespace troupe
