#pragma once
#include "actors/policy_server.hpp"
#include "actors/protocol.hpp"
#include "core/config.hpp"
#include "rollout/generator.hpp"
#include "weightsync/channel.hpp"
#include <chrono>
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
  std::shared_ptr<std::mutex> turn;             // of those that share one model, which takes one caller at a time; null: alone
  bool sleeps = false;                          // while the model is trained in this process the cache's memory is free
  std::shared_ptr<request_desk> desk;           // requests of others, that join the passes; null: none
  std::shared_ptr<policy_server> server;        // where they come from
};

/// Makes groups with a generator and hands on each one that is complete. One thread; no CAF.
class rollout_engine {
public:
  /// wake: called by any thread when `tend` has something to do.
  explicit rollout_engine(
      rollout_setup setup, std::function<void()> wake = [] {});
  ~rollout_engine();
  /// Throws errc::failed when the group asks for a step's weights that are not held.
  void add(const generate_group& request);
  /// One pass of the model, if there is something to do and the weights may be read.
  void step();
  /// Whether no group is under way.
  bool idle() const { return groups_.empty(); }
  /// Whether a step would do something.
  bool busy() const;
  /// Takes in the requests of others; frees the cache where the model is being trained.
  void tend();
  /// Only when idle: requests of others go on with the new weights. Errors are the sink's.
  weights_fetched fetch(const fetch_weights& request);
  rollout_status status() const { return {std::uint32_t(groups_.size()), version_}; }

private:
  struct partial {
    trajectory_group group;
    std::size_t missing = 0;
  };
  void remember_length(const trajectory_group& group);
  void accept(generation_output&& out);

  rollout_setup setup_;
  std::function<void()> wake_;
  generator generator_;
  std::unique_ptr<weights_sink> sink_;
  std::string endpoint_;
  weights_version version_;
  bool holds_weights_ = false, asleep_ = false;
  std::map<std::uint64_t, partial> groups_;                 // by request id
  std::unordered_map<std::uint64_t, std::int64_t> lengths_; // tokens of a sample when a row was generated last, by source
};

struct rollout_state {
  static inline const char* name = "rollout";
  rollout_actor::pointer self = nullptr;
  std::shared_ptr<policy_server> server; // null: nobody else asks
  std::unique_ptr<rollout_engine> engine;
  bool ticking = false;
  std::optional<fetch_weights> waiting; // for the groups under way to end
  caf::typed_response_promise<weights_fetched> promise;
  std::optional<caf::error> leaving; // the run is over; requests of others under way still end
  std::chrono::steady_clock::time_point leaves_at;

  ~rollout_state() { close(); }

  void add(const generate_group& request);
  void tick();
  /// Sees to it that a tick comes.
  void wake();
  void leave(const caf::error& reason);
  void end(const caf::error& reason);
  void close();
  caf::result<weights_fetched> fetch(const fetch_weights& request);
};

/// Spawn detached. An error ends it, after telling the coordinator.
rollout_actor::behavior_type rollout(rollout_actor::stateful_pointer<rollout_state> self, const std::shared_ptr<rollout_setup>& setup,
                                     const worker_info& info, const coordinator_actor& coordinator);

} // namespace troupe
