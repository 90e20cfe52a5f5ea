#include "rollout/engine.hpp"
#include "core/error.hpp"
#include <condition_variable>
#include <exception>
#include <mutex>
#include <string>
#include <utility>

namespace troupe {

struct engine::news {
  std::mutex mutex;
  std::condition_variable came;
  bool any = false;
};

engine::engine(std::unique_ptr<generator> g, std::int64_t max_waiting)
    : request_desk(max_waiting), generator_(std::move(g)), news_(std::make_shared<news>()) {
  on_news([news = news_] {
    const std::lock_guard lock(news->mutex);
    news->any = true;
    news->came.notify_one();
  });
  thread_ = std::thread([this] { run(); });
}

engine::~engine() {
  cancel();
  thread_.join();
}

void engine::run() {
  std::exception_ptr why;
  bool broken = false;
  try {
    while (!cancelled()) {
      take_in(*generator_);
      if (generator_->idle()) {
        std::unique_lock lock(news_->mutex);
        news_->came.wait(lock, [&] { return std::exchange(news_->any, false); });
        continue;
      }
      for (auto& output : generator_->step())
        deliver(std::move(output));
    }
    why = std::make_exception_ptr(error{errc::cancelled, "the server is stopping; ask again elsewhere"});
  } catch (const std::exception& e) { // a thread's edge
    why = std::make_exception_ptr(error{errc::failed, std::string("generation failed: ") + e.what()});
    broken = true;
  }
  close(why, broken);
}

} // namespace troupe
