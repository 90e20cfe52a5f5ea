#include "actors/supervised_run.hpp"
#include "actors/gate.hpp"
#include "actors/parts.hpp"
#include "actors/rank_hall.hpp"
#include "actors/secret.hpp"
#include "actors/signals.hpp"
#include "actors/system.hpp"
#include "learner/checkpoint.hpp"
#include "learner/running_mean.hpp"
#include "learner/supervised.hpp"
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <functional>
#include <optional>
#include <thread>

namespace troupe {
namespace {

using namespace std::chrono_literals;
using clock = std::chrono::steady_clock;

/// The run's loop. Its own thread; `stop` is set by another.
class supervised_loop {
public:
  /// ranks: the processes that share the model, of which this is the first; null: this one has it alone.
  supervised_loop(const run_inputs& in, run_outputs& outputs, const std::atomic<bool>& stop, process_ranks* ranks = nullptr)
      : in_(in), outputs_(outputs), stop_(stop), where_(in.threads, in.which, in.gpu),
        learner_(in.cfg, ranks ? load_policy_part(in.cfg, *ranks, where_).whole : load_policy(in.cfg, false, where_, loading()),
                 load_teacher(in.cfg, where_, loading()), in.total_steps, where_),
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
  load_progress loading() const {
    return [&outputs = outputs_](std::uint64_t read, std::uint64_t all) { outputs.loading(read, all); };
  }
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

/// A signal asks for the end of the step under way, a second one for the end.
void heed(const held_signals& signals, std::atomic<bool>& stop, run_outputs& outputs, supervisor* workers) {
  const int signal = signals.take();
  if (signal == 0)
    return;
  if (stop) {
    if (workers != nullptr)
      workers->finish(0);
    std::fprintf(stderr, "troupe: stopped at once by a second signal; the step under way is lost\n");
    std::_Exit(1);
  }
  outputs.log("signal " + std::to_string(signal) + ": the step under way ends, then the run stops");
  stop = true;
}

/// The loop in a thread of its own; `meanwhile` is called until it is over. Rethrows its error.
void run_loop(const std::function<void()>& work, const std::function<void()>& meanwhile) {
  std::atomic<bool> over = false;
  std::exception_ptr failure;
  std::thread loop([&] {
    try {
      work();
    } catch (const std::exception&) {
      failure = std::current_exception();
    }
    over = true;
  });
  while (!over) {
    std::this_thread::sleep_for(20ms);
    meanwhile();
  }
  loop.join();
  if (failure)
    std::rethrow_exception(failure);
}

/// The first rank, here, and the others in processes. When one dies all others are replaced, and the steps since the newest
/// checkpoint are done again.
class supervised_ranks {
public:
  supervised_ranks(const run_inputs& in, run_outputs& outputs)
      : in_(in), outputs_(outputs), shape_(learner_layout(in.cfg).training),
        hall_(sys_, make_welcome(in), std::uint32_t(shape_.size()), [&outputs](const std::string& line) { outputs.log(line); }),
        entrance_(sys_, in, outputs, hall_.handle(), secret_) {
    entrance_.start_workers(n_local_workers(in.cfg, std::size_t(shape_.size()) - 1));
  }

  void run() {
    for (int deaths = 0; !attempt();) {
      outputs_.log(lost_);
      deaths = progress_ ? 1 : deaths + 1;
      if (deaths > most_deaths)
        throw error(errc::peer_lost, lost_ + " (" + std::to_string(deaths) + " workers in a row ended without finishing anything)");
      for (const auto pid : hall_.dismiss(true))
        entrance_.workers().end(pid);
    }
    hall_.dismiss(false);
    entrance_.workers().finish(10);
  }

private:
  static constexpr int most_deaths = 6;
  static constexpr std::chrono::seconds rank_deadline = 30min, join_deadline = 10min, news_deadline = 10s;

  /// False: a rank was lost, as lost_ says.
  bool attempt() {
    lost_.clear();
    progress_ = false;
    const auto world = std::make_shared<zmq_world>(0, shape_.size(), secret_, rank_deadline);
    hall_.open(world->endpoint());
    world->connect(wait_for_others());
    try {
      run_loop(
          [&] {
            process_ranks ranks(world, 0, shape_);
            supervised_loop(in_, counted_, stop_, &ranks).run();
          },
          [&] { watch(*world); });
      return true;
    } catch (const error& e) {
      const bool silent = e.code() == errc::peer_lost || e.code() == errc::timeout;
      for (const auto until = clock::now() + news_deadline; silent && lost_.empty() && !failure_ && clock::now() < until;) {
        std::this_thread::sleep_for(20ms); // the cause is on its way
        watch(*world);
      }
      if (failure_)
        throw *failure_;
      if (!silent)
        throw;
      if (lost_.empty())
        lost_ = e.what();
      return false;
    }
  }

  std::vector<std::string> wait_for_others() {
    for (const auto until = clock::now() + join_deadline; clock::now() < until; std::this_thread::sleep_for(20ms)) {
      heed(signals_, stop_, outputs_, &entrance_.workers());
      if (stop_)
        throw error(errc::cancelled, "stopped before a step began; start it again to go on");
      count_the_dead();
      for (; missing_ > 0; --missing_)
        entrance_.workers().start();
      const auto news = hall_.take();
      if (news.failure)
        throw *news.failure;
      if (!news.lost.empty())
        outputs_.log(news.lost);
      if (!news.peers.empty())
        return news.peers;
    }
    throw error(errc::timeout, "waited 600 s for the learner's " + std::to_string(shape_.size() - 1) + " other ranks to join");
  }

  void watch(zmq_world& world) {
    heed(signals_, stop_, outputs_, &entrance_.workers());
    count_the_dead(); // replaced when the attempt is over: until then a new one would join ranks that are given up
    const auto news = hall_.take();
    if (news.failure && !failure_)
      failure_ = news.failure;
    if (!news.lost.empty() && lost_.empty())
      lost_ = news.lost;
    if (failure_)
      world.abort(failure_->what());
    else if (!lost_.empty())
      world.abort(lost_);
  }

  void count_the_dead() {
    for (const auto& e : entrance_.workers().reap()) {
      hall_.exited(e.pid, e.how);
      ++missing_;
    }
  }

  /// Passes on, and notices that something was done.
  struct counting final : run_outputs {
    supervised_ranks& owner;
    explicit counting(supervised_ranks& o) : owner(o) {}
    void begin(std::uint32_t step) override { owner.outputs_.begin(step); }
    void record(std::uint32_t step, const metric_map& metrics) override {
      owner.progress_ = true;
      owner.outputs_.record(step, metrics);
    }
    void progress(std::uint32_t step, bool validation, std::uint32_t done, std::uint32_t wanted) override {
      owner.outputs_.progress(step, validation, done, wanted);
    }
    void log(const std::string& line) override { owner.outputs_.log(line); }
  };

  const run_inputs& in_;
  run_outputs& outputs_;
  counting counted_{*this};
  const mesh shape_;
  const held_signals signals_;
  const std::string secret_ = make_secret();
  system_config settings_{true};
  caf::actor_system sys_{settings_};
  rank_hall hall_;
  gate entrance_;
  std::atomic<bool> stop_ = false, progress_ = false;
  int missing_ = 0; // local workers that ended and have no successor yet
  std::string lost_;
  std::optional<error> failure_;
};

} // namespace

void run_supervised(const run_inputs& inputs, run_outputs& outputs) {
  if (inputs.cfg.placement.processes && learner_layout(inputs.cfg).training.size() > 1)
    return supervised_ranks(inputs, outputs).run();
  const held_signals signals;
  std::atomic<bool> stop = false;
  run_loop([&] { supervised_loop(inputs, outputs, stop).run(); }, [&] { heed(signals, stop, outputs, nullptr); });
}

} // namespace troupe
