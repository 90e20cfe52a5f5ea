#pragma once
#include "actors/protocol.hpp"
#include "actors/run.hpp"
#include "actors/secret.hpp"
#include "actors/supervisor.hpp"
#include <string>

namespace troupe {

/// What every worker of a run gets, role and rank aside.
join_answer make_welcome(const run_inputs& in);

/// How many of `all` workers `train` starts here (placement.local_workers).
std::size_t n_local_workers(const config& cfg, std::size_t all);

/// How worker processes come to a run: its open door, its secret, and those that are started on this machine.
class gate {
public:
  /// coordinator: gives out the roles. Writes the address to log.txt. Throws errc::bad_config when the port is not to be had.
  gate(caf::actor_system& sys, const run_inputs& in, run_outputs& outputs, const coordinator_actor& coordinator, const std::string& secret);
  ~gate();
  gate(const gate&) = delete;
  gate& operator=(const gate&) = delete;
  void start_workers(std::size_t n);
  supervisor& workers() { return *workers_; }

private:
  door_actor entrance_;
  std::unique_ptr<secret_file> kept_;
  std::unique_ptr<supervisor> workers_;
};

} // namespace troupe
