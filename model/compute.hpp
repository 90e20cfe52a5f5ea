#pragma once
#include "model/kernels/isa.hpp"
#include <memory>

namespace troupe {

class thread_pool;

/// What kernels run on: threads and the instruction set, and for models a GPU. One caller at a time; the bits depend on neither.
class compute {
public:
  /// threads 0: one a core. Throws errc::bad_usage when this processor lacks `which`.
  /// gpu: the number of the GPU that models are made on, -1: the CPU; make_model throws where there is no such GPU.
  explicit compute(int threads = 0, isa which = best_isa(), int gpu = -1);
  ~compute();
  compute(const compute&) = delete;
  compute& operator=(const compute&) = delete;
  thread_pool& pool() const { return *pool_; }
  isa which() const { return isa_; }
  int threads() const;
  int gpu() const { return gpu_; }

private:
  std::unique_ptr<thread_pool> pool_;
  isa isa_;
  int gpu_;
};

} // namespace troupe
