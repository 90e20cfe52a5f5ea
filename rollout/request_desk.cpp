#include "rollout/request_desk.hpp"
#include "core/error.hpp"
#include <algorithm>
#include <condition_variable>
#include <deque>
#include <exception>
#include <map>
#include <mutex>
#include <string>
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

// Filled by the generator's thread, emptied by the stream's.
struct generation_stream::mailbox {
  std::mutex mutex;
  std::condition_variable filled;
  std::deque<generation_event> events;
  std::exception_ptr failure;
  std::int64_t undelivered = 0, unfinished = 0; // samples whose end was not put here; was not taken from here
  bool given_up = false;
  std::function<void()> wake = {}; // the desk; empty: it needs nothing more

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

struct request_desk::impl {
  using box_ptr = std::shared_ptr<generation_stream::mailbox>;
  struct order {
    std::vector<generation_request> requests;
    box_ptr box;
    bool tokens = false;
    timer::time_point came = timer::now();
  };
  // A request at the generator; the generator's thread alone.
  struct request_state {
    box_ptr box;
    std::uint64_t id = 0; // in its submission
    std::int64_t unfinished = 0;
    bool tokens = false, first = true;
    timer::time_point came;
  };

  impl(std::int64_t max_waiting, std::uint64_t first_id) : max_waiting(max_waiting), first_id(first_id), next_id(first_id) {}

  void add(generator& g, order&& o);
  void add_one(generator& g, order& o, std::size_t i);
  void give_up(generator& g, const std::function<bool(const request_state&)>& which);
  void deliver_token(std::uint64_t id, streamed_token&& token);
  void tell() const;

  const std::int64_t max_waiting;
  const std::uint64_t first_id;
  std::map<std::uint64_t, request_state> under_way; // by the generator's id
  std::uint64_t next_id;

  mutable std::mutex mutex; // of what follows
  std::deque<order> orders;
  bool look_for_given_up = false, cancelled = false, broken = false;
  engine_counts counts;
  std::function<void()> on_news;
};

void request_desk::impl::tell() const {
  std::function<void()> call;
  {
    const std::lock_guard lock(mutex);
    call = on_news;
  }
  if (call)
    call();
}

void request_desk::impl::add(generator& g, order&& o) {
  for (std::size_t i = 0; i < o.requests.size(); ++i) {
    try {
      add_one(g, o, i);
    } catch (const error&) { // the request's fault: its submission's alone
      const auto box = o.box;
      box->fail(std::current_exception());
      give_up(g, [&](const request_state& r) { return r.box == box; });
      const std::lock_guard lock(mutex);
      counts.waiting -= std::int64_t(o.requests.size() - i);
      return;
    }
  }
}

void request_desk::impl::add_one(generator& g, order& o, std::size_t i) {
  auto& request = o.requests[i];
  const auto id = next_id++;
  const auto n = request.n, length = std::int64_t(request.prompt_ids.size());
  request.id = id;
  request.on_token = [this, id](streamed_token&& token) { deliver_token(id, std::move(token)); };
  g.add(std::move(request));
  under_way[id] = {o.box, i, n, o.tokens, true, o.came};
  const std::lock_guard lock(mutex);
  counts.prompt_tokens += std::uint64_t(length);
}

void request_desk::impl::give_up(generator& g, const std::function<bool(const request_state&)>& which) {
  for (const auto& [id, r] : under_way)
    if (which(r))
      g.abort(id);
}

void request_desk::impl::deliver_token(std::uint64_t id, streamed_token&& token) {
  const auto it = under_way.find(id);
  if (it == under_way.end())
    return; // the desk is closed
  auto& r = it->second;
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

request_desk::request_desk(std::int64_t max_waiting, std::uint64_t first_id) : impl_(std::make_shared<impl>(max_waiting, first_id)) {}

std::optional<generation_stream> request_desk::submit(std::vector<generation_request> requests, bool tokens) {
  auto box = std::make_shared<generation_stream::mailbox>();
  for (const auto& r : requests)
    box->unfinished += r.n;
  box->undelivered = box->unfinished;
  box->wake = [desk = std::weak_ptr(impl_)] {
    const auto self = desk.lock();
    if (!self)
      return;
    {
      const std::lock_guard lock(self->mutex);
      self->look_for_given_up = true;
      ++self->counts.given_up;
    }
    self->tell();
  };
  {
    const std::lock_guard lock(impl_->mutex);
    if (impl_->broken)
      throw error{errc::failed, "generation failed earlier; the server is ending"};
    if (impl_->cancelled)
      throw error{errc::cancelled, "the server is stopping; ask again elsewhere"};
    const auto n = std::int64_t(requests.size());
    if (impl_->counts.waiting + n > impl_->max_waiting) {
      impl_->counts.refused += std::uint64_t(n);
      return {};
    }
    impl_->counts.waiting += n;
    impl_->orders.push_back({std::move(requests), box, tokens});
  }
  impl_->tell();
  return generation_stream(box);
}

bool request_desk::full(std::int64_t requests) const {
  const std::lock_guard lock(impl_->mutex);
  return impl_->counts.waiting + requests > impl_->max_waiting;
}

void request_desk::cancel() {
  {
    const std::lock_guard lock(impl_->mutex);
    impl_->cancelled = true;
  }
  impl_->tell();
}

bool request_desk::cancelled() const {
  const std::lock_guard lock(impl_->mutex);
  return impl_->cancelled;
}

bool request_desk::idle() const {
  const std::lock_guard lock(impl_->mutex);
  return impl_->counts.waiting + impl_->counts.running == 0;
}

bool request_desk::failed() const {
  const std::lock_guard lock(impl_->mutex);
  return impl_->broken;
}

engine_counts request_desk::counts() const {
  const std::lock_guard lock(impl_->mutex);
  return impl_->counts;
}

void request_desk::on_news(std::function<void()> call) {
  bool already = false;
  {
    const std::lock_guard lock(impl_->mutex);
    impl_->on_news = std::move(call);
    already = impl_->cancelled || impl_->look_for_given_up || !impl_->orders.empty();
  }
  if (already)
    impl_->tell();
}

bool request_desk::take_in(generator& g) {
  std::deque<impl::order> taken;
  bool look = false;
  {
    const std::lock_guard lock(impl_->mutex);
    impl_->counts.generator = g.counts();
    taken.swap(impl_->orders);
    look = std::exchange(impl_->look_for_given_up, false);
  }
  for (auto& o : taken)
    impl_->add(g, std::move(o));
  if (look)
    impl_->give_up(g, [](const impl::request_state& r) {
      const std::lock_guard lock(r.box->mutex);
      return r.box->given_up;
    });
  return !impl_->under_way.empty();
}

bool request_desk::took(std::uint64_t id) const { return id >= impl_->first_id && id < impl_->next_id; }

void request_desk::deliver(generation_output&& output) {
  const auto it = impl_->under_way.find(output.id);
  if (it == impl_->under_way.end())
    return; // the desk is closed
  auto& r = it->second;
  const bool last = --r.unfinished == 0;
  {
    const std::lock_guard lock(impl_->mutex);
    auto& counts = impl_->counts;
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
    impl_->under_way.erase(it);
}

void request_desk::set_version(weights_version version) {
  const std::lock_guard lock(impl_->mutex);
  impl_->counts.version = version;
}

void request_desk::close(const std::exception_ptr& why, bool failed) {
  std::deque<impl::order> left;
  {
    const std::lock_guard lock(impl_->mutex);
    impl_->cancelled = true;
    impl_->broken = impl_->broken || failed;
    left.swap(impl_->orders);
    impl_->counts.waiting = impl_->counts.running = 0;
  }
  for (const auto& o : left)
    o.box->fail(why);
  for (const auto& [id, r] : impl_->under_way)
    r.box->fail(why);
  impl_->under_way.clear();
}

} // namespace troupe
