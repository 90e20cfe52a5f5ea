#pragma once
#include <functional>
#include <mutex>
#include <utility>
#include <vector>

namespace troupe {

/// What the experience plane leaves for an actor. `push`: any thread; `take`: the actor. Bounded by what was dispatched.
template <class T>
class inbox {
public:
  /// Called after every push, on the pusher's thread: wakes the actor. At once for what was pushed before the actor was there.
  void on_push(const std::function<void()>& wake) {
    bool waiting = false;
    {
      const std::lock_guard lock(mutex_);
      wake_ = wake;
      waiting = !items_.empty();
    }
    if (waiting)
      wake();
  }
  void push(T item) {
    std::function<void()> wake;
    {
      const std::lock_guard lock(mutex_);
      items_.push_back(std::move(item));
      wake = wake_;
    }
    if (wake)
      wake();
  }
  std::vector<T> take() {
    const std::lock_guard lock(mutex_);
    return std::exchange(items_, {});
  }

private:
  std::mutex mutex_;
  std::vector<T> items_;
  std::function<void()> wake_;
};

} // namespace troupe
