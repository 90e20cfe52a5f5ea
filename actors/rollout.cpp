#include "actors/rollout.hpp"
#include "actors/failure.hpp"
#include "actors/run_data.hpp"
#include <chrono>
#include <exception>
#include <utility>

namespace troupe {
namespace {

constexpr auto fetch_deadline = std::chrono::minutes(10);

std::exception_ptr ended(errc code, const char* text) { return std::make_exception_ptr(error(code, text)); }

} // namespace

rollout_engine::rollout_engine(rollout_setup setup, std::function<void()> wake)
    : setup_(std::move(setup)), wake_(std::move(wake)), generator_(setup_.model, setup_.tok, setup_.options) {
  if (setup_.desk)
    setup_.desk->on_news(wake_);
}

rollout_engine::~rollout_engine() {
  if (setup_.desk)
    setup_.desk->close(ended(errc::cancelled, "the run has ended, or its rollout has; ask again elsewhere"), false);
}

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

bool rollout_engine::busy() const { return !generator_.idle() && holds_weights_ && sink_->hold(); }

void rollout_engine::tend() {
  if (setup_.desk)
    setup_.desk->take_in(generator_);
  // What goes on with its old cache still needs it.
  const bool kept = setup_.cfg.rollout.inflight_cache == "keep" && !generator_.idle();
  if (setup_.sleeps && holds_weights_ && !asleep_ && !kept && idle() && !sink_->hold()) {
    generator_.sleep();
    asleep_ = true;
  }
}

void rollout_engine::step() {
  tend();
  std::unique_lock<std::mutex> mine;
  if (setup_.turn)
    mine = std::unique_lock(*setup_.turn);
  const auto held = holds_weights_ ? sink_->hold() : nullptr;
  if (!held)
    return;
  auto ended = generator_.step();
  if (mine)
    mine.unlock();
  for (auto& out : ended)
    if (setup_.desk && setup_.desk->took(out.id))
      setup_.desk->deliver(std::move(out));
    else
      accept(std::move(out));
}

void rollout_engine::accept(generation_output&& out) {
  const auto it = groups_.find(out.id);
  if (it == groups_.end())
    return;
  it->second.group.samples.at(std::size_t(out.sample_index)) = std::move(out.result);
  if (--it->second.missing > 0)
    return;
  remember_length(it->second.group);
  setup_.outlet(std::move(it->second.group));
  groups_.erase(it);
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
    sink_->on_retract(wake_);
  }
  holds_weights_ = false;
  const sync_result result = sink_->fetch(request.version, fetch_deadline);
  generator_.set_version(result.version, setup_.cfg.rollout.inflight_cache == "keep" ? inflight_cache::keep : inflight_cache::recompute);
  if (std::exchange(asleep_, false))
    generator_.wake();
  if (setup_.desk)
    setup_.desk->set_version(result.version);
  version_ = result.version;
  holds_weights_ = true;
  return {result.version, result.bytes, result.seconds};
}

void rollout_state::add(const generate_group& request) {
  engine->add(request);
  wake();
}

void rollout_state::wake() {
  if (!ticking)
    self->send(self, caf::tick_atom_v);
  ticking = true;
}

void rollout_state::tick() {
  engine->step();
  if (waiting && engine->idle()) {
    const fetch_weights request = *waiting;
    waiting.reset();
    try {
      promise.deliver(engine->fetch(request));
    } catch (const std::exception&) {
      promise.deliver(to_caf(current_error(std::current_exception())));
    }
  }
  ticking = engine->busy();
  if (leaving && (!ticking || std::chrono::steady_clock::now() >= leaves_at))
    return end(*leaving);
  if (ticking)
    self->send(self, caf::tick_atom_v);
}

void rollout_state::leave(const caf::error& reason) {
  const bool again = leaving.has_value();
  if (!server || again || reason != caf::exit_reason::user_shutdown)
    return end(reason);
  server->stop_accepting();
  leaving = reason;
  leaves_at = std::chrono::steady_clock::now() + drain_limit;
  wake();
}

void rollout_state::end(const caf::error& reason) {
  close();
  self->quit(reason);
}

void rollout_state::close() {
  engine.reset(); // answers what is under way
  server.reset(); // waits until that is sent
}

caf::result<weights_fetched> rollout_state::fetch(const fetch_weights& request) {
  if (waiting)
    promise.deliver(caf::make_error(errc::cancelled, std::string("a newer version was asked for")));
  promise = self->make_response_promise<weights_fetched>();
  auto answer = promise;
  waiting = request;
  wake();
  return answer;
}

rollout_actor::behavior_type rollout(rollout_actor::stateful_pointer<rollout_state> self, const std::shared_ptr<rollout_setup>& setup,
                                     const worker_info& info, const coordinator_actor& coordinator) {
  self->state.self = self;
  const auto wake = [me = caf::actor_cast<caf::actor_addr>(rollout_actor{self})] {
    if (const auto handle = caf::actor_cast<rollout_actor>(me))
      caf::anon_send(handle, caf::add_atom_v);
  };
  self->state.server = setup->server;
  self->state.engine = std::make_unique<rollout_engine>(*setup, wake);
  report_failures(self, info, coordinator);
  self->set_exit_handler([self](const caf::exit_msg& m) { self->state.leave(m.reason); });
  return {
      [self](const generate_group& g) { self->state.add(g); },
      [self](const fetch_weights& f) { return self->state.fetch(f); },
      [self](caf::get_atom) { return self->state.engine->status(); },
      [self](caf::tick_atom) { self->state.tick(); },
      [self](caf::add_atom) { self->state.wake(); },
  };
}

} // namespace troupe
