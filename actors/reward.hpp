#pragma once
#include "actors/inbox.hpp"
#include "actors/protocol.hpp"
#include "actors/run_data.hpp"
#include "core/config.hpp"
#include "experience/reward.hpp"
#include "model/tokenizer/tokenizer.hpp"
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <vector>

namespace troupe {

/// Calls `work` on a thread of its own. False when it has not ended within `deadline`: it is left to itself, so it must own
/// what it touches. Rethrows what it throws.
bool run_within(std::chrono::milliseconds deadline, std::function<void()> work);

/// What a reward works with.
struct reward_setup {
  config cfg;
  std::shared_ptr<const run_data> data;
  std::shared_ptr<const tokenizer> tok;
  std::shared_ptr<const reward_function> function;
  std::filesystem::path run_dir;
  std::shared_ptr<inbox<trajectory_group>> groups;                                     // from the rollouts
  std::function<void(const std::string& endpoint, std::vector<scored_group>)> deliver; // to the learner
};

/// Scores groups and keeps them until their step is trained. One thread; no CAF.
class reward_station {
public:
  explicit reward_station(reward_setup setup) : setup_(std::move(setup)) {}
  /// Scores a group. None: its step is over. Throws errc::bad_input for a group that the run did not ask for, and errc::failed
  /// or errc::timeout for a reward that throws, hangs or is not finite twice, unless reward.on_error is "drop".
  std::optional<group_scored> accept(trajectory_group group);
  /// The groups of a step in this order with their advantages, recorded and flushed.
  std::vector<scored_group> ship(std::uint32_t step, const std::vector<std::uint32_t>& indices) const;
  /// The step is trained: it and all before are let go.
  void forget(std::uint32_t step);
  std::size_t n_held() const { return held_.size(); }

private:
  void check(const trajectory_group& group, const prompt_row& row) const;
  std::vector<double> score(const scored_group& group) const;
  std::vector<double> score_with_retry(const scored_group& group) const;

  reward_setup setup_;
  std::map<group_key, scored_group> held_;
  std::uint32_t done_ = 0;
};

/// Mean over response tokens of the groups' advantages.
double advantage_mean(const std::vector<scored_group>& groups);

struct reward_state {
  static inline const char* name = "reward";
  reward_actor::pointer self = nullptr;
  coordinator_actor coordinator;
  std::shared_ptr<reward_setup> setup;
  std::unique_ptr<reward_station> station;

  void score_arrived();
  batch_shipped ship(const ship_batch& request);
};

/// Spawn detached. An error ends it, after telling the coordinator.
reward_actor::behavior_type reward(reward_actor::stateful_pointer<reward_state> self, const std::shared_ptr<reward_setup>& setup,
                                   const coordinator_actor& coordinator);

} // namespace troupe
