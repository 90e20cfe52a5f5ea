#include "model/compute.hpp"
#include "core/error.hpp"
#include "model/kernels/thread_pool.hpp"
#include <sched.h>

namespace troupe {

namespace {

// Processors this process may run on; the machine may have more.
int usable_processors() {
  cpu_set_t set;
  CPU_ZERO(&set);
  return sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;
}

} // namespace

compute::compute(int threads, isa which, int gpu) : isa_(which), gpu_(gpu) {
  if (!supported(which))
    throw error{errc::bad_usage, "--isa " + std::string(name_of(which)) + ": this processor does not have it; the best here is " +
                                     std::string(name_of(best_isa()))};
  if (threads < 0 || threads > 1024)
    throw error{errc::bad_usage, "--threads " + std::to_string(threads) + ": 1 to 1024, or 0 for one a core"};
  const int n = threads > 0 ? threads : usable_processors();
  pool_ = std::make_unique<thread_pool>(n);
}

compute::~compute() = default;

int compute::threads() const { return pool_->size(); }

} // namespace troupe
