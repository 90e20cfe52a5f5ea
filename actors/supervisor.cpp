#include "actors/supervisor.hpp"
#include "core/error.hpp"
#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstring>
#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>
#include <thread>
#include <unistd.h>

namespace troupe {
namespace {

std::vector<char*> pointers(std::vector<std::string>& strings) {
  std::vector<char*> out;
  for (auto& s : strings)
    out.push_back(s.data());
  out.push_back(nullptr);
  return out;
}

std::string how(int status) {
  if (WIFSIGNALED(status))
    return "was killed by signal " + std::to_string(WTERMSIG(status));
  return "exited with status " + std::to_string(WEXITSTATUS(status));
}

/// The terminal's signals go to `train` alone: it ends its workers itself.
void set_attributes(posix_spawnattr_t& attributes) {
  sigset_t none, defaults;
  sigemptyset(&none);
  sigemptyset(&defaults);
  sigaddset(&defaults, SIGINT);
  sigaddset(&defaults, SIGTERM);
  posix_spawnattr_setsigmask(&attributes, &none);
  posix_spawnattr_setsigdefault(&attributes, &defaults);
  posix_spawnattr_setpgroup(&attributes, 0);
  posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETPGROUP);
}

} // namespace

supervisor::supervisor(std::vector<std::string> arguments, std::vector<std::string> environment, const std::vector<std::string>& defaults,
                       std::string output)
    : arguments_(std::move(arguments)), environment_(std::move(environment)), output_(std::move(output)) {
  arguments_.insert(arguments_.begin(), "troupe");
  for (char** e = environ; *e != nullptr; ++e)
    environment_.emplace_back(*e);
  for (const std::string& setting : defaults)
    if (const std::string name = setting.substr(0, setting.find('=') + 1);
        std::none_of(environment_.begin(), environment_.end(), [&](const std::string& e) { return e.starts_with(name); }))
      environment_.push_back(setting);
}

supervisor::~supervisor() { finish(0); }

void supervisor::start() {
  posix_spawnattr_t attributes;
  posix_spawn_file_actions_t files;
  posix_spawnattr_init(&attributes);
  posix_spawn_file_actions_init(&files);
  set_attributes(attributes);
  posix_spawn_file_actions_addopen(&files, 0, "/dev/null", O_RDONLY, 0);
  posix_spawn_file_actions_addopen(&files, 1, output_.c_str(), O_WRONLY | O_CREAT | O_APPEND, 0644);
  posix_spawn_file_actions_adddup2(&files, 1, 2);
  pid_t pid = 0;
  const int failed = posix_spawn(&pid, "/proc/self/exe", &files, &attributes, pointers(arguments_).data(), pointers(environment_).data());
  posix_spawn_file_actions_destroy(&files);
  posix_spawnattr_destroy(&attributes);
  if (failed != 0)
    throw error(errc::io, std::string("cannot start a worker process: ") + std::strerror(failed));
  running_.insert(pid);
}

std::vector<ended_process> supervisor::reap() {
  std::vector<ended_process> out;
  for (auto it = running_.begin(); it != running_.end();) {
    int status = 0;
    if (waitpid(*it, &status, WNOHANG) == *it) {
      out.push_back({*it, how(status), WIFEXITED(status) && WEXITSTATUS(status) == 0});
      it = running_.erase(it);
    } else {
      ++it;
    }
  }
  return out;
}

void supervisor::end(std::int64_t pid) {
  if (running_.count(pid_t(pid)) != 0)
    kill(pid_t(pid), SIGKILL);
}

void supervisor::finish(int seconds) {
  const auto until = std::chrono::steady_clock::now() + std::chrono::seconds(seconds);
  while (reap(), !running_.empty() && std::chrono::steady_clock::now() < until)
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  for (const auto pid : running_) {
    kill(pid, SIGKILL);
    waitpid(pid, nullptr, 0);
  }
  running_.clear();
}

} // namespace troupe
