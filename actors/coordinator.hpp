#pragma once
#include "actors/protocol.hpp"
#include "actors/run_data.hpp"
#include "actors/run_host.hpp"
#include "actors/run_state.hpp"
#include <chrono>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>

namespace troupe {

/// What a coordinator works with. The factories make its two companions, which report to it.
struct coordinator_setup {
  run_plan plan;
  std::shared_ptr<const run_data> data;
  std::shared_ptr<run_host> host;
  join_answer welcome;                            // what every worker gets; role and rank are filled in
  std::chrono::milliseconds leave_deadline{5000}; // for members to go when the run is over
  std::shared_ptr<const std::string> texts;       // for workers that work with text: pack_texts
  std::function<reward_actor(const coordinator_actor&)> make_reward;
  std::function<weight_sync_actor(const coordinator_actor&)> make_weight_sync;
  std::uint32_t learner_ranks = 1, rollout_ranks = 1; // processes that share the learner's, and each rollout's, model
  std::function<void(const std::string&)> learner_at; // told where batches go now; "": nowhere. May be empty
};

/// The actor around `run_state`: knows the handles, turns messages into events and commands into messages.
struct coordinator_state {
  static inline const char* name = "coordinator";
  struct member {
    worker_info info;
    caf::strong_actor_ptr handle;
    worker_id id = 0;
  };
  struct reservation {
    worker_role role;
    std::uint32_t rank;
    time_point since;
  };

  /// One of several ranks of a worker. All of them go with any of them, once they are connected.
  struct rank_member {
    worker_info info;
    caf::strong_actor_ptr handle;
    bool connected = false;
  };

  ~coordinator_state(); // its two companions end with it

  coordinator_actor::pointer self = nullptr;
  std::unique_ptr<coordinator_setup> setup;
  std::unique_ptr<run_state> run;
  reward_actor reward;
  weight_sync_actor weight_sync;
  learner_actor learner;
  std::string batch_endpoint;
  std::uint32_t learner_epoch = 0; // answers of an older learner are dropped
  worker_id last_id = 0;
  std::map<worker_id, member> members;
  std::map<std::pair<worker_role, std::uint32_t>, rank_member> ranks; // by role and rank; those of workers of one process are not here
  std::map<std::int64_t, reservation> reserved;                       // by pid: a role was given, the worker is not there yet

  std::set<std::int64_t> lost_pids; // of members that were lost; their exit is no news
  /// The run is over: the host hears of it when the members have gone, so that none takes the end for a death.
  std::optional<command::finish> outcome;
  time_point over_since;

  time_point now() const { return self->clock().now(); }
  caf::result<texts_part> texts(std::uint64_t from) const;
  caf::result<join_answer> join(const join_request& request);
  void enlist(const worker_info& info, const rollout_actor& rollout);
  void enlist(const worker_info& info, const learner_actor& learner);
  void enlist(const worker_info& info, const rank_actor& rank);
  void down(const caf::actor_addr& source, const std::string& reason);
  void failed(const worker_failed& failure);
  void exited(const worker_exited& exit);
  void tick();
  /// Carries out what the run decided.
  void act();

private:
  void operator()(const command::dispatch& c);
  void operator()(const command::restore& c);
  void operator()(const command::sync& c);
  void operator()(const command::ship& c);
  void operator()(const command::train& c);
  void operator()(const command::trained& c);
  void operator()(const command::save& c);
  void operator()(const command::begin& c);
  void operator()(const command::record& c);
  void operator()(const command::progress& c);
  void operator()(const command::end_rollout& c);
  void operator()(const command::end_learner& c);
  void operator()(const command::log& c);
  void operator()(const command::finish& c);

  template <class Request, class Answer>
  void ask_learner(const Request& request, void (run_state::*event)(const Answer&, time_point));
  member& add_member(const worker_info& info, caf::strong_actor_ptr handle);
  void lose(worker_id id, const std::string& why);
  void remove(worker_id id, const std::string& text);
  void lose_rank(const worker_info& info, const std::string& why);
  void remove_ranks(worker_role role, std::uint32_t first);
  const rank_member* find_rank(const worker_info& info) const;
  std::uint32_t ranks_of(worker_role role) const { return role == worker_role::learner ? setup->learner_ranks : setup->rollout_ranks; }
  std::uint32_t first_rank(const worker_info& info) const { return info.rank / ranks_of(info.role) * ranks_of(info.role); }
  void let_go(const caf::actor_addr& source);
  void tell_outcome();
  bool taken(worker_role role, std::uint32_t rank) const;
  std::string learner_name() const;
};

coordinator_actor::behavior_type coordinator(coordinator_actor::stateful_pointer<coordinator_state> self, const coordinator_setup& setup);

/// The published actor: lets in programs of the same build that know the run's secret. Throws nothing; refuses with one line.
door_actor::behavior_type door(door_actor::pointer self, const coordinator_actor& coordinator, const std::string& secret,
                               const std::string& numerics);

} // namespace troupe
