#include "actors/weight_sync.hpp"
#include <algorithm>
#include <chrono>

namespace troupe {
namespace {

constexpr auto publish_deadline = std::chrono::minutes(20); // a learner that redoes steps answers after them
constexpr auto fetch_deadline = std::chrono::minutes(20);   // a rollout finishes its groups first

} // namespace

caf::result<weights_fetched> weight_sync_state::sync(weights_version version) {
  if (wanted)
    promise.deliver(caf::make_error(errc::cancelled, std::string("another version is being synced")));
  wanted = version;
  current.reset();
  total = weights_fetched{version, 0, 0};
  promise = self->make_response_promise<weights_fetched>();
  auto answer = promise;
  self->request(learner, publish_deadline, publish_weights{version})
      .then([this](const weights_published& offer) { published(offer); },
            [this, version](const caf::error& e) {
              if (wanted == version)
                promise.deliver(e);
              if (wanted == version)
                wanted.reset();
            });
  return answer;
}

void weight_sync_state::published(const weights_published& offer) {
  if (wanted != offer.version)
    return;
  current = offer;
  for (const auto& [id, r] : receivers)
    fetch(id);
  answer_if_complete();
}

void weight_sync_state::join(std::uint64_t id, const rollout_actor& handle) {
  receivers[id].handle = handle;
  self->monitor(handle);
  if (current)
    fetch(id);
}

void weight_sync_state::fetch(std::uint64_t id) {
  receiver& r = receivers.at(id);
  r.fetching = current->version;
  self->request(r.handle, fetch_deadline, fetch_weights{current->version, current->endpoint})
      .then([this, id](const weights_fetched& result) { fetched(id, result); },
            [this, id, version = current->version](const caf::error& e) { failed(id, version, e); });
}

void weight_sync_state::fetched(std::uint64_t id, const weights_fetched& result) {
  const auto it = receivers.find(id);
  if (it == receivers.end() || it->second.fetching != result.version)
    return;
  it->second.fetching.reset();
  total.bytes += result.bytes;
  total.seconds = std::max(total.seconds, result.seconds);
  self->send(coordinator, rollout_holds{id, result.version});
  answer_if_complete();
}

void weight_sync_state::failed(std::uint64_t id, weights_version version, const caf::error& e) {
  const auto it = receivers.find(id);
  if (it == receivers.end() || it->second.fetching != version)
    return; // a newer version is on its way to it, or it is gone
  receivers.erase(it);
  self->send(coordinator, rollout_failed{id, to_exception(e, "weights").what()});
  answer_if_complete();
}

void weight_sync_state::down(const caf::actor_addr& source) {
  std::erase_if(receivers, [&](const auto& r) { return r.second.handle.address() == source; });
  answer_if_complete();
}

void weight_sync_state::answer_if_complete() {
  const bool waiting = std::any_of(receivers.begin(), receivers.end(), [](const auto& r) { return r.second.fetching.has_value(); });
  if (!wanted || !current || waiting)
    return;
  wanted.reset();
  promise.deliver(total);
}

weight_sync_actor::behavior_type weight_sync(weight_sync_actor::stateful_pointer<weight_sync_state> self,
                                             const coordinator_actor& coordinator) {
  self->state.self = self;
  self->state.coordinator = coordinator;
  self->set_down_handler([self](const caf::down_msg& d) { self->state.down(d.source); });
  return {
      [self](const learner_actor& learner) {
        self->state.learner = learner;
        self->state.current.reset(); // the older one's offer ended with it
      },
      [self](std::uint64_t id, const rollout_actor& rollout) { self->state.join(id, rollout); },
      [self](const sync_weights& s) { return self->state.sync(s.version); },
  };
}

} // namespace troupe
