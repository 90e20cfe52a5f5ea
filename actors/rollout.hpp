#pragma once
#include "actors/protocol.hpp"
#include "core/config.hpp"
#include "rollout/generator.hpp"
#include "weightsync/channel.hpp"
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <unordered_map>
#include <vector>

namespace troupe {

/// What a rollout works with.
struct rollout_setup {
  config cfg;
  std::vector<std::int32_t> end_tokens;
  std::shared_ptr<causal_lm> model;
  std::shared_ptr<const tokenizer> tok; // null where nothing needs a text
  generator_options options;
  std::function<std::unique_ptr<weights_sink>(const std::string& endpoint)> make_sink;
  std::function<void(trajectory_group)> outlet; // the experience plane
  std::shared_ptr<std::mutex> turn;             // of rollouts that share one model, which takes one caller at a time; null: alone
};

/// Makes groups with a generator and hands on each one that is complete. One thread; no CAF.
class rollout_engine {
public:
  explicit rollout_engine(rollout_setup setup);
  /// Throws errc::failed when the group asks for a step's weights that are not held.
  void add(const generate_group& request);
  /// One pass of the model.
  void step();
  bool idle() const { return generator_.idle(); }
  /// Only when idle. Errors are the sink's.
  weights_fetched fetch(const fetch_weights& request);
  rollout_status status() const { return {std::uint32_t(groups_.size()), version_}; }

private:
  struct partial {
    trajectory_group group;
    std::size_t missing = 0;
  };
  void remember_length(const trajectory_group& group);

  rollout_setup setup_;
  generator generator_;
  std::unique_ptr<weights_sink> sink_;
  std::string endpoint_;
  weights_version version_;
  bool holds_weights_ = false;
  std::map<std::uint64_t, partial> groups_;                 // by request id
  std::unordered_map<std::uint64_t, std::int64_t> lengths_; // tokens of a sample when a row was generated last, by source
};

struct rollout_state {
  static inline const char* name = "rollout";
  rollout_actor::pointer self = nullptr;
  std::unique_ptr<rollout_engine> engine;
  bool ticking = false;
  std::optional<fetch_weights> waiting; // for the groups under way to end
  caf::typed_response_promise<weights_fetched> promise;

  void add(const generate_group& request);
  void tick();
  caf::result<weights_fetched> fetch(const fetch_weights& request);
};

/// Spawn detached. An error ends it, after telling the coordinator.
rollout_actor::behavior_type rollout(rollout_actor::stateful_pointer<rollout_state> self, const std::shared_ptr<rollout_setup>& setup,
                                     const worker_info& info, const coordinator_actor& coordinator);

} // namespace troupe
