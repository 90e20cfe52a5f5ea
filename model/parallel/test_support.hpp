#pragma once
#include "core/error.hpp"
#include "model/parallel/communicator.hpp"
#include <csignal>
#include <cstring>
#include <fcntl.h>
#include <functional>
#include <gtest/gtest.h>
#include <spawn.h>
#include <string>
#include <sys/wait.h>
#include <thread>
#include <unistd.h>
#include <vector>

namespace troupe {

/// What each rank's thread threw: "" for nothing.
struct rank_result {
  std::string text;
  errc code = errc::failed;
};

/// f(rank) in a thread each.
inline std::vector<rank_result> run_ranks(int n, const std::function<void(int)>& f) {
  std::vector<rank_result> results(static_cast<std::size_t>(n));
  std::vector<std::thread> threads;
  for (int r = 0; r < n; ++r)
    threads.emplace_back([&, r] {
      try {
        f(r);
      } catch (const error& e) {
        results[std::size_t(r)] = {e.what(), e.code()};
      }
    });
  for (auto& t : threads)
    t.join();
  return results;
}

inline void expect_no_errors(const std::vector<rank_result>& results) {
  for (std::size_t r = 0; r < results.size(); ++r)
    EXPECT_EQ(results[r].text, "") << "rank " << r;
}

/// One rank in a process of its own: parallel_worker, whose first line is its endpoint and whose input begins with everyone's.
class worker_process {
public:
  worker_process(const std::string& program, std::vector<std::string> arguments) {
    int in[2], out[2];
    if (pipe2(in, O_CLOEXEC) != 0 || pipe2(out, O_CLOEXEC) != 0)
      throw error{errc::io, "pipe failed"};
    arguments.insert(arguments.begin(), program);
    std::vector<char*> argv;
    for (auto& a : arguments)
      argv.push_back(a.data());
    argv.push_back(nullptr);
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, in[0], 0);
    posix_spawn_file_actions_adddup2(&actions, out[1], 1);
    if (posix_spawn(&pid_, program.c_str(), &actions, nullptr, argv.data(), environ) != 0)
      throw error{errc::io, "cannot start " + program};
    posix_spawn_file_actions_destroy(&actions);
    close(in[0]);
    close(out[1]);
    in_ = in[1];
    out_ = fdopen(out[0], "r");
  }
  worker_process(worker_process&& other) noexcept
      : pid_(std::exchange(other.pid_, -1)), in_(std::exchange(other.in_, -1)), out_(std::exchange(other.out_, nullptr)) {}
  worker_process(const worker_process&) = delete;
  ~worker_process() {
    if (in_ >= 0)
      close(in_);
    if (out_)
      fclose(out_);
    if (pid_ > 0) {
      ::kill(pid_, SIGKILL);
      waitpid(pid_, nullptr, 0);
    }
  }
  /// Its next line without the end; "" at the end of its output.
  std::string line() {
    std::string text;
    for (int c; (c = fgetc(out_)) != EOF && c != '\n';)
      text += char(c);
    return text;
  }
  void write(const std::string& text) const { ASSERT_EQ(::write(in_, text.data(), text.size()), ssize_t(text.size())); }
  void signal(int number) const { ::kill(pid_, number); }
  int wait() {
    int status = 0;
    waitpid(std::exchange(pid_, -1), &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  }

private:
  pid_t pid_ = -1;
  int in_ = -1;
  FILE* out_ = nullptr;
};

/// `n` workers that know each other.
inline std::vector<worker_process> start_workers(const std::string& program, int n, const std::vector<std::string>& arguments) {
  std::vector<worker_process> all;
  for (int r = 0; r < n; ++r) {
    std::vector<std::string> own = {std::to_string(r), std::to_string(n)};
    own.insert(own.end(), arguments.begin(), arguments.end());
    all.emplace_back(program, own);
  }
  std::string endpoints;
  for (auto& w : all)
    endpoints += w.line() + "\n";
  for (auto& w : all)
    w.write(endpoints);
  return all;
}

} // namespace troupe
