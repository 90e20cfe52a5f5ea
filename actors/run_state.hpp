#pragma once
#include "actors/dispatcher.hpp"
#include "actors/protocol.hpp"
#include "actors/summary.hpp"
#include "core/error.hpp"
#include "core/metrics.hpp"
#include <optional>
#include <string>
#include <variant>
#include <vector>

namespace troupe {

/// What a run is to do, in numbers.
struct run_plan {
  std::uint32_t total_steps = 0, save_freq = 0, test_freq = 0; // freq 0: never
  bool val_before_train = false;
  std::uint32_t batch_size = 0;      // prompts a step
  std::uint32_t validation_size = 0; // prompts; 0: no validation
  std::size_t validation_n = 1;
  std::int64_t max_response_length = 0;
  std::size_t rollouts = 1; // to wait for
  std::size_t credits = 1;  // groups that one rollout may hold
  bool restarts = false;    // a worker that dies is replaced
  std::string resume_only;  // this checkpoint and no other
  std::chrono::milliseconds group_deadline{std::chrono::minutes(10)};
  std::chrono::milliseconds join_deadline{std::chrono::minutes(10)};
};

/// What the coordinator is to do next, in the order given.
namespace command {
struct dispatch {
  worker_id worker = 0;
  group_key key;
  weights_version version;
};
struct restore {
  restore_learner request;
};
struct sync {
  weights_version version;
};
struct ship {
  std::uint32_t step = 0;
  std::vector<std::uint32_t> indices;
};
struct train {
  std::uint32_t step = 0;
};
struct trained {
  weights_version version;
}; // the reward may let the step's groups go
struct save {
  std::uint32_t step = 0;
};
struct begin {
  std::uint32_t step = 0;
}; // training goes on after this step
struct record {
  std::uint32_t step = 0;
  metric_map metrics;
};
struct progress {
  std::uint32_t step = 0;
  bool validation = false;
  std::uint32_t done = 0, wanted = 0;
};
struct end_rollout {
  worker_id worker = 0;
}; // it does not answer: end and replace it
struct end_learner {};
struct log {
  std::string text;
};
struct finish {
  errc code = errc{};
  std::string text;
}; // errc{}: success
} // namespace command
using run_command = std::variant<command::dispatch, command::restore, command::sync, command::ship, command::train, command::trained,
                                 command::save, command::begin, command::record, command::progress, command::end_rollout,
                                 command::end_learner, command::log, command::finish>;

/// The course of a run: join, restore, then generate, reward, ship, train, sync, (validate,) record, (save,) step by step.
/// Events come in, commands go out; what an event means for the phase under way is decided here and nowhere else.
/// No thread, no clock, no CAF: every event carries its time. An event that no longer fits is ignored.
class run_state {
public:
  explicit run_state(run_plan plan);

  void start(time_point now);
  void rollout_joined(worker_id id, time_point now);
  void rollout_lost(worker_id id, const std::string& why, time_point now);
  /// A process ended before it took a role.
  void worker_failed_to_join(const std::string& why, time_point now) {
    if (!finished())
      died(why, now);
  }
  void learner_joined(time_point now);
  void learner_lost(const std::string& why, time_point now);
  void restored(const learner_restored& answer, time_point now);
  void rollout_has(worker_id id, weights_version version, time_point now);
  void rollout_sync_failed(worker_id id, const std::string& why, time_point now);
  void synced(const weights_fetched& result, time_point now);
  void scored(const group_scored& group, time_point now);
  void shipped(const batch_shipped& answer, time_point now);
  void step_done(const step_trained& answer, time_point now);
  void saved(const checkpoint_saved& answer, time_point now);
  /// The learner answered with an error, or not in time.
  void learner_error(const error& e, time_point now);
  /// The run cannot go on.
  void fail(const error& e);
  void stop(time_point now);
  void tick(time_point now);

  std::vector<run_command> take() { return std::exchange(out_, {}); }
  bool finished() const { return phase_ == phase::done; }
  std::uint32_t steps_done() const { return steps_done_; }

private:
  enum class phase : std::uint8_t { joining, restoring, syncing, validating, generating, shipping, training, saving, done };

  void begin_if_complete(time_point now);
  void restore_learner_now();
  void begin_sync(time_point now);
  void after_sync(time_point now);
  void begin_validation();
  void begin_step(time_point now);
  void begin_shipping();
  void record_step(time_point now);
  void save_or_next(time_point now);
  void end_generation(time_point now);
  void end_validation(time_point now);
  void dispatch(time_point now);
  void died(const std::string& why, time_point now);
  void finish(errc code, std::string text);
  bool validation_due(std::uint32_t step) const;
  bool save_due() const;
  std::string missing() const;
  weights_version version() const { return {incarnation_, steps_done_}; }

  run_plan plan_;
  dispatcher groups_;
  phase phase_ = phase::joining;
  bool learner_there_ = false, learner_ready_ = false, started_ = false, stop_ = false;
  std::uint32_t incarnation_ = 0, steps_done_ = 0;
  std::uint32_t deaths_ = 0;              // since something was last achieved
  std::optional<time_point> short_since_; // since when workers are missing
  time_point step_began_, generation_ended_, sync_began_, train_began_;

  bool step_open_ = false; // trained, not yet recorded
  step_summary summary_;
  metric_map metrics_;
  std::vector<std::uint32_t> kept_; // indices of the step's groups that were not dropped
  std::vector<std::vector<double>> validation_rewards_;
  std::uint32_t came_ = 0;
  std::string last_drop_;
  std::vector<run_command> out_;
};

} // namespace troupe
