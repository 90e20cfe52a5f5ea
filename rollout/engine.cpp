#include "rollout/engine.hpp"
#include "core/error.hpp"
#include <algorithm>
#include <condition_variable>
#include <deque>
#include <exception>
#include <map>
#include <mutex>
#include <string>
#include <thread>
#include <utility>

namespace troupe {

namespace {

using timer = std::chrono::steady_clock;

double seconds_since(timer::time_point begin) { return std::chrono::duration<double>(timer::now() - begin).count(); }

} // namespace

void latency_histogram::add(double seconds) {
  ++counts[std::size_t(std::lower_bound(bounds.begin(), bounds.end(), seconds) - bounds.begin())];
  sum += seconds;
}

// Filled by the engine's thread, emptied by the stream's.
struct generation_stream::mailbox {
  std::mutex mutex;
  std::condition_variable filled;
  std::deque<generation_event> events;
  std::exception_ptr failure;
  std::int64_t undelivered = 0, unfinished = 0; // samples whose end was not put here; was not taken from here
  bool given_up = false;
  std::function<void()> wake = {}; // the engine; empty: it needs nothing more, and may be gone

  void put(generation_event&& event) {
    const std::lock_guard lock(mutex);
    undelivered -= std::holds_alternative<generation_output>(event) ? 1 : 0;
    if (undelivered == 0)
      wake = {};
    if (!given_up)
      events.push_back(std::move(event));
    filled.notify_one();
  }
  void fail(std::exception_ptr why) {
    const std::lock_guard lock(mutex);
    failure = std::move(why);
    wake = {};
    filled.notify_one();
  }
};

generation_stream::generation_stream(std::shared_ptr<mailbox> box) : box_(std::move(box)) {}

generation_stream::~generation_stream() {
  if (!box_)
    return;
  const std::lock_guard lock(box_->mutex);
  box_->given_up = true;
  box_->events.clear();
  if (box_->wake)
    box_->wake();
}

std::optional<generation_event> generation_stream::next(timer::time_point until) {
  auto& box = *box_;
  std::unique_lock lock(box.mutex);
  if (box.unfinished == 0)
    return {};
  box.filled.wait_until(lock, until, [&] { return !box.events.empty() || box.failure; });
  if (box.failure)
    std::rethrow_exception(box.failure);
  if (box.events.empty())
    return {};
  auto event = std::move(box.events.front());
  box.events.pop_front();
  box.unfinished -= std::holds_alternative<generation_output>(event) ? 1 : 0;
  return event;
}

bool generation_stream::ended() const {
  const std::lock_guard lock(box_->mutex);
  return box_->unfinished == 0;
}

struct engine::impl {
  using box_ptr = std::shared_ptr<generation_stream::mailbox>;
  struct order {
    std::vector<generation_request> requests;
    box_ptr box;
    bool tokens = false;
    timer::time_point came = timer::now();
  };
  // A request at the generator; the engine's thread alone.
  struct request_state {
    box_ptr box;
    std::uint64_t id = 0; // in its submission
    std::int64_t unfinished = 0;
    bool tokens = false, first = true;
    timer::time_point came;
  };

  impl(std::unique_ptr<generator> g, std::int64_t max_waiting) : gen(std::move(g)), max_waiting(max_waiting) {}

  void run();
  bool take_orders();
  void add(order&& o);
  void add_one(order& o, std::size_t i);
  void give_up(const std::function<bool(const request_state&)>& which);
  void deliver_token(std::uint64_t id, streamed_token&& token);
  void deliver(generation_output&& output);
  void fail_all(const std::exception_ptr& why);

  std::unique_ptr<generator> gen;
  const std::int64_t max_waiting;
  std::map<std::uint64_t, request_state> under_way; // by the generator's id
  std::uint64_t next_id = 0;

  mutable std::mutex mutex; // of what follows
  std::condition_variable woken;
  std::deque<order> orders;
  bool look_for_given_up = false, cancelled = false, broken = false;
  engine_counts counts;

  std::thread thread; // the last: it uses all others
};

// False: the engine ends.
bool engine::impl::take_orders() {
  std::deque<order> taken;
  bool look = false;
  {
    std::unique_lock lock(mutex);
    counts.generator = gen->counts();
    woken.wait(lock, [&] { return cancelled || look_for_given_up || !orders.empty() || !gen->idle(); });
    if (cancelled)
      return false;
    taken.swap(orders);
    look = std::exchange(look_for_given_up, false);
  }
  for (auto& o : taken)
    add(std::move(o));
  if (look)
    give_up([](const request_state& r) {
      const std::lock_guard lock(r.box->mutex);
      return r.box->given_up;
    });
  return true;
}

void engine::impl::add(order&& o) {
  for (std::size_t i = 0; i < o.requests.size(); ++i) {
    try {
      add_one(o, i);
    } catch (const error&) { // the request's fault: its submission's alone
      const auto box = o.box;
      box->fail(std::current_exception());
      give_up([&](const request_state& r) { return r.box == box; });
      const std::lock_guard lock(mutex);
      counts.waiting -= std::int64_t(o.requests.size() - i);
      return;
    }
  }
}

void engine::impl::add_one(order& o, std::size_t i) {
  auto& request = o.requests[i];
  const auto id = next_id++;
  const auto n = request.n, length = std::int64_t(request.prompt_ids.size());
  request.id = id;
  request.on_token = [this, id](streamed_token&& token) { deliver_token(id, std::move(token)); };
  gen->add(std::move(request));
  under_way[id] = {o.box, i, n, o.tokens, true, o.came};
  const std::lock_guard lock(mutex);
  counts.prompt_tokens += std::uint64_t(length);
}

void engine::impl::give_up(const std::function<bool(const request_state&)>& which) {
  for (const auto& [id, r] : under_way)
    if (which(r))
      gen->abort(id);
}

void engine::impl::deliver_token(std::uint64_t id, streamed_token&& token) {
  auto& r = under_way.at(id);
  {
    const std::lock_guard lock(mutex);
    ++counts.output_tokens;
    if (std::exchange(r.first, false)) {
      --counts.waiting;
      ++counts.running;
      counts.first_token.add(seconds_since(r.came));
    }
  }
  token.id = r.id;
  if (r.tokens)
    r.box->put(std::move(token));
}

void engine::impl::deliver(generation_output&& output) {
  const auto it = under_way.find(output.id);
  auto& r = it->second;
  const bool last = --r.unfinished == 0;
  {
    const std::lock_guard lock(mutex);
    const auto how = output.result.finish;
    ++(how == finish_reason::stop ? counts.stopped : how == finish_reason::length ? counts.at_length : counts.aborted);
    if (last) {
      --(r.first ? counts.waiting : counts.running);
      counts.whole.add(seconds_since(r.came));
    }
  }
  output.id = r.id;
  r.box->put(std::move(output));
  if (last)
    under_way.erase(it);
}

void engine::impl::fail_all(const std::exception_ptr& why) {
  std::deque<order> left;
  {
    const std::lock_guard lock(mutex);
    left.swap(orders);
    counts.waiting = counts.running = 0;
  }
  for (const auto& o : left)
    o.box->fail(why);
  for (const auto& [id, r] : under_way)
    r.box->fail(why);
  under_way.clear();
}

void engine::impl::run() {
  std::exception_ptr why;
  try {
    while (take_orders())
      for (auto& output : gen->step())
        deliver(std::move(output));
    why = std::make_exception_ptr(error{errc::cancelled, "the server is stopping; ask again elsewhere"});
  } catch (const std::exception& e) { // a thread's edge
    why = std::make_exception_ptr(error{errc::failed, std::string("generation failed: ") + e.what()});
    const std::lock_guard lock(mutex);
    broken = true;
  }
  fail_all(why);
}

engine::engine(std::unique_ptr<generator> g, std::int64_t max_waiting) : impl_(std::make_unique<impl>(std::move(g), max_waiting)) {
  impl_->thread = std::thread([self = impl_.get()] { self->run(); });
}

engine::~engine() {
  cancel();
  impl_->thread.join();
}

std::optional<generation_stream> engine::submit(std::vector<generation_request> requests, bool tokens) {
  auto& self = *impl_;
  auto box = std::make_shared<generation_stream::mailbox>();
  for (const auto& r : requests)
    box->unfinished += r.n;
  box->undelivered = box->unfinished;
  box->wake = [&self] {
    const std::lock_guard lock(self.mutex);
    self.look_for_given_up = true;
    ++self.counts.given_up;
    self.woken.notify_one();
  };
  const std::lock_guard lock(self.mutex);
  if (self.broken)
    throw error{errc::failed, "generation failed earlier; the server is ending"};
  if (self.cancelled)
    throw error{errc::cancelled, "the server is stopping; ask again elsewhere"};
  const auto n = std::int64_t(requests.size());
  if (self.counts.waiting + n > self.max_waiting) {
    self.counts.refused += std::uint64_t(n);
    return {};
  }
  self.counts.waiting += n;
  self.orders.push_back({std::move(requests), box, tokens});
  self.woken.notify_one();
  return generation_stream(box);
}

bool engine::full(std::int64_t requests) const {
  const std::lock_guard lock(impl_->mutex);
  return impl_->counts.waiting + requests > impl_->max_waiting;
}

void engine::cancel() {
  const std::lock_guard lock(impl_->mutex);
  impl_->cancelled = true;
  impl_->woken.notify_one();
}

bool engine::idle() const {
  const std::lock_guard lock(impl_->mutex);
  return impl_->counts.waiting + impl_->counts.running == 0;
}

bool engine::failed() const {
  const std::lock_guard lock(impl_->mutex);
  return impl_->broken;
}

engine_counts engine::counts() const {
  const std::lock_guard lock(impl_->mutex);
  return impl_->counts;
}

} // namespace troupe
