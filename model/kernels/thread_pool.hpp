#pragma once
#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>
#include <type_traits>
#include <vector>

namespace troupe {

/// The caller and size() - 1 workers. Workers spin a little, then sleep. One caller at a time; tasks must not throw.
/// Inside a task arithmetic rounds to nearest even and takes subnormals as zero: part of every kernel's definition.
class thread_pool {
public:
  explicit thread_pool(int threads);
  ~thread_pool();
  thread_pool(const thread_pool&) = delete;
  thread_pool& operator=(const thread_pool&) = delete;

  int size() const { return size_; }

  /// Calls f(t) for t in 0 .. size() - 1, t = 0 on the caller; returns when all have.
  template <class F>
  void run(F&& f) {
    start([](void* arg, int t) { (*static_cast<std::remove_reference_t<F>*>(arg))(t); }, const_cast<void*>(static_cast<const void*>(&f)));
  }

  /// f(begin, end) over [0, n) cut in size() consecutive parts.
  template <class F>
  void split(std::int64_t n, F&& f) {
    run([&](int t) {
      const std::int64_t begin = n * t / size_, end = n * (t + 1) / size_;
      if (begin < end)
        f(begin, end);
    });
  }

  /// f(i) for i in [0, n), handed out one by one: for items of unequal cost. Results must not depend on who does which.
  template <class F>
  void each(std::int64_t n, F&& f) {
    std::atomic<std::int64_t> next{0};
    run([&](int) {
      for (std::int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < n;)
        f(i);
    });
  }

  /// Shared scratch memory, at least `bytes`, aligned to a page; contents are lost when it grows.
  char* scratch(std::size_t bytes);

private:
  using task = void (*)(void*, int);
  void start(task f, void* arg);
  void work(int t);

  const int size_;
  std::vector<std::thread> workers_;
  std::atomic<std::uint32_t> generation_{0}, left_{0};
  task task_ = nullptr;
  void* argument_ = nullptr;
  bool stop_ = false;
  std::unique_ptr<char[], void (*)(void*)> scratch_{nullptr, nullptr};
  std::size_t scratch_bytes_ = 0;
};

} // namespace troupe
