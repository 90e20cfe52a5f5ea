#include "cli/interrupt.hpp"
#include <csignal>
#include <initializer_list>
#include <unistd.h>

namespace troupe {
namespace {

volatile std::sig_atomic_t came = 0;

void take(int number) {
  if (came != 0) {
    constexpr char line[] = "troupe: stopped at once by a second signal\n";
    [[maybe_unused]] const auto written = ::write(STDERR_FILENO, line, sizeof line - 1); // nothing is left to do when it fails
    _exit(1);
  }
  came = number;
}

void handle(void (*handler)(int)) {
  struct sigaction action {};
  action.sa_handler = handler;
  action.sa_flags = SA_RESTART;
  for (const int number : {SIGINT, SIGTERM})
    sigaction(number, &action, nullptr);
}

} // namespace

interrupt::interrupt() {
  came = 0;
  handle(take);
}

interrupt::~interrupt() { handle(SIG_DFL); }

int interrupt::received() noexcept { return came; }

} // namespace troupe
