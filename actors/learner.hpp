#pragma once
#include "actors/inbox.hpp"
#include "actors/protocol.hpp"
#include "core/config.hpp"
#include "learner/learner.hpp"
#include "weightsync/channel.hpp"
#include <filesystem>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

namespace troupe {

/// What a learner works with.
struct learner_setup {
  config cfg;
  std::int64_t total_steps = 0;
  std::filesystem::path run_dir;
  std::shared_ptr<causal_lm> policy, reference; // reference: null unless a KL is asked for
  compute* where = nullptr;
  std::shared_ptr<weights_source> source;
  std::shared_ptr<inbox<std::vector<scored_group>>> batches;
  std::shared_ptr<std::mutex> turn = nullptr; // rollouts of this process may read the policy while it is saved; null: none does
};

/// Trains, saves and restores. One thread; no CAF.
class learner_engine {
public:
  explicit learner_engine(learner_setup setup);
  /// Loads the checkpoint; `redo` then brings the learner on.
  void restore(const restore_learner& request);
  /// Redoes one recorded step. False: there is nothing left to redo.
  bool redo();
  learner_restored restored();
  step_trained train(std::vector<scored_group> groups);
  checkpoint_saved save(std::uint32_t step) const;
  weights_published publish(weights_version version);

private:
  learner_setup setup_;
  learner learner_;
  std::uint32_t target_ = 0;
  std::vector<std::string> passed_over_;
};

struct learner_state {
  static inline const char* name = "learner";
  learner_actor::pointer self = nullptr;
  std::shared_ptr<learner_setup> setup;
  std::unique_ptr<learner_engine> engine;
  std::map<std::uint32_t, std::vector<scored_group>> batches; // that arrived, by step
  bool restoring = false;
  std::optional<std::uint32_t> wanted; // step to train as soon as its batch is here
  caf::typed_response_promise<learner_restored> restore_promise;
  caf::typed_response_promise<step_trained> train_promise;

  caf::result<learner_restored> restore(const restore_learner& request);
  caf::result<step_trained> train(std::uint32_t step);
  void tick();
};

/// Spawn detached. Errors go to who asked.
learner_actor::behavior_type learner_worker(learner_actor::stateful_pointer<learner_state> self,
                                            const std::shared_ptr<learner_setup>& setup);

} // namespace troupe
