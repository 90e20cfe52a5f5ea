#include "core/error.hpp"
#include "core/zmq_util.hpp"
#include "model/parallel/communicator.hpp"
#include "model/parallel/messages.hpp"
#include <algorithm>
#include <array>
#include <cstring>
#include <deque>
#include <map>
#include <mutex>
#include <tuple>

namespace troupe {

namespace {

using std::chrono::steady_clock;

constexpr std::uint32_t wire_magic = 0x31706374; // "tcp1"
constexpr std::size_t longest_what = 200;
constexpr int most_queued = 1024; // messages to one peer; collectives keep far below it

// A message is three frames: the secret, this and `what`, the bytes.
struct wire_header {
  std::uint32_t magic = wire_magic;
  std::int32_t from = 0;   // world rank
  std::uint32_t group = 0; // number of the group; 0: the world itself (abort)
  std::uint32_t kind = 0;
  std::uint64_t number = 0; // of the message from this rank to that one in this group
  std::uint64_t bytes = 0;
};

struct arrival {
  wire_header header;
  std::string what;
  zmq::message_t bytes;
};

using channel_key = std::pair<std::uint32_t, std::int32_t>; // group, world rank

} // namespace

struct zmq_world_state {
  int rank, size;
  std::string secret;
  communicator_deadline deadline;
  zmq::context_t context{1};
  zmq::socket_t inbox{context, zmq::socket_type::pull};
  wake_up waker{context, "abort"};
  std::string endpoint;
  std::vector<std::string> endpoints;
  std::vector<zmq::socket_t> peers; // by world rank; the own one is never connected
  std::map<channel_key, std::deque<arrival>> arrived;
  std::map<channel_key, std::uint64_t> sent, received;
  std::uint32_t n_groups = 0;
  std::uint64_t refused = 0; // messages that were not of this run
  std::mutex mutex;          // of what follows, which other threads touch
  std::string aborted;

  ~zmq_world_state() {
    // What was sent still goes out, unless nobody waits for it any more.
    for (auto& p : peers)
      p.set(zmq::sockopt::linger, aborted.empty() ? 2000 : 0);
  }
  void check_alive() {
    const std::lock_guard lock(mutex);
    if (!aborted.empty())
      throw error{errc::peer_lost, aborted};
  }
  bool is_aborted() {
    const std::lock_guard lock(mutex);
    return !aborted.empty();
  }
  // Any thread: sockets of its own, since the others belong to the rank's thread.
  void abort(const std::string& reason, bool tell) {
    const std::lock_guard lock(mutex);
    if (!aborted.empty())
      return;
    aborted = reason;
    waker.wake();
    for (int r = 0; tell && r < int(endpoints.size()); ++r)
      if (r != rank) {
        zmq::socket_t socket(context, zmq::socket_type::push);
        socket.set(zmq::sockopt::linger, 200);
        connect_to(socket, endpoints[std::size_t(r)]);
        put(socket, {wire_magic, rank, 0, std::uint32_t(call_kind::abort), 0, 0}, reason, {});
      }
  }
  [[noreturn]] void fail(errc code, const std::string& text) {
    abort(text, true);
    throw error{code, text};
  }

  bool put(zmq::socket_t& socket, const wire_header& header, std::string_view what, zmq::message_t bytes) {
    std::string head(sizeof header, '\0');
    std::memcpy(head.data(), &header, sizeof header);
    head += what.substr(0, header.kind == std::uint32_t(call_kind::abort) ? 2000 : longest_what);
    return send_frame(socket, secret, true) && send_frame(socket, head, true) && send_frame(socket, std::move(bytes), false);
  }

  // Takes one message off the socket, if there is one.
  void read_one() {
    std::array<zmq::message_t, 3> frames;
    if (!receive_frames(inbox, frames) || !same_secret(view(frames[0]), secret)) {
      ++refused;
      return;
    }
    arrival a;
    if (frames[1].size() < sizeof a.header)
      return fail(errc::bad_input, "communicator: rank " + std::to_string(rank) + " got a header of " + std::to_string(frames[1].size()) +
                                       " bytes; another version of the program is at work");
    std::memcpy(&a.header, frames[1].data(), sizeof a.header);
    a.what = std::string(view(frames[1]).substr(sizeof a.header));
    a.bytes = std::move(frames[2]);
    const wire_header& h = a.header;
    if (h.magic != wire_magic || h.from < 0 || h.from >= size || h.from == rank || h.kind > std::uint32_t(call_kind::abort) ||
        h.group > n_groups || h.bytes != a.bytes.size())
      return fail(errc::bad_input, "communicator: rank " + std::to_string(rank) + " got a message of rank " + std::to_string(h.from) +
                                       ", group " + std::to_string(h.group) + ", kind " + std::to_string(h.kind) + " with " +
                                       std::to_string(a.bytes.size()) + " bytes, which is none of this world of " + std::to_string(size));
    if (h.kind == std::uint32_t(call_kind::abort))
      return abort(a.what, false);
    const channel_key key{h.group, h.from};
    if (h.number != received[key]++)
      return fail(errc::bad_input, "communicator: rank " + std::to_string(rank) + " got message " + std::to_string(h.number) + " of rank " +
                                       std::to_string(h.from) + " where " + std::to_string(received[key] - 1) + " was due");
    arrived[key].push_back(std::move(a));
  }

  std::string strangers() const {
    return refused == 0 ? "" : "; " + std::to_string(refused) + " messages without the run's secret were refused";
  }
};

namespace {

class zmq_communicator final : public communicator {
public:
  zmq_communicator(std::shared_ptr<zmq_world_state> world, std::string name, std::uint32_t number, std::vector<int> ranks)
      : world_(std::move(world)), name_(std::move(name)), number_(number), ranks_(std::move(ranks)) {
    rank_ = int(std::find(ranks_.begin(), ranks_.end(), world_->rank) - ranks_.begin());
  }

  int rank() const override { return rank_; }
  int size() const override { return int(ranks_.size()); }

  void all_gather(const void* from, void* to, std::size_t bytes, std::string_view what) override {
    for (int i = 1; i < size(); ++i)
      push(call_kind::all_gather, from, bytes, (rank_ + i) % size(), what);
    put(part(to, rank_, bytes), from, bytes);
    for (int i = 1; i < size(); ++i)
      pull(call_kind::all_gather, part(to, (rank_ + size() - i) % size(), bytes), bytes, (rank_ + size() - i) % size(), what);
  }
  void all_to_all(const void* from, void* to, std::size_t bytes, std::string_view what) override {
    for (int i = 1; i < size(); ++i) {
      const int r = (rank_ + i) % size();
      push(call_kind::all_to_all, static_cast<const std::byte*>(from) + std::size_t(r) * bytes, bytes, r, what);
    }
    put(part(to, rank_, bytes), static_cast<const std::byte*>(from) + std::size_t(rank_) * bytes, bytes);
    for (int i = 1; i < size(); ++i) {
      const int r = (rank_ + size() - i) % size();
      pull(call_kind::all_to_all, part(to, r, bytes), bytes, r, what);
    }
  }
  void broadcast(void* data, std::size_t bytes, int root, std::string_view what) override {
    if (root != rank_) {
      check_peer(name_, root, rank_, size());
      return pull(call_kind::broadcast, data, bytes, root, what);
    }
    for (int i = 1; i < size(); ++i)
      push(call_kind::broadcast, data, bytes, (rank_ + i) % size(), what);
  }
  void send(const void* from, std::size_t bytes, int to, std::string_view what) override {
    check_peer(name_, to, rank_, size());
    push(call_kind::send, from, bytes, to, what);
  }
  void recv(void* to, std::size_t bytes, int from, std::string_view what) override {
    check_peer(name_, from, rank_, size());
    pull(call_kind::send, to, bytes, from, what);
  }
  void barrier(std::string_view what) override {
    for (int i = 1; i < size(); ++i)
      push(call_kind::barrier, nullptr, 0, (rank_ + i) % size(), what);
    for (int i = 1; i < size(); ++i)
      pull(call_kind::barrier, nullptr, 0, (rank_ + size() - i) % size(), what);
  }
  void abort(const std::string& reason) override { world_->abort(reason, true); }
  void check() override {
    zmq_world_state& w = *world_;
    std::array<zmq::pollitem_t, 1> inbox = {zmq::pollitem_t{w.inbox.handle(), 0, ZMQ_POLLIN, 0}};
    while (poll_until(inbox, steady_clock::now()))
      w.read_one();
    w.check_alive();
  }

private:
  // `from` may be `to`; a part of no bytes may be nowhere.
  static void put(void* to, const void* from, std::size_t bytes) {
    if (bytes > 0)
      std::memmove(to, from, bytes);
  }
  static void* part(void* to, int r, std::size_t bytes) { return static_cast<std::byte*>(to) + std::size_t(r) * bytes; }

  void push(call_kind kind, const void* from, std::size_t bytes, int to, std::string_view what) {
    zmq_world_state& w = *world_;
    w.check_alive();
    const int peer = ranks_[std::size_t(to)];
    if (w.endpoints.empty())
      throw error{errc::failed, "communicator " + name_ + ": zmq_world::connect comes before the first call"};
    zmq::socket_t& socket = w.peers[std::size_t(peer)];
    const auto until = steady_clock::now() + w.deadline;
    std::array<zmq::pollitem_t, 2> items = {w.waker.item(), zmq::pollitem_t{socket.handle(), 0, ZMQ_POLLOUT, 0}};
    if (!poll_until(items, until))
      w.fail(errc::timeout,
             waited_too_long(name_, side(rank_, kind, bytes, what), std::to_string(to) + " to take what was sent", w.deadline));
    w.check_alive();
    const wire_header header{wire_magic, w.rank, number_, std::uint32_t(kind), w.sent[{number_, peer}]++, bytes};
    if (!w.put(socket, header, what, zmq::message_t(from, bytes)))
      w.fail(errc::io, "communicator " + name_ + ": rank " + std::to_string(rank_) + " cannot send to rank " + std::to_string(to));
  }

  void pull(call_kind kind, void* to, std::size_t bytes, int from, std::string_view what) {
    zmq_world_state& w = *world_;
    const call_side me = side(rank_, kind == call_kind::send ? call_kind::recv : kind, bytes, what);
    auto& queue = w.arrived[{number_, ranks_[std::size_t(from)]}];
    const auto until = steady_clock::now() + w.deadline;
    while (queue.empty()) {
      w.check_alive();
      std::array<zmq::pollitem_t, 2> items = {w.waker.item(), zmq::pollitem_t{w.inbox.handle(), 0, ZMQ_POLLIN, 0}};
      if (!poll_until(items, until))
        w.fail(errc::timeout, waited_too_long(name_, me, std::to_string(from), w.deadline) + w.strangers());
      if (items[1].revents)
        w.read_one();
      // Strangers who talk without end do not move the deadline.
      if (queue.empty() && steady_clock::now() > until)
        w.fail(errc::timeout, waited_too_long(name_, me, std::to_string(from), w.deadline) + w.strangers());
    }
    const arrival a = std::move(queue.front());
    queue.pop_front();
    if (a.header.kind != std::uint32_t(kind) || a.header.bytes != bytes)
      w.fail(errc::bad_shape, calls_differ(name_, side(from, call_kind(a.header.kind), a.header.bytes, a.what), me));
    put(to, a.bytes.data(), bytes);
  }

  static call_side side(int rank, call_kind kind, std::size_t bytes, std::string_view what) {
    return {rank, kind, bytes, std::string(what)};
  }

  const std::shared_ptr<zmq_world_state> world_;
  const std::string name_;
  const std::uint32_t number_;
  const std::vector<int> ranks_;
  int rank_;
};

} // namespace

zmq_world::zmq_world(int rank, int size, std::string secret, communicator_deadline deadline) : state_(std::make_shared<zmq_world_state>()) {
  state_->rank = rank;
  state_->size = size;
  state_->secret = std::move(secret);
  state_->deadline = deadline;
  state_->inbox.set(zmq::sockopt::linger, 0);
  state_->inbox.set(zmq::sockopt::rcvhwm, most_queued);
  state_->endpoint = bind_any_port(state_->inbox, "127.0.0.1");
}

zmq_world::~zmq_world() = default;

std::string zmq_world::endpoint() const { return state_->endpoint; }

void zmq_world::connect(const std::vector<std::string>& endpoints) {
  if (int(endpoints.size()) != state_->size)
    throw error{errc::bad_input,
                "communicator: " + std::to_string(endpoints.size()) + " endpoints for a world of " + std::to_string(state_->size)};
  for (int r = 0; r < state_->size; ++r) {
    zmq::socket_t& socket = state_->peers.emplace_back(state_->context, zmq::socket_type::push);
    socket.set(zmq::sockopt::sndhwm, most_queued);
    if (r != state_->rank)
      connect_to(socket, endpoints[std::size_t(r)]);
  }
  const std::lock_guard lock(state_->mutex);
  state_->endpoints = endpoints;
}

std::shared_ptr<communicator> zmq_world::group(const std::string& name, const std::vector<int>& ranks) {
  const bool inside = std::find(ranks.begin(), ranks.end(), state_->rank) != ranks.end();
  if (!inside || ranks.front() < 0 || ranks.back() >= state_->size || !std::is_sorted(ranks.begin(), ranks.end()))
    throw error{errc::bad_shape, "communicator " + name + ": a group is ascending ranks of the world of " + std::to_string(state_->size) +
                                     " with rank " + std::to_string(state_->rank) + " among them"};
  return std::make_shared<zmq_communicator>(state_, name, ++state_->n_groups, ranks);
}

void zmq_world::idle() {
  zmq_world_state& w = *state_;
  const auto waits = [](const auto& queue) { return !queue.second.empty(); };
  while (std::none_of(w.arrived.begin(), w.arrived.end(), waits)) {
    w.check_alive();
    std::array<zmq::pollitem_t, 2> items = {w.waker.item(), zmq::pollitem_t{w.inbox.handle(), 0, ZMQ_POLLIN, 0}};
    if (poll_until(items, steady_clock::now() + std::chrono::hours(1)) && items[1].revents)
      w.read_one();
  }
}

void zmq_world::abort(const std::string& reason) { state_->abort(reason, true); }

rank_context make_context(zmq_world& world, int rank, const mesh& shape) {
  rank_context c;
  c.shape = shape;
  c.tp_rank = rank % shape.tp;
  c.dp_rank = rank / shape.tp % shape.dp;
  c.pp_rank = rank / (shape.tp * shape.dp);
  // Every rank makes the three in this order, so their numbers agree.
  const auto join = [&](const char* name, int n, auto rank_of) {
    std::vector<int> ranks;
    ranks.reserve(std::size_t(n));
    for (int i = 0; i < n; ++i)
      ranks.push_back(rank_of(i));
    return n > 1 ? world.group(name, ranks) : nullptr;
  };
  c.tp = join("tp", shape.tp, [&](int i) { return shape.rank_of(c.pp_rank, c.dp_rank, i); });
  c.pp = join("pp", shape.pp, [&](int i) { return shape.rank_of(i, c.dp_rank, c.tp_rank); });
  c.dp = join("dp", shape.dp, [&](int i) { return shape.rank_of(c.pp_rank, i, c.tp_rank); });
  return c;
}

} // namespace troupe
