#pragma once
#include <cstdint>
#include <set>
#include <string>
#include <sys/types.h>
#include <vector>

namespace troupe {

/// A child process that ended, and how ("exited with status 2", "was killed by signal 9").
struct ended_process {
  std::int64_t pid = 0;
  std::string how;
  bool let_go = false; // with status 0: the run is over
};

/// This machine's worker processes. Used by the one thread that lives as long as they do: they die with it.
class supervisor {
public:
  /// arguments: of this program; environment: "NAME=value" set beside ours; defaults: likewise, where ours does not name them;
  /// output: the file that takes stdout and stderr.
  supervisor(std::vector<std::string> arguments, std::vector<std::string> environment, const std::vector<std::string>& defaults,
             std::string output);
  ~supervisor(); // kills what is left
  supervisor(const supervisor&) = delete;
  supervisor& operator=(const supervisor&) = delete;
  /// Starts one more. Throws errc::io.
  void start();
  /// Those that ended since the last call; never blocks.
  std::vector<ended_process> reap();
  /// SIGKILL, if it is one of ours.
  void end(std::int64_t pid);
  std::size_t n_running() const { return running_.size(); }
  /// Waits for all to end by themselves, then kills what is left.
  void finish(int seconds);

private:
  std::vector<std::string> arguments_, environment_;
  std::string output_;
  std::set<pid_t> running_;
};

} // namespace troupe
