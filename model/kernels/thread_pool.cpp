#include "model/kernels/thread_pool.hpp"
#include <cstdlib>
#include <immintrin.h>
#include <new>

namespace troupe {

namespace {

constexpr unsigned kernel_mxcsr = 0x9fc0; // nearest even, FTZ, DAZ, exceptions masked

void call(void (*f)(void*, int), void* arg, int t) {
  const unsigned saved = _mm_getcsr();
  _mm_setcsr(kernel_mxcsr);
  f(arg, t);
  _mm_setcsr(saved);
}

} // namespace

thread_pool::thread_pool(int threads) : size_(threads) {
  scratch_ = {nullptr, std::free};
  for (int t = 1; t < size_; ++t)
    workers_.emplace_back([this, t] { work(t); });
}

thread_pool::~thread_pool() {
  stop_ = true;
  generation_.fetch_add(1, std::memory_order_release);
  generation_.notify_all();
  for (auto& w : workers_)
    w.join();
}

void thread_pool::work(int t) {
  for (std::uint32_t seen = 0;; ++seen) {
    for (int spins = 0; generation_.load(std::memory_order_acquire) == seen; ++spins) {
      if (spins > 2000)
        generation_.wait(seen);
      else
        _mm_pause();
    }
    if (stop_)
      return;
    call(task_, argument_, t);
    if (left_.fetch_sub(1, std::memory_order_release) == 1)
      left_.notify_one();
  }
}

void thread_pool::start(task f, void* arg) {
  if (size_ > 1) {
    task_ = f;
    argument_ = arg;
    left_.store(std::uint32_t(size_ - 1), std::memory_order_relaxed);
    generation_.fetch_add(1, std::memory_order_release);
    generation_.notify_all();
  }
  call(f, arg, 0);
  // Workers may have to share a core with another process: sleep rather than burn its time.
  for (int spins = 0; size_ > 1; ++spins) {
    const std::uint32_t left = left_.load(std::memory_order_acquire);
    if (left == 0)
      return;
    if (spins > 4000)
      left_.wait(left);
    else
      _mm_pause();
  }
}

char* thread_pool::scratch(std::size_t bytes) {
  if (bytes > scratch_bytes_) {
    scratch_bytes_ = (bytes + 4095) & ~std::size_t{4095};
    scratch_.reset(static_cast<char*>(std::aligned_alloc(4096, scratch_bytes_)));
    if (!scratch_)
      throw std::bad_alloc();
  }
  return scratch_.get();
}

} // namespace troupe
