#include "actors/supervised_run.hpp"
#include "actors/parts.hpp"
#include "actors/signals.hpp"
#include "learner/checkpoint.hpp"
#include "learner/running_mean.hpp"
#include "learner/supervised.hpp"
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <thread>

namespace troupe {
namespace {

using namespace std::chrono_literals;
using clock = std::chrono::steady_clock;

/// The run's loop. Its own thread; `stop` is set by another.
class supervised_loop {
public:
  supervised_loop(const run_inputs& in, run_outputs& outputs, const std::atomic<bool>& stop)
      : in_(in), outputs_(outputs), stop_(stop), where_(in.threads, in.which),
        learner_(in.cfg, load_policy(in.cfg, false, where_), load_teacher(in.cfg, where_), in.total_steps, where_),
        sampler_(in.sft_train.size(), std::uint64_t(in.cfg.data.train_batch_size), in.cfg.run.seed, in.cfg.data.shuffle) {
    for (const auto& row : in.sft_val)
      validation_.push_back(&row);
  }

  void run() {
    restore();
    outputs_.begin(std::uint32_t(done()));
    if (done() == 0 && in_.cfg.run.val_before_train && !validation_.empty() && !stop_)
      outputs_.record(0, {{"val/loss", validate()}});
    while (done() < in_.total_steps && !stop_)
      step();
    if (done() < in_.total_steps)
      throw error(errc::cancelled, "stopped after step " + std::to_string(done()) + "; start it again to go on");
  }

private:
  std::int64_t done() const { return learner_.steps_done(); }

  void restore() {
    std::optional<std::filesystem::path> from;
    if (!in_.resume_only.empty())
      from = in_.resume_only;
    else
      from = newest_whole_checkpoint(in_.cfg.run_dir(), [this](const std::string& line) { outputs_.log(line); });
    if (from)
      learner_.load(*from);
  }

  void step() {
    const auto begin = clock::now();
    const auto next = std::uint32_t(done() + 1);
    outputs_.progress(next, false, 0, 1);
    std::vector<const sft_row*> rows;
    std::size_t tokens = 0;
    for (const auto i : sampler_.rows(next)) {
      rows.push_back(&in_.sft_train[i]);
      tokens += rows.back()->ids.size();
    }
    metric_map metrics = learner_.step(rows);
    const double seconds = seconds_since(begin);
    metrics["timing_s/step"] = seconds;
    metrics["perf/throughput"] = double(tokens * std::size_t(in_.cfg.learner.ppo_epochs)) / std::max(seconds, 1e-9);
    const std::int64_t freq = in_.cfg.run.test_freq;
    if (!validation_.empty() && freq > 0 && (done() % freq == 0 || done() == in_.total_steps))
      metrics["val/loss"] = validate();
    outputs_.record(next, metrics);
    const std::int64_t save = in_.cfg.run.save_freq;
    if (stop_ || done() == in_.total_steps || (save > 0 && done() % save == 0))
      write_checkpoint(in_.cfg.run_dir(), learner_, in_.cfg.model.path);
  }

  double validate() {
    outputs_.progress(std::uint32_t(done()), true, 0, 1);
    return learner_.loss(validation_);
  }

  const run_inputs& in_;
  run_outputs& outputs_;
  const std::atomic<bool>& stop_;
  compute where_;
  supervised_learner learner_;
  batch_sampler sampler_;
  std::vector<const sft_row*> validation_;
};

} // namespace

void run_supervised(const run_inputs& inputs, run_outputs& outputs) {
  const held_signals signals;
  std::atomic<bool> stop = false, over = false;
  std::exception_ptr failure;
  std::thread loop([&] {
    try {
      supervised_loop(inputs, outputs, stop).run();
    } catch (const std::exception&) {
      failure = std::current_exception();
    }
    over = true;
  });
  while (!over) {
    std::this_thread::sleep_for(20ms);
    const int signal = signals.take();
    if (signal == 0)
      continue;
    if (stop) {
      std::fprintf(stderr, "troupe: stopped at once by a second signal; the step under way is lost\n");
      std::_Exit(1);
    }
    outputs.log("signal " + std::to_string(signal) + ": the step under way ends, then the run stops");
    stop = true;
  }
  loop.join();
  if (failure)
    std::rethrow_exception(failure);
}

} // namespace troupe
