#pragma once
#include <chrono>
#include <cstdint>
#include <filesystem>
#include <string>
#include <sys/types.h>
#include <vector>

namespace troupe {

/// A directory with a tiny random Llama, its tokenizer, data and a configuration of a run that takes a second or two.
/// Removed with its runs at the end.
class tiny_world {
public:
  tiny_world();
  ~tiny_world();
  tiny_world(const tiny_world&) = delete;
  tiny_world& operator=(const tiny_world&) = delete;
  const std::filesystem::path& dir() const { return dir_; }
  std::filesystem::path config() const { return dir_ / "run.toml"; }
  std::filesystem::path run_dir(const std::string& name) const { return dir_ / name; }

private:
  void write_model() const;
  void write_tokenizer() const;
  void write_data() const;
  void write_config() const;
  std::filesystem::path dir_;
};

inline constexpr int tiny_steps = 24;

/// What a program is started with, its arguments aside.
struct surroundings {
  std::filesystem::path input = "/dev/null"; // stdin
  std::vector<std::string> environment;      // "NAME=value", instead of or beside the test's own
  std::uint64_t largest_file = 0;            // bytes; writing past them fails. 0: no limit
  bool obeys_permissions = false;            // also when the user is root
  int (*instead)(int,
                 char**) = nullptr; // called in a child of this process, which saves the program's loading; the environment is the test's
};

/// The real program as a child process; stdout and stderr go to files.
class program {
public:
  program(const std::vector<std::string>& arguments, const std::filesystem::path& output, const surroundings& around = {});
  ~program(); // kills what still runs
  program(const program&) = delete;
  program& operator=(const program&) = delete;
  pid_t pid() const { return pid_; }
  void signal(int number) const;
  /// Exit status, 128 + signal, or -1 when it does not end in time (it is killed then).
  int wait(std::chrono::seconds at_most);
  bool running();
  std::string out() const;
  std::string err() const;

private:
  bool reap(bool block);
  pid_t pid_ = 0;
  int status_ = 0;
  bool ended_ = false;
  std::filesystem::path output_;
};

std::size_t n_lines(const std::string& text);
/// The steps in metrics.jsonl, in order; a half-written last line is left out.
std::vector<int> recorded_steps(const std::filesystem::path& run_dir);
/// Pids of the workers of a role that joined, in order, as log.txt says.
std::vector<pid_t> joined(const std::filesystem::path& run_dir, const std::string& role);
std::string file_bytes(const std::filesystem::path& file);
/// The last step's weights.
std::string final_weights(const std::filesystem::path& run_dir);
/// Polls until `done`; false after `at_most`.
template <class F>
bool until(F done, std::chrono::seconds at_most = std::chrono::seconds(60));
bool alive(pid_t pid);
void pause_briefly();

template <class F>
bool until(F done, std::chrono::seconds at_most) {
  const auto end = std::chrono::steady_clock::now() + at_most;
  while (!done()) {
    if (std::chrono::steady_clock::now() >= end)
      return false;
    pause_briefly();
  }
  return true;
}

} // namespace troupe
