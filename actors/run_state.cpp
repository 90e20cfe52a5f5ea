#include "actors/run_state.hpp"
#include <algorithm>
#include <limits>

namespace troupe {
namespace {

constexpr std::uint32_t max_deaths = 6; // of workers, with no group and no step between them

double seconds(time_point from, time_point to) { return std::chrono::duration<double>(to - from).count(); }

} // namespace

run_state::run_state(run_plan plan) : plan_(std::move(plan)), groups_(plan_.group_deadline, plan_.credits) {}

void run_state::start(time_point now) {
  started_ = true;
  short_since_ = now;
  begin_if_complete(now);
}

// ---- workers ----

void run_state::rollout_joined(worker_id id, time_point now) {
  groups_.add_worker(id);
  begin_if_complete(now);
  if (learner_there_)
    short_since_.reset();
}

void run_state::rollout_lost(worker_id id, const std::string& why, time_point now) {
  if (phase_ == phase::done || !groups_.knows(id))
    return;
  groups_.remove_worker(id);
  died(why, now);
  dispatch(now);
}

void run_state::learner_joined(time_point now) {
  if (phase_ == phase::done)
    return;
  learner_there_ = true;
  if (groups_.n_workers() > 0)
    short_since_.reset();
  if (phase_ == phase::joining)
    begin_if_complete(now);
  else
    restore_learner_now();
}

void run_state::learner_lost(const std::string& why, time_point now) {
  if (phase_ == phase::done || !learner_there_)
    return;
  learner_there_ = learner_ready_ = false;
  ++incarnation_;
  died(why, now);
}

void run_state::died(const std::string& why, time_point now) {
  out_.push_back(command::log{why});
  if (!plan_.restarts)
    finish(errc::peer_lost, why);
  else if (++deaths_ > max_deaths)
    finish(errc::peer_lost, why + " (" + std::to_string(deaths_) + " workers in a row ended without finishing anything)");
  else if (!short_since_ && (!learner_there_ || groups_.n_workers() == 0))
    short_since_ = now;
}

void run_state::begin_if_complete(time_point) {
  if (phase_ != phase::joining || !started_ || !learner_there_ || groups_.n_workers() < plan_.rollouts)
    return;
  phase_ = phase::restoring;
  restore_learner_now();
}

void run_state::restore_learner_now() {
  restore_learner request;
  request.incarnation = incarnation_;
  request.target = phase_ == phase::restoring ? std::numeric_limits<std::uint32_t>::max() : steps_done_;
  request.only = phase_ == phase::restoring ? plan_.resume_only : "";
  out_.push_back(command::restore{request});
}

void run_state::restored(const learner_restored& answer, time_point now) {
  for (const auto& line : answer.passed_over)
    out_.push_back(command::log{line});
  if (answer.version.incarnation != incarnation_ || !learner_there_)
    return;
  learner_ready_ = true;
  if (phase_ == phase::restoring) {
    steps_done_ = answer.version.step;
    out_.push_back(command::begin{steps_done_});
    return begin_sync(now);
  }
  // A learner that was started again: what waited for it goes on; otherwise its weights are offered to those who join.
  switch (phase_) {
  case phase::syncing:
    return begin_sync(now);
  case phase::shipping:
  case phase::training:
    return begin_shipping();
  case phase::saving:
    return out_.push_back(command::save{steps_done_});
  default:
    groups_.want_version(version());
    return out_.push_back(command::sync{version()});
  }
}

void run_state::learner_error(const error& e, time_point now) {
  if (phase_ == phase::done)
    return;
  const bool silent = e.code() == errc::peer_lost || e.code() == errc::timeout;
  if (!silent || !plan_.restarts)
    return finish(e.code(), e.what());
  out_.push_back(command::end_learner{});
  learner_lost(e.what(), now);
}

// ---- weights ----

void run_state::begin_sync(time_point now) {
  phase_ = phase::syncing;
  sync_began_ = now;
  groups_.want_version(version());
  out_.push_back(command::sync{version()});
}

void run_state::rollout_has(worker_id id, weights_version held, time_point now) {
  groups_.holds(id, held);
  dispatch(now);
}

void run_state::rollout_sync_failed(worker_id id, const std::string& why, time_point now) {
  if (phase_ == phase::done || !groups_.knows(id))
    return;
  out_.push_back(command::end_rollout{id});
  rollout_lost(id, why, now);
}

void run_state::synced(const weights_fetched& result, time_point now) {
  if (phase_ != phase::syncing || result.version != version())
    return;
  if (step_open_) {
    metrics_["sync/seconds"] = result.seconds;
    metrics_["sync/bytes"] = double(result.bytes);
    metrics_["sync/version"] = result.version.step;
    metrics_["timing_s/update_weights"] = seconds(sync_began_, now);
    metrics_["timing_s/step"] = seconds(step_began_, now);
    metrics_["perf/throughput"] = double(summary_.n_tokens()) / std::max(seconds(step_began_, now), 1e-9);
  }
  after_sync(now);
}

void run_state::after_sync(time_point now) {
  if (step_open_) {
    if (validation_due(steps_done_))
      begin_validation();
    else
      return record_step(now);
  } else if (steps_done_ == 0 && plan_.val_before_train && plan_.validation_size > 0 && !stop_) {
    begin_validation();
  } else {
    return begin_step(now);
  }
  dispatch(now);
}

// ---- groups ----

void run_state::begin_validation() {
  phase_ = phase::validating;
  came_ = 0;
  validation_rewards_.assign(plan_.validation_size, {});
  groups_.open(steps_done_, true, plan_.validation_size);
}

void run_state::begin_step(time_point now) {
  if (steps_done_ >= plan_.total_steps)
    return finish(errc{}, "");
  if (stop_)
    return finish(errc::cancelled, "stopped after step " + std::to_string(steps_done_) + "; start it again to go on");
  phase_ = phase::generating;
  step_began_ = now;
  summary_ = step_summary(plan_.max_response_length);
  metrics_.clear();
  kept_.clear();
  came_ = 0;
  groups_.open(steps_done_ + 1, false, plan_.batch_size);
  dispatch(now);
}

void run_state::dispatch(time_point now) {
  if (phase_ != phase::generating && phase_ != phase::validating)
    return;
  for (const auto& a : groups_.assign(now))
    out_.push_back(command::dispatch{a.worker, a.key, groups_.version()});
}

void run_state::scored(const group_scored& group, time_point now) {
  const bool awaited = phase_ == (group.key.validation ? phase::validating : phase::generating);
  if (!awaited || !groups_.answered(group.key))
    return;
  deaths_ = 0;
  ++came_;
  if (!group.dropped.empty()) {
    last_drop_ = group.dropped;
    out_.push_back(command::log{group.dropped});
  } else if (group.key.validation) {
    validation_rewards_[group.key.index] = group.rewards;
  } else {
    kept_.push_back(group.key.index);
    summary_.add(group.rewards, group.lengths, group.prompt_length, steps_done_ - std::min(steps_done_, group.oldest_version));
    metrics_["timing_s/reward"] += group.seconds;
  }
  const std::uint32_t wanted = group.key.validation ? plan_.validation_size : plan_.batch_size;
  out_.push_back(command::progress{group.key.step, group.key.validation, came_, wanted});
  if (!groups_.complete())
    return dispatch(now);
  if (group.key.validation)
    end_validation(now);
  else
    end_generation(now);
}

void run_state::end_validation(time_point now) {
  std::vector<std::vector<double>> kept;
  std::copy_if(validation_rewards_.begin(), validation_rewards_.end(), std::back_inserter(kept), [](const auto& r) { return !r.empty(); });
  if (kept.empty())
    return finish(errc::failed, "validation at step " + std::to_string(steps_done_) + ": every group was dropped; the last: " + last_drop_);
  const metric_map found = validation_metrics(kept, plan_.validation_n);
  if (step_open_) {
    metrics_.insert(found.begin(), found.end());
    return record_step(now);
  }
  out_.push_back(command::record{steps_done_, found});
  begin_step(now);
}

void run_state::end_generation(time_point now) {
  generation_ended_ = now;
  metrics_["timing_s/gen"] = seconds(step_began_, now);
  if (kept_.empty())
    return finish(errc::failed, "step " + std::to_string(steps_done_ + 1) + ": every group was dropped; the last: " + last_drop_);
  std::sort(kept_.begin(), kept_.end());
  begin_shipping();
}

// ---- learner ----

void run_state::begin_shipping() {
  phase_ = phase::shipping;
  if (learner_ready_)
    out_.push_back(command::ship{steps_done_ + 1, kept_});
}

void run_state::shipped(const batch_shipped& answer, time_point now) {
  if (phase_ != phase::shipping || answer.step != steps_done_ + 1 || !learner_ready_)
    return;
  phase_ = phase::training;
  train_began_ = now;
  metrics_["timing_s/adv"] = answer.advantage_seconds;
  metrics_["critic/advantages/mean"] = answer.advantage_mean;
  out_.push_back(command::train{answer.step});
}

void run_state::step_done(const step_trained& answer, time_point now) {
  if (phase_ != phase::training || answer.version != weights_version{incarnation_, steps_done_ + 1})
    return;
  deaths_ = 0;
  steps_done_ = answer.version.step;
  step_open_ = true;
  metrics_.insert(answer.metrics.begin(), answer.metrics.end());
  metrics_.try_emplace("timing_s/update_actor", seconds(train_began_, now));
  out_.push_back(command::trained{answer.version});
  begin_sync(now);
}

void run_state::record_step(time_point now) {
  const metric_map more = summary_.metrics();
  metrics_.insert(more.begin(), more.end());
  out_.push_back(command::record{steps_done_, std::exchange(metrics_, {})});
  step_open_ = false;
  save_or_next(now);
}

void run_state::save_or_next(time_point now) {
  if (!save_due())
    return begin_step(now);
  phase_ = phase::saving;
  if (learner_ready_)
    out_.push_back(command::save{steps_done_});
}

void run_state::saved(const checkpoint_saved& answer, time_point now) {
  if (phase_ == phase::saving && answer.step == steps_done_)
    begin_step(now);
}

bool run_state::validation_due(std::uint32_t step) const {
  return plan_.validation_size > 0 && plan_.test_freq > 0 && (step % plan_.test_freq == 0 || step == plan_.total_steps);
}

bool run_state::save_due() const {
  return stop_ || steps_done_ >= plan_.total_steps || (plan_.save_freq > 0 && steps_done_ % plan_.save_freq == 0);
}

// ---- the end ----

void run_state::stop(time_point now) {
  stop_ = true;
  if (phase_ == phase::joining || phase_ == phase::restoring)
    return finish(errc::cancelled, "stopped before a step began; start it again to go on");
  if (phase_ == phase::validating && !step_open_)
    begin_step(now);
}

void run_state::tick(time_point now) {
  if (phase_ == phase::done || !started_)
    return;
  if (short_since_ && now - *short_since_ >= plan_.join_deadline && !missing().empty())
    return finish(errc::timeout, "waited " + std::to_string(plan_.join_deadline.count() / 1000) + " s for " + missing() + " to join");
  for (const auto id : groups_.overdue(now)) {
    const std::string why = "a rollout held a group for " + std::to_string(plan_.group_deadline.count() / 1000) + " s";
    out_.push_back(command::end_rollout{id});
    rollout_lost(id, why, now);
  }
  dispatch(now);
}

std::string run_state::missing() const {
  const std::size_t wanted = phase_ == phase::joining ? plan_.rollouts : 1;
  const std::size_t lack = wanted - std::min(wanted, groups_.n_workers());
  std::string out = learner_there_ ? "" : "the learner";
  if (lack > 0)
    out += (out.empty() ? "" : " and ") + std::to_string(lack) + (lack == 1 ? " rollout" : " rollouts");
  return out;
}

void run_state::fail(const error& e) { finish(e.code(), e.what()); }

void run_state::finish(errc code, std::string text) {
  if (phase_ == phase::done)
    return;
  phase_ = phase::done;
  out_.push_back(command::finish{code, std::move(text)});
}

} // namespace troupe
