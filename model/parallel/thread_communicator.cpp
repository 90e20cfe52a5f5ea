#include "core/error.hpp"
#include "model/parallel/communicator.hpp"
#include "model/parallel/messages.hpp"
#include <condition_variable>
#include <cstring>
#include <deque>
#include <mutex>

namespace troupe {

namespace {

constexpr std::size_t most_queued = 64; // messages from one rank to another

// What a rank brings to a collective.
struct contribution {
  call_kind kind = call_kind::barrier;
  const void* data = nullptr;
  std::size_t bytes = 0;
  int root = 0;
  std::string_view what;
};

struct message {
  std::vector<std::byte> bytes;
  std::string what;
};

struct thread_group {
  std::string name;
  std::condition_variable changed;
  std::vector<contribution> here; // by rank, of the collective under way
  std::vector<bool> arrived;
  int n_arrived = 0, n_copying = 0;
  std::uint64_t begun = 0, finished = 0;   // collectives that all ranks have come to, and have left
  std::vector<std::deque<message>> queues; // [from][to]
};

} // namespace

// The mutex guards everything here and in the groups.
struct thread_world_state {
  communicator_deadline deadline;
  std::mutex mutex;
  std::string aborted;
  std::vector<std::shared_ptr<thread_group>> groups;

  // With the mutex held.
  void abort(const std::string& reason) {
    if (aborted.empty())
      aborted = reason;
    for (const auto& g : groups)
      g->changed.notify_all();
  }
  // Waits until ready(); a deadline's text is made when it is needed.
  template <class Ready, class Text>
  void wait(std::unique_lock<std::mutex>& lock, thread_group& g, Ready ready, Text text) {
    const auto until = std::chrono::steady_clock::now() + deadline;
    while (!ready()) {
      if (!aborted.empty())
        throw error{errc::peer_lost, aborted};
      if (g.changed.wait_until(lock, until) == std::cv_status::timeout && !ready() && aborted.empty()) {
        abort(text());
        throw error{errc::timeout, aborted};
      }
    }
  }
};

namespace {

class thread_communicator final : public communicator {
public:
  thread_communicator(std::shared_ptr<thread_world_state> world, std::shared_ptr<thread_group> group, int rank)
      : world_(std::move(world)), group_(std::move(group)), rank_(rank) {}

  int rank() const override { return rank_; }
  int size() const override { return int(group_->here.size()); }

  void all_gather(const void* from, void* to, std::size_t bytes, std::string_view what) override {
    collective({call_kind::all_gather, from, bytes, 0, what}, [&](int r, const void* theirs) { put(to, r, theirs, bytes); });
  }
  void all_to_all(const void* from, void* to, std::size_t bytes, std::string_view what) override {
    collective({call_kind::all_to_all, from, bytes, 0, what},
               [&](int r, const void* theirs) { put(to, r, static_cast<const std::byte*>(theirs) + std::size_t(rank_) * bytes, bytes); });
  }
  void broadcast(void* data, std::size_t bytes, int root, std::string_view what) override {
    if (root != rank_)
      check_peer(group_->name, root, rank_, size());
    collective({call_kind::broadcast, data, bytes, root, what}, [&](int r, const void* theirs) {
      if (r == root && r != rank_)
        put(data, 0, theirs, bytes);
    });
  }
  void barrier(std::string_view what) override {
    collective({call_kind::barrier, nullptr, 0, 0, what}, [](int, const void*) {});
  }

  void send(const void* from, std::size_t bytes, int to, std::string_view what) override {
    check_peer(group_->name, to, rank_, size());
    const auto* begin = static_cast<const std::byte*>(from);
    message m{{begin, begin + bytes}, std::string(what)};
    std::unique_lock lock(world_->mutex);
    check_alive();
    auto& queue = queue_of(rank_, to);
    world_->wait(
        lock, *group_, [&] { return queue.size() < most_queued; },
        [&] {
          return waited_too_long(group_->name, {rank_, call_kind::send, bytes, m.what}, std::to_string(to), world_->deadline);
        });
    queue.push_back(std::move(m));
    group_->changed.notify_all();
  }

  void recv(void* to, std::size_t bytes, int from, std::string_view what) override {
    check_peer(group_->name, from, rank_, size());
    const call_side me{rank_, call_kind::recv, bytes, std::string(what)};
    std::unique_lock lock(world_->mutex);
    check_alive();
    auto& queue = queue_of(from, rank_);
    world_->wait(
        lock, *group_, [&] { return !queue.empty(); },
        [&] { return waited_too_long(group_->name, me, std::to_string(from), world_->deadline); });
    const message m = std::move(queue.front());
    queue.pop_front();
    group_->changed.notify_all();
    if (m.bytes.size() != bytes) {
      world_->abort(calls_differ(group_->name, {from, call_kind::send, m.bytes.size(), m.what}, me));
      throw error{errc::bad_shape, world_->aborted};
    }
    lock.unlock();
    put(to, 0, m.bytes.data(), bytes);
  }

  void abort(const std::string& reason) override {
    const std::lock_guard lock(world_->mutex);
    world_->abort(reason);
  }
  void check() override {
    const std::lock_guard lock(world_->mutex);
    check_alive();
  }

private:
  static void put(void* to, int part, const void* from, std::size_t bytes) {
    if (bytes > 0)
      std::memcpy(static_cast<std::byte*>(to) + std::size_t(part) * bytes, from, bytes);
  }
  std::deque<message>& queue_of(int from, int to) const {
    return group_->queues[std::size_t(from) * std::size_t(size()) + std::size_t(to)];
  }
  void check_alive() const {
    if (!world_->aborted.empty())
      throw error{errc::peer_lost, world_->aborted};
  }

  // First all come, with a pointer each; then all copy what they want. A pointer is valid until the last rank has copied.
  template <class Take>
  void collective(const contribution& mine, Take take) {
    thread_group& g = *group_;
    std::unique_lock lock(world_->mutex);
    check_alive();
    const std::uint64_t before = g.begun;
    g.here[std::size_t(rank_)] = mine;
    g.arrived[std::size_t(rank_)] = true;
    if (++g.n_arrived == size()) {
      g.n_arrived = 0;
      g.arrived.assign(g.arrived.size(), false);
      g.n_copying = size();
      ++g.begun;
      g.changed.notify_all();
    } else {
      world_->wait(
          lock, g, [&] { return g.begun != before; }, [&] { return waited_too_long(g.name, side(rank_), missing(), world_->deadline); });
    }
    const std::string difference = disagreement();
    if (!difference.empty())
      world_->abort(difference);
    lock.unlock();
    for (int r = 0; r < size() && difference.empty(); ++r)
      take(r, g.here[std::size_t(r)].data);
    lock.lock();
    if (--g.n_copying == 0) {
      ++g.finished;
      g.changed.notify_all();
    }
    // Only copies are waited for here, so there is no deadline.
    g.changed.wait(lock, [&] { return g.finished > before; });
    if (!difference.empty())
      throw error{errc::bad_shape, difference};
  }

  call_side side(int r) const {
    const contribution& c = group_->here[std::size_t(r)];
    return {r, c.kind, c.bytes, std::string(c.what)};
  }
  std::string missing() const {
    std::string text;
    for (int r = 0; r < size(); ++r)
      if (!group_->arrived[std::size_t(r)])
        text += (text.empty() ? "" : ", ") + std::to_string(r);
    return text;
  }
  // "" when all ranks came to the same collective.
  std::string disagreement() const {
    const contribution& first = group_->here[0];
    for (int r = 1; r < size(); ++r) {
      const contribution& other = group_->here[std::size_t(r)];
      if (other.kind != first.kind || other.bytes != first.bytes || other.root != first.root)
        return calls_differ(group_->name, side(0), side(r));
    }
    return {};
  }

  const std::shared_ptr<thread_world_state> world_;
  const std::shared_ptr<thread_group> group_;
  const int rank_;
};

} // namespace

thread_world::thread_world(communicator_deadline deadline) : state_(std::make_shared<thread_world_state>()) { state_->deadline = deadline; }
thread_world::~thread_world() = default;

std::vector<std::shared_ptr<communicator>> thread_world::group(const std::string& name, int size) {
  auto g = std::make_shared<thread_group>();
  g->name = name;
  g->here.resize(std::size_t(size));
  g->arrived.resize(std::size_t(size));
  g->queues.resize(g->here.size() * g->here.size());
  const std::lock_guard lock(state_->mutex);
  state_->groups.push_back(g);
  std::vector<std::shared_ptr<communicator>> all;
  all.reserve(g->here.size());
  for (int r = 0; r < size; ++r)
    all.push_back(std::make_shared<thread_communicator>(state_, g, r));
  return all;
}

void thread_world::abort(const std::string& reason) {
  const std::lock_guard lock(state_->mutex);
  state_->abort(reason);
}

void thread_world::reset() {
  const std::lock_guard lock(state_->mutex);
  state_->aborted.clear();
  for (const auto& g : state_->groups) {
    g->arrived.assign(g->arrived.size(), false);
    g->n_arrived = 0;
    for (auto& queue : g->queues)
      queue.clear();
  }
}

std::vector<rank_context> make_contexts(thread_world& world, const mesh& shape) {
  std::vector<rank_context> all(std::size_t(shape.size()));
  for (int p = 0; p < shape.pp; ++p)
    for (int d = 0; d < shape.dp; ++d)
      for (int t = 0; t < shape.tp; ++t) {
        rank_context& c = all[std::size_t(shape.rank_of(p, d, t))];
        c.shape = shape;
        c.pp_rank = p;
        c.dp_rank = d;
        c.tp_rank = t;
      }
  const auto join = [&](const std::string& name, int n, auto rank_of, auto member) {
    if (n == 1)
      return;
    auto group = world.group(name, n);
    for (int i = 0; i < n; ++i)
      all[std::size_t(rank_of(i))].*member = group[std::size_t(i)];
  };
  for (int p = 0; p < shape.pp; ++p)
    for (int d = 0; d < shape.dp; ++d)
      join(
          "tp", shape.tp, [&](int i) { return shape.rank_of(p, d, i); }, &rank_context::tp);
  for (int d = 0; d < shape.dp; ++d)
    for (int t = 0; t < shape.tp; ++t)
      join(
          "pp", shape.pp, [&](int i) { return shape.rank_of(i, d, t); }, &rank_context::pp);
  for (int p = 0; p < shape.pp; ++p)
    for (int t = 0; t < shape.tp; ++t)
      join(
          "dp", shape.dp, [&](int i) { return shape.rank_of(p, i, t); }, &rank_context::dp);
  return all;
}

} // namespace troupe
