#include "actors/reward.hpp"
#include "actors/failure.hpp"
#include "experience/records.hpp"
#include "learner/advantage.hpp"
#include <algorithm>
#include <chrono>
#include <cmath>
#include <future>
#include <thread>

namespace troupe {
namespace {

using clock = std::chrono::steady_clock;

double seconds_since(clock::time_point begin) { return std::chrono::duration<double>(clock::now() - begin).count(); }

std::string place_of(const group_key& key) {
  return (key.validation ? "validation at step " : "step ") + std::to_string(key.step) + ", prompt " + std::to_string(key.index);
}

} // namespace

bool run_within(std::chrono::milliseconds deadline, std::function<void()> work) {
  std::packaged_task<void()> task(std::move(work));
  auto done = task.get_future();
  std::thread(std::move(task)).detach();
  if (done.wait_for(deadline) == std::future_status::timeout)
    return false;
  done.get();
  return true;
}

void reward_station::check(const trajectory_group& group, const prompt_row& row) const {
  const auto wanted = std::size_t(samples_of(setup_.cfg, group.key.validation));
  if (group.prompt_ids != row.ids)
    throw error(errc::bad_input, place_of(group.key) + ": a rollout sent another prompt than row " + std::to_string(row.source));
  if (group.samples.size() != wanted)
    throw error(errc::bad_input, place_of(group.key) + ": a rollout sent " + std::to_string(group.samples.size()) + " samples, not " +
                                     std::to_string(wanted));
}

std::vector<double> reward_station::score(const scored_group& group) const {
  struct call {
    std::shared_ptr<const reward_function> function;
    std::vector<std::string> texts;
    std::vector<finish_reason> finish;
    std::string answer;
    std::vector<double> rewards;
  };
  auto c = std::make_shared<call>(call{setup_.function, group.texts, {}, group.answer, {}});
  for (const auto& s : group.group.samples)
    c->finish.push_back(s.finish);
  const auto deadline = std::chrono::milliseconds(std::int64_t(setup_.cfg.reward.timeout_s * 1000));
  const bool ended = run_within(deadline, [c] {
    for (std::size_t i = 0; i < c->texts.size(); ++i)
      c->rewards.push_back((*c->function)({c->texts[i], c->answer, c->finish[i]}));
  });
  if (!ended)
    throw error(errc::timeout, "the reward gave no answer within reward.timeout_s = " + std::to_string(setup_.cfg.reward.timeout_s) + " s");
  for (std::size_t i = 0; i < c->rewards.size(); ++i) {
    if (!std::isfinite(c->rewards[i]))
      throw error(errc::failed, "the reward of sample " + std::to_string(i) + " is not finite");
  }
  return c->rewards;
}

std::vector<double> reward_station::score_with_retry(const scored_group& group) const {
  try {
    return score(group);
  } catch (const std::exception&) {
    return score(group); // once more: its error is the one that counts
  }
}

std::optional<group_scored> reward_station::accept(trajectory_group arrived) {
  const group_key key = arrived.key;
  if (!key.validation && key.step <= done_)
    return std::nullopt;
  const auto begin = clock::now();
  const prompt_row& row = setup_.data->row_of_source(key.validation, arrived.source);
  check(arrived, row);
  scored_group scored;
  scored.answer = row.answer;
  group_scored header;
  header.key = key;
  header.prompt_length = std::uint32_t(arrived.prompt_ids.size());
  weights_version oldest = arrived.version;
  for (const auto& s : arrived.samples) {
    scored.texts.push_back(response_text(setup_.cfg, *setup_.tok, s.output_ids));
    header.lengths.push_back(std::uint32_t(s.output_ids.size()));
    for (const auto& v : s.versions)
      oldest = std::min(oldest, v);
  }
  header.oldest_version = oldest.step;
  scored.group = std::move(arrived);
  try {
    scored.rewards = score_with_retry(scored);
  } catch (const std::exception& e) {
    const std::string text = "reward: " + place_of(key) + " (row " + std::to_string(row.source) + "): " + e.what();
    if (setup_.cfg.reward.on_error != "drop")
      throw error(errc::failed, text);
    header.lengths.clear();
    header.dropped = text + "; the group is dropped";
    return header;
  }
  header.rewards = scored.rewards;
  header.seconds = seconds_since(begin);
  if (!key.validation)
    held_[key] = std::move(scored);
  return header;
}

std::vector<scored_group> reward_station::ship(std::uint32_t step, const std::vector<std::uint32_t>& indices) const {
  std::vector<scored_group> out;
  for (const auto index : indices) {
    const auto it = held_.find(group_key{step, index, false});
    if (it == held_.end())
      throw error(errc::failed, "step " + std::to_string(step) + ", prompt " + std::to_string(index) + " is not held by the reward");
    out.push_back(it->second);
    std::vector<std::int64_t> lengths;
    for (const auto& s : out.back().group.samples)
      lengths.push_back(std::int64_t(s.output_ids.size()));
    out.back().advantages = group_advantages(setup_.cfg.algorithm, out.back().rewards, lengths);
  }
  write_rollouts(setup_.run_dir, step, out);
  return out;
}

void reward_station::forget(std::uint32_t step) {
  done_ = std::max(done_, step);
  std::erase_if(held_, [&](const auto& h) { return h.first.step <= step; });
}

double advantage_mean(const std::vector<scored_group>& groups) {
  double sum = 0, tokens = 0;
  for (const auto& g : groups) {
    for (std::size_t i = 0; i < g.advantages.size(); ++i) {
      const double n = double(g.group.samples[i].output_ids.size());
      sum += g.advantages[i] * n;
      tokens += n;
    }
  }
  return tokens > 0 ? sum / tokens : 0;
}

void reward_state::score_arrived() {
  for (auto& group : setup->groups->take()) {
    if (auto header = station->accept(std::move(group)))
      self->send(coordinator, *header);
  }
}

batch_shipped reward_state::ship(const ship_batch& request) {
  const auto begin = clock::now();
  auto groups = station->ship(request.step, request.indices);
  const batch_shipped answer{request.step, seconds_since(begin), advantage_mean(groups)};
  setup->deliver(request.endpoint, std::move(groups));
  return answer;
}

reward_actor::behavior_type reward(reward_actor::stateful_pointer<reward_state> self, const std::shared_ptr<reward_setup>& setup,
                                   const coordinator_actor& coordinator) {
  auto& s = self->state;
  s.self = self;
  s.coordinator = coordinator;
  s.setup = setup;
  s.station = std::make_unique<reward_station>(*setup);
  self->set_exception_handler([self](std::exception_ptr& p) -> caf::error {
    const error e = current_error(p);
    self->send(self->state.coordinator, worker_failed{worker_role::reward, 0, "", e.what(), std::uint8_t(e.code())});
    return to_caf(e);
  });
  setup->groups->on_push([me = caf::actor_cast<caf::actor_addr>(reward_actor{self})] {
    if (const auto handle = caf::actor_cast<reward_actor>(me))
      caf::anon_send(handle, caf::tick_atom_v);
  });
  return {
      // A learner that is gone is an error of the one who asked, not of the reward.
      [self](const ship_batch& r) { return answered([&] { return self->state.ship(r); }); },
      [self](const step_trained& t) { self->state.station->forget(t.version.step); },
      [self](caf::tick_atom) { self->state.score_arrived(); },
  };
}

} // namespace troupe
