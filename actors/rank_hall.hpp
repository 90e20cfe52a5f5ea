#pragma once
#include "actors/protocol.hpp"
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace troupe {

struct hall_state;

/// Where a learner that needs no coordinator, and is the first of several ranks itself, waits for the other ranks. Any thread.
class rank_hall {
public:
  struct news {
    std::vector<std::string> peers; // endpoints of all ranks, once they are there
    std::string lost;               // a rank that is gone, and how; empty: none
    std::optional<error> failure;   // a rank's own, which ends the run
  };

  /// welcome: what the others get, rank aside. n: of ranks, this one included. log: takes the line of each that joins.
  rank_hall(caf::actor_system& sys, const join_answer& welcome, std::uint32_t n, std::function<void(const std::string&)> log);
  ~rank_hall();
  rank_hall(const rank_hall&) = delete;
  rank_hall& operator=(const rank_hall&) = delete;
  coordinator_actor handle() const { return actor_; }
  /// This rank is there; what was lost before is forgotten.
  void open(const std::string& endpoint);
  /// What is new since the last call.
  news take();
  /// A process of this machine is gone.
  void exited(std::int64_t pid, const std::string& how);
  /// All ranks that are there leave, by an order or, `kill`, whatever they are at. Returns their pids.
  std::vector<std::int64_t> dismiss(bool kill);

private:
  const std::shared_ptr<hall_state> state_;
  coordinator_actor actor_;
};

} // namespace troupe
