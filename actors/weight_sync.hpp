#pragma once
#include "actors/protocol.hpp"
#include <cstdint>
#include <map>
#include <optional>

namespace troupe {

/// Takes each version from the learner to all rollouts, and the current one to those who join later.
/// The bytes go from the learner's source to the rollouts' sinks; here only who has what is kept.
struct weight_sync_state {
  static inline const char* name = "weight_sync";
  struct receiver {
    rollout_actor handle;
    std::optional<weights_version> fetching;
  };

  weight_sync_actor::pointer self = nullptr;
  coordinator_actor coordinator;
  learner_actor learner;
  std::map<std::uint64_t, receiver> receivers;
  std::optional<weights_published> current; // what a receiver can fetch now
  std::optional<weights_version> wanted;    // by the sync that is waited for
  caf::typed_response_promise<weights_fetched> promise;
  weights_fetched total;

  caf::result<weights_fetched> sync(weights_version version);
  void join(std::uint64_t id, const rollout_actor& handle);
  void down(const caf::actor_addr& source);

private:
  void published(const weights_published& offer);
  void fetch(std::uint64_t id);
  void fetched(std::uint64_t id, const weights_fetched& result);
  void failed(std::uint64_t id, weights_version version, const caf::error& e);
  void answer_if_complete();
};

weight_sync_actor::behavior_type weight_sync(weight_sync_actor::stateful_pointer<weight_sync_state> self,
                                             const coordinator_actor& coordinator);

} // namespace troupe
