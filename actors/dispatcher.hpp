#pragma once
#include "experience/trajectory.hpp"
#include <chrono>
#include <cstdint>
#include <map>
#include <set>
#include <vector>

namespace troupe {

using worker_id = std::uint64_t;
using time_point = std::chrono::steady_clock::time_point;

/// Which groups of a round are wanted, who makes each, and which have come. A group's content follows from its key and
/// version alone, so who makes it, and how often, changes nothing. Pure bookkeeping: no thread, no clock, no CAF.
class dispatcher {
public:
  /// deadline: how long a worker may hold a group. credits: groups that one worker may hold.
  dispatcher(std::chrono::milliseconds deadline, std::size_t credits) : deadline_(deadline), credits_(credits) {}

  struct assignment {
    worker_id worker = 0;
    group_key key;
  };

  /// A new round of groups 0 .. count-1; what the last one still wanted is forgotten.
  void open(std::uint32_t step, bool validation, std::uint32_t count);
  /// Groups are given to workers that hold this version.
  void want_version(weights_version version) { version_ = version; }
  weights_version version() const { return version_; }

  void add_worker(worker_id id) { workers_[id]; }
  void holds(worker_id id, weights_version version);
  /// Its groups are wanted again, before all others.
  void remove_worker(worker_id id);
  std::size_t n_workers() const { return workers_.size(); }
  bool knows(worker_id id) const { return workers_.count(id) != 0; }

  /// Gives waiting groups, in order, to the workers that hold fewest, as far as their credits reach.
  std::vector<assignment> assign(time_point now);
  /// A group came. False when it is not wanted (any more): late, a duplicate, of another round.
  bool answered(const group_key& key);
  /// Workers that hold a group past its deadline.
  std::vector<worker_id> overdue(time_point now) const;
  bool complete() const { return waiting_.empty() && in_flight_.empty(); }
  std::size_t n_in_flight() const { return in_flight_.size(); }

private:
  struct worker {
    bool current = false;
    weights_version version;
    std::size_t busy = 0;
  };
  struct holder {
    worker_id worker = 0;
    time_point since;
  };

  std::chrono::milliseconds deadline_;
  std::size_t credits_;
  weights_version version_;
  std::map<worker_id, worker> workers_;
  std::set<group_key> waiting_; // in dispatch order
  std::map<group_key, holder> in_flight_;
};

} // namespace troupe
