#include "actors/rank_hall.hpp"
#include <algorithm>
#include <map>
#include <mutex>

namespace troupe {

struct hall_state {
  struct member {
    worker_info info;
    rank_actor handle;
  };

  std::mutex mutex;
  join_answer welcome;
  std::function<void(const std::string&)> log;
  std::string own; // endpoint; empty: this rank is not there yet
  std::map<std::uint32_t, member> ranks;
  std::map<std::int64_t, std::uint32_t> reserved; // by pid
  rank_hall::news news;
  bool connected = false;

  std::uint32_t free_rank() const {
    std::uint32_t r = 1;
    const auto taken = [&] {
      return ranks.count(r) != 0 || std::any_of(reserved.begin(), reserved.end(), [&](const auto& x) { return x.second == r; });
    };
    while (taken())
      ++r;
    return r;
  }
  caf::result<join_answer> join(const join_request& request) {
    const std::lock_guard lock(mutex);
    join_answer answer = welcome;
    answer.rank = free_rank();
    if (answer.rank >= answer.ranks)
      return caf::make_error(errc::bad_input, "this run has all of its " + std::to_string(answer.ranks) + " ranks");
    reserved[request.pid] = answer.rank;
    return answer;
  }
  void enlist(const worker_info& info, const rank_actor& handle) {
    const std::lock_guard lock(mutex);
    reserved.erase(info.pid);
    ranks[info.rank] = {info, handle};
    log("worker learner " + std::to_string(info.rank) + " pid " + std::to_string(info.pid));
    connect();
  }
  // The caller has the lock.
  void connect() {
    if (connected || own.empty() || ranks.size() + 1 < welcome.ranks)
      return;
    connected = true;
    news.peers = {own};
    for (const auto& [r, m] : ranks)
      news.peers.push_back(m.info.rank_endpoint);
    for (const auto& [r, m] : ranks)
      caf::anon_send(m.handle, rank_peers{news.peers});
  }
  template <class Is>
  void lose(const Is& is, const std::string& how) {
    const std::lock_guard lock(mutex);
    const auto it = std::find_if(ranks.begin(), ranks.end(), [&](const auto& r) { return is(r.second); });
    if (it == ranks.end())
      return;
    const worker_info& w = it->second.info;
    news.lost = "learner " + std::to_string(w.rank) + " on " + w.host + " (pid " + std::to_string(w.pid) + ") " + how;
    ranks.erase(it);
  }
  void failed(const worker_failed& f) {
    if (errc(f.code) == errc::peer_lost || errc(f.code) == errc::timeout)
      return; // its cause is another rank's
    const std::lock_guard lock(mutex);
    news.failure = error(errc(f.code), "learner " + std::to_string(f.rank) + " on " + f.host + ": " + f.text);
  }
};

namespace {

coordinator_actor::behavior_type hall(coordinator_actor::pointer self, const std::shared_ptr<hall_state>& state) {
  self->set_down_handler([state](const caf::down_msg& d) {
    state->lose([&](const auto& m) { return m.handle.address() == d.source; }, "is gone: " + caf::to_string(d.reason));
  });
  return {
      [state](const join_request& r) { return state->join(r); },
      [](const worker_info&, const rollout_actor&) {},
      [](const worker_info&, const learner_actor&) {},
      [self, state](const worker_info& info, const rank_actor& rank) {
        self->monitor(rank);
        state->enlist(info, rank);
      },
      [](const fetch_texts&) -> caf::result<texts_part> {
        return caf::make_error(errc::failed, std::string("this run has no texts for its workers"));
      },
      [](const group_scored&) {},
      [](const rollout_holds&) {},
      [](const rollout_failed&) {},
      [state](const worker_failed& f) { state->failed(f); },
      [](const worker_exited&) {},
      [](const stop_run&) {},
      [](caf::tick_atom) {},
  };
}

} // namespace

rank_hall::rank_hall(caf::actor_system& sys, const join_answer& welcome, std::uint32_t n, std::function<void(const std::string&)> log)
    : state_(std::make_shared<hall_state>()) {
  state_->welcome = welcome;
  state_->welcome.role = worker_role::learner;
  state_->welcome.ranks = n;
  state_->log = std::move(log);
  actor_ = sys.spawn(hall, state_);
}

rank_hall::~rank_hall() { caf::anon_send_exit(actor_, caf::exit_reason::user_shutdown); }

void rank_hall::open(const std::string& endpoint) {
  const std::lock_guard lock(state_->mutex);
  state_->own = endpoint;
  state_->news = {};
  state_->connected = false;
  state_->connect();
}

rank_hall::news rank_hall::take() {
  const std::lock_guard lock(state_->mutex);
  return std::exchange(state_->news, {});
}

void rank_hall::exited(std::int64_t pid, const std::string& how) {
  {
    const std::lock_guard lock(state_->mutex);
    if (state_->reserved.erase(pid) != 0)
      state_->news.lost = "worker process " + std::to_string(pid) + ' ' + how + " before it joined (its output is in log.txt)";
  }
  state_->lose([&](const auto& m) { return m.info.pid == pid; }, how);
}

std::vector<std::int64_t> rank_hall::dismiss(bool kill) {
  const std::lock_guard lock(state_->mutex);
  std::vector<std::int64_t> pids;
  for (const auto& [r, m] : state_->ranks) {
    pids.push_back(m.info.pid);
    caf::anon_send_exit(m.handle, kill ? caf::exit_reason::remote_link_unreachable : caf::exit_reason::user_shutdown);
  }
  state_->ranks.clear();
  state_->own.clear();
  return pids;
}

} // namespace troupe
