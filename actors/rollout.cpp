#include "actors/rollout.hpp"
#include "actors/failure.hpp"
#include "actors/run_data.hpp"
#include <chrono>

namespace troupe {
namespace {

constexpr auto fetch_deadline = std::chrono::minutes(10);

} // namespace

rollout_engine::rollout_engine(rollout_setup setup) : setup_(std::move(setup)), generator_(setup_.model, setup_.tok, setup_.options) {}

void rollout_engine::add(const generate_group& request) {
  // Every incarnation of a step holds the same bits: a group that was on its way during a reload is good.
  if (!holds_weights_ || request.version.step != version_.step)
    throw error(errc::failed, "asked for a group of version " + std::to_string(request.version.step) + " while holding version " +
                                  std::to_string(version_.step));
  generation_request r = make_request(setup_.cfg, setup_.end_tokens, request.key, request.prompt_ids);
  if (groups_.count(r.id) != 0)
    return; // given twice: it is being made
  if (const auto known = lengths_.find(request.source); known != lengths_.end() && !request.key.validation)
    r.expected_tokens = known->second;
  partial& p = groups_[r.id];
  p.group.key = request.key;
  p.group.version = version_;
  p.group.source = request.source;
  p.group.prompt_ids = request.prompt_ids;
  p.group.samples.resize(std::size_t(r.n));
  p.missing = std::size_t(r.n);
  generator_.add(std::move(r));
}

void rollout_engine::step() {
  std::unique_lock<std::mutex> mine;
  if (setup_.turn)
    mine = std::unique_lock(*setup_.turn);
  auto ended = generator_.step();
  if (mine)
    mine.unlock();
  for (auto& out : ended) {
    const auto it = groups_.find(out.id);
    if (it == groups_.end())
      continue;
    it->second.group.samples.at(std::size_t(out.sample_index)) = std::move(out.result);
    if (--it->second.missing == 0) {
      remember_length(it->second.group);
      setup_.outlet(std::move(it->second.group));
      groups_.erase(it);
    }
  }
}

void rollout_engine::remember_length(const trajectory_group& group) {
  if (group.key.validation)
    return;
  std::size_t tokens = 0;
  for (const auto& s : group.samples)
    tokens += s.output_ids.size();
  lengths_[group.source] = std::int64_t(tokens / group.samples.size());
}

weights_fetched rollout_engine::fetch(const fetch_weights& request) {
  if (!sink_ || endpoint_ != request.endpoint) {
    sink_ = setup_.make_sink(request.endpoint);
    endpoint_ = request.endpoint;
  }
  holds_weights_ = false;
  const sync_result result = sink_->fetch(request.version, fetch_deadline);
  generator_.set_version(result.version);
  version_ = result.version;
  holds_weights_ = true;
  return {result.version, result.bytes, result.seconds};
}

void rollout_state::add(const generate_group& request) {
  engine->add(request);
  if (!ticking)
    self->send(self, caf::tick_atom_v);
  ticking = true;
}

void rollout_state::tick() {
  if (!engine->idle())
    engine->step();
  ticking = !engine->idle();
  if (ticking)
    return self->send(self, caf::tick_atom_v);
  if (!waiting)
    return;
  const fetch_weights request = *waiting;
  waiting.reset();
  try {
    promise.deliver(engine->fetch(request));
  } catch (const std::exception&) {
    promise.deliver(to_caf(current_error(std::current_exception())));
  }
}

caf::result<weights_fetched> rollout_state::fetch(const fetch_weights& request) {
  if (waiting)
    promise.deliver(caf::make_error(errc::cancelled, std::string("a newer version was asked for")));
  promise = self->make_response_promise<weights_fetched>();
  auto answer = promise;
  waiting = request;
  if (!ticking)
    tick();
  return answer;
}

rollout_actor::behavior_type rollout(rollout_actor::stateful_pointer<rollout_state> self, const std::shared_ptr<rollout_setup>& setup,
                                     const worker_info& info, const coordinator_actor& coordinator) {
  self->state.self = self;
  self->state.engine = std::make_unique<rollout_engine>(*setup);
  report_failures(self, info, coordinator);
  return {
      [self](const generate_group& g) { self->state.add(g); },
      [self](const fetch_weights& f) { return self->state.fetch(f); },
      [self](caf::get_atom) { return self->state.engine->status(); },
      [self](caf::tick_atom) { self->state.tick(); },
  };
}

} // namespace troupe
