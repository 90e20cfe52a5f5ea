#include "actors/coordinator.hpp"
#include "actors/run_texts.hpp"
#include <algorithm>
#include <chrono>

namespace troupe {
namespace {

using namespace std::chrono_literals;

// A dead process is noticed by its connection; these end what is alive but stuck.
constexpr auto learner_deadline = 60min;
constexpr auto sync_deadline = 30min;
constexpr auto enlist_deadline = 60s;
constexpr auto tick_interval = 1s;

std::string title(const worker_info& w) {
  return std::string(name_of(w.role)) + ' ' + std::to_string(w.rank) + " on " + w.host + " (pid " + std::to_string(w.pid) + ')';
}

} // namespace

coordinator_state::~coordinator_state() {
  caf::anon_send_exit(reward, caf::exit_reason::user_shutdown);
  caf::anon_send_exit(weight_sync, caf::exit_reason::user_shutdown);
}

// ---- workers ----

bool coordinator_state::taken(worker_role role, std::uint32_t rank) const {
  for (const auto& [id, m] : members) {
    if (m.info.role == role && m.info.rank == rank)
      return true;
  }
  for (const auto& [pid, r] : reserved) {
    if (r.role == role && r.rank == rank)
      return true;
  }
  return ranks.count({role, rank}) != 0;
}

caf::result<join_answer> coordinator_state::join(const join_request& request) {
  join_answer answer = setup->welcome;
  answer.role = worker_role::learner;
  while (answer.rank < setup->learner_ranks && taken(answer.role, answer.rank))
    ++answer.rank;
  if (answer.rank == setup->learner_ranks) {
    answer.role = worker_role::rollout;
    answer.rank = 0;
    while (taken(answer.role, answer.rank))
      ++answer.rank;
  }
  answer.ranks = ranks_of(answer.role);
  reserved[request.pid] = {answer.role, answer.rank, now()};
  return answer;
}

caf::result<texts_part> coordinator_state::texts(std::uint64_t from) const {
  if (!setup->texts)
    return caf::make_error(errc::failed, std::string("this run has no texts for its workers"));
  return part_of(*setup->texts, from);
}

coordinator_state::member& coordinator_state::add_member(const worker_info& info, caf::strong_actor_ptr handle) {
  reserved.erase(info.pid);
  self->monitor(handle);
  setup->host->log("worker " + std::string(name_of(info.role)) + ' ' + std::to_string(info.rank) + " pid " + std::to_string(info.pid));
  const worker_id id = ++last_id;
  return members[id] = member{info, std::move(handle), id};
}

void coordinator_state::enlist(const worker_info& info, const rollout_actor& rollout) {
  if (run->finished())
    return caf::anon_send_exit(rollout, caf::exit_reason::user_shutdown); // too late: let go as the others were
  if (info.rank % ranks_of(info.role) != 0 || (ranks_of(info.role) > 1 && !find_rank(info)))
    return; // its ranks were lost meanwhile
  const auto& m = add_member(info, caf::actor_cast<caf::strong_actor_ptr>(rollout));
  self->send(weight_sync, m.id, rollout);
  run->rollout_joined(m.id, now());
  act();
}

void coordinator_state::enlist(const worker_info& info, const learner_actor& handle) {
  if (run->finished())
    return caf::anon_send_exit(handle, caf::exit_reason::user_shutdown);
  if (info.rank != 0 || (ranks_of(info.role) > 1 && !find_rank(info)))
    return;
  add_member(info, caf::actor_cast<caf::strong_actor_ptr>(handle));
  learner = handle;
  batch_endpoint = info.batch_endpoint;
  if (setup->learner_at)
    setup->learner_at(batch_endpoint);
  ++learner_epoch;
  self->send(weight_sync, handle);
  run->learner_joined(now());
  act();
}

const coordinator_state::rank_member* coordinator_state::find_rank(const worker_info& info) const {
  const auto it = ranks.find({info.role, info.rank});
  return it != ranks.end() && it->second.info.pid == info.pid ? &it->second : nullptr;
}

// When the last one has come all are told of each other.
void coordinator_state::enlist(const worker_info& info, const rank_actor& rank) {
  if (run->finished())
    return caf::anon_send_exit(rank, caf::exit_reason::user_shutdown);
  reserved.erase(info.pid);
  self->monitor(rank);
  ranks[{info.role, info.rank}] = {info, caf::actor_cast<caf::strong_actor_ptr>(rank), false};
  const std::uint32_t first = first_rank(info), n = ranks_of(info.role);
  if (info.rank != first) // the first one is named when it is at work
    setup->host->log("worker " + std::string(name_of(info.role)) + ' ' + std::to_string(info.rank) + " pid " + std::to_string(info.pid));
  rank_peers peers;
  for (std::uint32_t r = first; r < first + n; ++r) {
    const auto it = ranks.find({info.role, r});
    if (it == ranks.end())
      return;
    peers.endpoints.push_back(it->second.info.rank_endpoint);
  }
  for (std::uint32_t r = first; r < first + n; ++r) {
    rank_member& m = ranks.at({info.role, r});
    m.connected = true;
    self->send(caf::actor_cast<rank_actor>(m.handle), peers);
  }
}

// One of several ranks is gone, and with it all that are connected with it.
void coordinator_state::lose_rank(const worker_info& info, const std::string& why) {
  const rank_member* m = find_rank(info);
  if (m == nullptr)
    return;
  const std::string text = title(info) + ' ' + why;
  const std::uint32_t first = first_rank(info);
  for (const auto& [id, one] : members) {
    if (one.info.role == info.role && one.info.rank == first)
      return remove(id, text);
  }
  if (m->connected) {
    remove_ranks(info.role, first);
  } else {
    lost_pids.insert(info.pid);
    self->demonitor(m->handle->address());
    setup->host->end_process(info.pid);
    ranks.erase({info.role, info.rank});
  }
  run->worker_failed_to_join(text, now());
}

// Ends the processes of a worker that is several.
void coordinator_state::remove_ranks(worker_role role, std::uint32_t first) {
  for (std::uint32_t r = first; r < first + ranks_of(role); ++r) {
    const auto it = ranks.find({role, r});
    if (it == ranks.end())
      continue;
    lost_pids.insert(it->second.info.pid);
    self->demonitor(it->second.handle->address());
    setup->host->end_process(it->second.info.pid);
    caf::anon_send_exit(it->second.handle, caf::exit_reason::remote_link_unreachable); // of those that were started elsewhere
    ranks.erase(it);
  }
}

void coordinator_state::lose(worker_id id, const std::string& why) {
  const auto it = members.find(id);
  if (it != members.end())
    remove(id, title(it->second.info) + ' ' + why);
}

void coordinator_state::remove(worker_id id, const std::string& text) {
  const auto it = members.find(id);
  const worker_info info = it->second.info;
  self->demonitor(it->second.handle->address());
  members.erase(it);
  remove_ranks(info.role, first_rank(info));
  lost_pids.insert(info.pid);
  setup->host->end_process(info.pid);
  if (info.role == worker_role::rollout) {
    run->rollout_lost(id, text, now());
  } else {
    ++learner_epoch;
    learner = nullptr;
    if (setup->learner_at)
      setup->learner_at("");
    run->learner_lost(text, now());
  }
}

void coordinator_state::let_go(const caf::actor_addr& source) {
  std::erase_if(members, [&](const auto& m) { return m.second.handle->address() == source; });
  std::erase_if(ranks, [&](const auto& m) { return m.second.handle->address() == source; });
  tell_outcome();
}

void coordinator_state::tell_outcome() {
  if ((!members.empty() || !ranks.empty()) && now() - over_since < setup->leave_deadline)
    return;
  members.clear();
  ranks.clear();
  setup->host->ended(outcome->code, outcome->text);
  outcome.reset();
}

void coordinator_state::down(const caf::actor_addr& source, const std::string& reason) {
  if (outcome)
    return let_go(source);
  if (source == reward.address() || source == weight_sync.address())
    run->fail(error(errc::failed, "an actor of this process ended: " + reason));
  for (const auto& [id, m] : members) {
    if (m.handle->address() == source) {
      lose(id, "is gone: " + reason);
      return act();
    }
  }
  for (const auto& [place, m] : ranks) {
    if (m.handle->address() == source) {
      lose_rank(worker_info(m.info), "is gone: " + reason);
      break;
    }
  }
  act();
}

void coordinator_state::failed(const worker_failed& failure) {
  const bool silent = errc(failure.code) == errc::peer_lost || errc(failure.code) == errc::timeout;
  const auto rank = ranks.find({failure.role, failure.rank});
  if (silent && setup->plan.restarts && rank != ranks.end() && !run->finished()) { // another rank of its model does not answer
    lose_rank(worker_info(rank->second.info), failure.text);
    return act();
  }
  const std::string who = std::string(name_of(failure.role)) + ' ' + std::to_string(failure.rank) + " on " + failure.host + ": ";
  run->fail(error(errc(failure.code), failure.role == worker_role::reward ? failure.text : who + failure.text));
  act();
}

void coordinator_state::exited(const worker_exited& exit) {
  if (run->finished())
    return;
  reserved.erase(exit.pid);
  const auto it = std::find_if(members.begin(), members.end(), [&](const auto& m) { return m.second.info.pid == exit.pid; });
  const auto rank = std::find_if(ranks.begin(), ranks.end(), [&](const auto& r) { return r.second.info.pid == exit.pid; });
  if (it != members.end())
    lose(it->first, exit.how);
  else if (rank != ranks.end())
    lose_rank(worker_info(rank->second.info), exit.how);
  else if (lost_pids.erase(exit.pid) == 0)
    run->worker_failed_to_join(
        "worker process " + std::to_string(exit.pid) + ' ' + exit.how + " before it joined (its output is in log.txt)", now());
  act();
}

void coordinator_state::tick() {
  std::erase_if(reserved, [&](const auto& r) { return now() - r.second.since > enlist_deadline; });
  run->tick(now());
  act();
  if (outcome)
    tell_outcome();
  if (outcome || !run->finished())
    self->delayed_send(self, tick_interval, caf::tick_atom_v);
}

// ---- what the run decided ----

void coordinator_state::act() {
  for (auto batch = run->take(); !batch.empty(); batch = run->take()) {
    for (const auto& c : batch)
      std::visit([this](const auto& x) { (*this)(x); }, c);
  }
}

std::string coordinator_state::learner_name() const {
  for (const auto& [id, m] : members) {
    if (m.info.role == worker_role::learner)
      return std::string("learner ") + std::to_string(m.info.rank) + " on " + m.info.host;
  }
  return "learner";
}

template <class Request, class Answer>
void coordinator_state::ask_learner(const Request& request, void (run_state::*event)(const Answer&, time_point)) {
  if (!learner)
    return;
  self->request(learner, learner_deadline, request)
      .then(
          [this, event, epoch = learner_epoch](const Answer& answer) {
            if (epoch != learner_epoch)
              return;
            ((*run).*event)(answer, now());
            act();
          },
          [this, epoch = learner_epoch](const caf::error& e) {
            if (epoch != learner_epoch)
              return;
            run->learner_error(to_exception(e, learner_name()), now());
            act();
          });
}

void coordinator_state::operator()(const command::dispatch& c) {
  const auto it = members.find(c.worker);
  if (it == members.end())
    return;
  const prompt_row& row = setup->data->row(c.key);
  self->send(caf::actor_cast<rollout_actor>(it->second.handle), generate_group{c.key, c.version, row.source, row.ids});
}

void coordinator_state::operator()(const command::restore& c) { ask_learner(c.request, &run_state::restored); }
void coordinator_state::operator()(const command::train& c) { ask_learner(train_step{c.step}, &run_state::step_done); }
void coordinator_state::operator()(const command::save& c) { ask_learner(save_checkpoint{c.step}, &run_state::saved); }

void coordinator_state::operator()(const command::sync& c) {
  self->request(weight_sync, sync_deadline, sync_weights{c.version})
      .then(
          [this](const weights_fetched& result) {
            run->synced(result, now());
            act();
          },
          [this, epoch = learner_epoch](const caf::error& e) {
            const error what = to_exception(e, learner_name());
            if (epoch != learner_epoch || what.code() == errc::cancelled) // another sync has taken its place
              return;
            run->learner_error(what, now());
            act();
          });
}

void coordinator_state::operator()(const command::ship& c) {
  self->request(reward, learner_deadline, ship_batch{c.step, c.indices, batch_endpoint})
      .then(
          [this, epoch = learner_epoch](const batch_shipped& answer) {
            if (epoch != learner_epoch)
              return;
            run->shipped(answer, now());
            act();
          },
          [this, epoch = learner_epoch](const caf::error& e) {
            if (epoch != learner_epoch)
              return;
            run->learner_error(to_exception(e, ""), now());
            act();
          });
}

void coordinator_state::operator()(const command::trained& c) { self->send(reward, step_trained{c.version, {}}); }
void coordinator_state::operator()(const command::begin& c) { setup->host->begin(c.step); }
void coordinator_state::operator()(const command::record& c) { setup->host->record(c.step, c.metrics); }
void coordinator_state::operator()(const command::progress& c) { setup->host->progress(c.step, c.validation, c.done, c.wanted); }
void coordinator_state::operator()(const command::log& c) { setup->host->log(c.text); }
void coordinator_state::operator()(const command::end_rollout& c) { lose(c.worker, "does not answer"); }

void coordinator_state::operator()(const command::end_learner&) {
  for (const auto& [id, m] : members) {
    if (m.info.role == worker_role::learner)
      return lose(id, "does not answer");
  }
}

void coordinator_state::operator()(const command::finish& c) {
  for (const auto& [id, m] : members)
    caf::anon_send_exit(m.handle, caf::exit_reason::user_shutdown);
  for (const auto& [place, m] : ranks)
    caf::anon_send_exit(m.handle, caf::exit_reason::user_shutdown);
  outcome = c;
  over_since = now();
  tell_outcome();
}

coordinator_actor::behavior_type coordinator(coordinator_actor::stateful_pointer<coordinator_state> self, const coordinator_setup& setup) {
  auto& s = self->state;
  s.self = self;
  s.setup = std::make_unique<coordinator_setup>(setup);
  s.run = std::make_unique<run_state>(setup.plan);
  s.reward = setup.make_reward(self);
  s.weight_sync = setup.make_weight_sync(self);
  self->monitor(s.reward);
  self->monitor(s.weight_sync);
  self->set_down_handler([self](const caf::down_msg& d) { self->state.down(d.source, caf::to_string(d.reason)); });
  self->set_exception_handler([self](std::exception_ptr& p) -> caf::error {
    try {
      std::rethrow_exception(p);
    } catch (const error& e) {
      self->state.run->fail(e);
    } catch (const std::exception& e) {
      self->state.run->fail(error(errc::failed, e.what()));
    }
    self->state.act();
    return caf::none;
  });
  s.run->start(s.now());
  self->delayed_send(self, tick_interval, caf::tick_atom_v);
  return {
      [self](const join_request& r) { return self->state.join(r); },
      [self](const fetch_texts& f) { return self->state.texts(f.from); },
      [self](const worker_info& info, const rollout_actor& w) { self->state.enlist(info, w); },
      [self](const worker_info& info, const learner_actor& w) { self->state.enlist(info, w); },
      [self](const worker_info& info, const rank_actor& w) { self->state.enlist(info, w); },
      [self](const group_scored& g) {
        self->state.run->scored(g, self->state.now());
        self->state.act();
      },
      [self](const rollout_holds& h) {
        self->state.run->rollout_has(h.id, h.version, self->state.now());
        self->state.act();
      },
      [self](const rollout_failed& f) {
        self->state.run->rollout_sync_failed(f.id, f.text, self->state.now());
        self->state.act();
      },
      [self](const worker_failed& f) { self->state.failed(f); },
      [self](const worker_exited& e) { self->state.exited(e); },
      [self](const stop_run&) {
        self->state.run->stop(self->state.now());
        self->state.act();
      },
      [self](caf::tick_atom) { self->state.tick(); },
  };
}

// ---- the door ----

door_actor::behavior_type door(door_actor::pointer self, const coordinator_actor& coordinator, const std::string& secret,
                               const std::string& numerics) {
  return {
      [self, coordinator, secret, numerics](const join_request& r) -> caf::result<join_answer, coordinator_actor> {
        const auto differs = [](const std::string& what, const std::string& theirs, const std::string& ours) {
          return caf::make_error(errc::bad_input, "this worker cannot join: its " + what + " is " + theirs + ", the run's is " + ours +
                                                      "; start the run's own program");
        };
        if (r.protocol != protocol_hash())
          return differs("protocol", std::to_string(r.protocol), std::to_string(protocol_hash()));
        if (r.build != build_name())
          return differs("build", r.build, build_name());
        if (r.numerics != numerics)
          return differs("numerics", r.numerics, numerics);
        if (r.secret != secret)
          return caf::make_error(errc::bad_input, std::string("this worker cannot join: it does not know the run's secret"));
        auto promise = self->make_response_promise<join_answer, coordinator_actor>();
        self->request(coordinator, std::chrono::seconds(20), r)
            .then([promise, coordinator](const join_answer& a) mutable { promise.deliver(a, coordinator); },
                  [promise](const caf::error& e) mutable { promise.deliver(e); });
        return promise;
      },
  };
}

} // namespace troupe
