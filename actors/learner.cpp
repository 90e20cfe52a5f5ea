#include "actors/learner.hpp"
#include "actors/failure.hpp"
#include "experience/records.hpp"
#include "learner/checkpoint.hpp"
#include <limits>

namespace troupe {

learner_engine::learner_engine(learner_setup setup)
    : setup_(std::move(setup)), learner_(setup_.cfg, setup_.policy, setup_.reference, setup_.total_steps, *setup_.where) {}

void learner_engine::restore(const restore_learner& request) {
  passed_over_.clear();
  std::optional<std::filesystem::path> checkpoint;
  if (!request.only.empty())
    checkpoint = request.only;
  else
    checkpoint = newest_whole_checkpoint(setup_.run_dir, [this](const std::string& line) { passed_over_.push_back(line); });
  if (checkpoint)
    learner_.load(*checkpoint);
  const bool newest = request.target == std::numeric_limits<std::uint32_t>::max();
  target_ = newest ? std::uint32_t(learner_.steps_done()) : request.target;
  learner_.set_incarnation(request.incarnation);
}

bool learner_engine::redo() {
  if (learner_.steps_done() >= std::int64_t{target_})
    return false;
  train(read_rollouts(setup_.run_dir, learner_.steps_done() + 1));
  return true;
}

learner_restored learner_engine::restored() { return {learner_.version(), std::move(passed_over_)}; }

step_trained learner_engine::train(std::vector<scored_group> groups) {
  // Every incarnation of a step holds the same bits, so tokens of an older incarnation count as drawn from this one.
  for (auto& g : groups) {
    g.group.version.incarnation = learner_.version().incarnation;
    for (auto& s : g.group.samples) {
      for (auto& v : s.versions)
        v.incarnation = learner_.version().incarnation;
    }
  }
  setup_.source->retract();
  const metric_map metrics = learner_.step(groups);
  return {learner_.version(), {metrics.begin(), metrics.end()}};
}

checkpoint_saved learner_engine::save(std::uint32_t step) const {
  if (learner_.steps_done() != std::int64_t{step})
    throw error(errc::failed, "asked to save step " + std::to_string(step) + " at step " + std::to_string(learner_.steps_done()));
  std::unique_lock<std::mutex> mine;
  if (setup_.turn)
    mine = std::unique_lock(*setup_.turn);
  write_checkpoint(setup_.run_dir, learner_, setup_.cfg.model.path);
  return {step};
}

weights_published learner_engine::publish(weights_version version) {
  if (version != learner_.version())
    throw error(errc::failed,
                "asked to publish version " + std::to_string(version.step) + " at version " + std::to_string(learner_.version().step));
  setup_.source->publish(version);
  return {version, setup_.source->endpoint()};
}

caf::result<learner_restored> learner_state::restore(const restore_learner& request) {
  restore_promise = self->make_response_promise<learner_restored>();
  auto answer = restore_promise;
  try {
    engine->restore(request);
  } catch (const std::exception&) {
    restore_promise.deliver(to_caf(current_error(std::current_exception())));
    return answer;
  }
  restoring = true;
  self->send(self, caf::tick_atom_v);
  return answer;
}

caf::result<step_trained> learner_state::train(std::uint32_t step) {
  wanted = step;
  train_promise = self->make_response_promise<step_trained>();
  auto answer = train_promise;
  self->send(self, caf::tick_atom_v);
  return answer;
}

void learner_state::tick() {
  for (auto& batch : setup->batches->take()) {
    if (!batch.empty())
      batches[batch.front().group.key.step] = std::move(batch);
  }
  if (restoring) {
    try {
      if (engine->redo())
        return self->send(self, caf::tick_atom_v);
      restore_promise.deliver(engine->restored());
    } catch (const std::exception&) {
      restore_promise.deliver(to_caf(current_error(std::current_exception())));
    }
    restoring = false;
  }
  const auto it = wanted ? batches.find(*wanted) : batches.end();
  if (it == batches.end())
    return;
  auto groups = std::move(it->second);
  batches.erase(batches.begin(), std::next(it));
  wanted.reset();
  try {
    train_promise.deliver(engine->train(std::move(groups)));
  } catch (const std::exception&) {
    train_promise.deliver(to_caf(current_error(std::current_exception())));
  }
}

learner_actor::behavior_type learner_worker(learner_actor::stateful_pointer<learner_state> self,
                                            const std::shared_ptr<learner_setup>& setup) {
  self->state.self = self;
  self->state.setup = setup;
  self->state.engine = std::make_unique<learner_engine>(*setup);
  setup->batches->on_push([me = caf::actor_cast<caf::actor_addr>(learner_actor{self})] {
    if (const auto handle = caf::actor_cast<learner_actor>(me))
      caf::anon_send(handle, caf::tick_atom_v);
  });
  return {
      [self](const restore_learner& r) { return self->state.restore(r); },
      [self](const train_step& t) { return self->state.train(t.step); },
      [self](const save_checkpoint& s) { return answered([&] { return self->state.engine->save(s.step); }); },
      [self](const publish_weights& p) { return answered([&] { return self->state.engine->publish(p.version); }); },
      [self](caf::tick_atom) { self->state.tick(); },
  };
}

} // namespace troupe
