#include "actors/run.hpp"
#include "actors/coordinator.hpp"
#include "actors/gate.hpp"
#include "actors/parts.hpp"
#include "actors/reward.hpp"
#include "actors/run_texts.hpp"
#include "actors/secret.hpp"
#include "actors/signals.hpp"
#include "actors/supervised_run.hpp"
#include "actors/system.hpp"
#include "actors/weight_sync.hpp"
#include "experience/channel.hpp"
#include <algorithm>
#include <caf/io/all.hpp>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <optional>
#include <unistd.h>

namespace troupe {
namespace {

using namespace std::chrono_literals;

constexpr auto send_deadline = 60s;
constexpr int experience_credits = 64;

/// What the coordinator says, for the main thread; results go straight to `outputs`.
class control : public run_host {
public:
  struct events {
    std::vector<std::int64_t> to_end;
    std::optional<error> end;
    bool over = false;
  };

  explicit control(run_outputs& outputs) : outputs_(outputs) {}
  void begin(std::uint32_t step) override { outputs_.begin(step); }
  void record(std::uint32_t step, const metric_map& metrics) override { outputs_.record(step, metrics); }
  void progress(std::uint32_t step, bool validation, std::uint32_t done, std::uint32_t wanted) override {
    outputs_.progress(step, validation, done, wanted);
  }
  void log(const std::string& line) override { outputs_.log(line); }
  void end_process(std::int64_t pid) override {
    notify([&] { events_.to_end.push_back(pid); });
  }
  void ended(errc code, const std::string& text) override {
    notify([&] {
      events_.over = true;
      if (code != errc{})
        events_.end = error(code, text);
    });
  }
  events wait(std::chrono::milliseconds at_most) {
    std::unique_lock lock(mutex_);
    changed_.wait_for(lock, at_most, [&] { return events_.over || !events_.to_end.empty(); });
    events out = events_;
    events_.to_end.clear();
    return out;
  }

private:
  template <class F>
  void notify(F change) {
    const std::lock_guard lock(mutex_);
    change();
    changed_.notify_all();
  }

  run_outputs& outputs_;
  std::mutex mutex_;
  std::condition_variable changed_;
  events events_;
};

/// Ends the actors that a run made, however it ends.
struct actor_guard {
  std::vector<caf::actor> actors;
  ~actor_guard() {
    for (const auto& a : actors)
      caf::anon_send_exit(a, caf::exit_reason::user_shutdown);
  }
  template <class Handle>
  const Handle& keep(const Handle& h) {
    actors.push_back(caf::actor_cast<caf::actor>(h));
    return h;
  }
};

std::size_t credits_of(const config& cfg) {
  const bool validates = !cfg.data.val_files.empty();
  const std::int64_t n = validates ? std::min(cfg.rollout.n, cfg.validation.n) : cfg.rollout.n;
  return std::size_t(std::max<std::int64_t>(1, cfg.rollout.max_num_seqs / n));
}

run_plan make_plan(const run_inputs& in) {
  const config& c = in.cfg;
  run_plan p;
  p.total_steps = std::uint32_t(in.total_steps);
  p.save_freq = std::uint32_t(c.run.save_freq);
  p.test_freq = std::uint32_t(c.run.test_freq);
  p.val_before_train = c.run.val_before_train;
  p.batch_size = std::uint32_t(c.data.train_batch_size);
  p.validation_size = std::uint32_t(in.val_rows.size());
  p.validation_n = std::size_t(c.validation.n);
  p.max_response_length = c.data.max_response_length;
  p.rollouts = std::size_t(c.rollout.actors);
  p.credits = credits_of(c);
  p.restarts = c.placement.processes;
  p.resume_only = in.resume_only;
  return p;
}

/// The inputs of the actors of this process.
struct central_parts {
  std::shared_ptr<control> host;
  std::shared_ptr<reward_setup> reward = std::make_shared<reward_setup>();
  coordinator_setup coordinator;

  central_parts(const run_inputs& in, run_outputs& outputs) : host(std::make_shared<control>(outputs)) {
    const auto data = std::make_shared<run_data>(in.cfg, in.train_rows, in.val_rows);
    reward->cfg = in.cfg;
    reward->data = data;
    reward->tok = in.tok;
    reward->function = make_reward(in.cfg.reward);
    reward->run_dir = in.cfg.run_dir();
    reward->groups = std::make_shared<inbox<trajectory_group>>();
    coordinator.plan = make_plan(in);
    coordinator.data = data;
    coordinator.host = host;
    coordinator.welcome = make_welcome(in);
    if (!in.cfg.rollout.serve.empty())
      coordinator.leave_deadline += drain_limit;
  }
  coordinator_actor spawn(caf::actor_system& sys) {
    coordinator.make_reward = [&sys, setup = reward](const coordinator_actor& c) {
      return sys.spawn<caf::detached>(troupe::reward, setup, c);
    };
    coordinator.make_weight_sync = [&sys](const coordinator_actor& c) { return sys.spawn(weight_sync, c); };
    return sys.spawn(troupe::coordinator, coordinator);
  }
};

/// Waits for the end of the run: takes signals, ends and replaces workers. `workers` is null in one process.
void watch(control& host, const coordinator_actor& coordinator, const held_signals& signals, supervisor* workers) {
  int stops = 0;
  for (;;) {
    const auto events = host.wait(50ms);
    if (const int signal = signals.take(); signal != 0) {
      if (++stops > 1) {
        if (workers != nullptr)
          workers->finish(0);
        std::fprintf(stderr, "troupe: stopped at once by a second signal; the step under way is lost\n");
        std::_Exit(1);
      }
      host.log("signal " + std::to_string(signal) + ": the step under way ends, then the run stops");
      caf::anon_send(coordinator, stop_run{std::uint32_t(signal)});
    }
    if (workers != nullptr) {
      for (const auto pid : events.to_end)
        workers->end(pid);
      for (const auto& e : workers->reap()) {
        caf::anon_send(coordinator, worker_exited{e.pid, e.how});
        if (!events.over && !e.let_go)
          workers->start();
      }
    }
    if (!events.over)
      continue;
    if (workers != nullptr)
      workers->finish(10);
    if (events.end)
      throw *events.end;
    return;
  }
}

/// Listens for requests of others, which wait until the rollout is there. Nothing without rollout.serve.
void begin_serving(const run_inputs& in, rollout_setup& rollout, run_outputs& outputs) {
  if (in.cfg.rollout.serve.empty())
    return;
  rollout.desk = std::make_shared<request_desk>(most_served_waiting, first_served_id);
  rollout.server = in.serve({in.cfg, in.model, {in.tok, in.chat}, longest_sequence(in.cfg, in.model), rollout.desk});
  outputs.log("serving " + in.cfg.run.name + " on " + rollout.server->address());
}

void run_in_one_process(const run_inputs& in, run_outputs& outputs) {
  const held_signals signals;
  const auto rolling = std::make_shared<rollout_setup>();
  begin_serving(in, *rolling, outputs);
  compute where(in.threads, in.which, in.gpu);
  const load_progress loading = [&](std::uint64_t read, std::uint64_t all) { outputs.loading(read, all); };
  const auto model = load_policy(in.cfg, true, where, loading);
  const auto reference = load_reference(in.cfg, where, loading);
  central_parts parts(in, outputs);
  const std::shared_ptr<weights_source> source = make_shared_source(model);
  const auto batches = std::make_shared<inbox<std::vector<scored_group>>>();
  parts.reward->deliver = [batches](const std::string&, std::vector<scored_group> groups) { batches->push(std::move(groups)); };
  if (in.cfg.rollout.actors > 1 || rolling->desk)
    rolling->turn = std::make_shared<std::mutex>();
  const auto learning = std::make_shared<learner_setup>(learner_setup{in.cfg, in.total_steps, in.cfg.run_dir(), model, reference, &where,
                                                                      source, batches, rolling->desk ? rolling->turn : nullptr});
  rolling->cfg = in.cfg;
  rolling->end_tokens = in.end_tokens;
  rolling->model = model;
  rolling->tok = in.tok;
  rolling->options = make_generator_options(in.cfg, in.model, in.end_tokens, where);
  rolling->make_sink = [source, model](const std::string&) { return make_shared_sink(*source, model); };
  rolling->outlet = [groups = parts.reward->groups](trajectory_group g) { groups->push(std::move(g)); };
  rolling->sleeps = in.gpu < 0; // on a GPU the graphs of the passes name the cache

  system_config settings(false);
  caf::actor_system sys{settings};
  actor_guard guard;
  const auto coordinator = guard.keep(parts.spawn(sys));
  worker_info info{worker_role::learner, 0, host_name(), getpid(), ""};
  const auto learner = guard.keep(sys.spawn<caf::detached>(learner_worker, learning));
  caf::anon_send(coordinator, info, learner);
  info.role = worker_role::rollout;
  for (; std::int64_t{info.rank} < in.cfg.rollout.actors; ++info.rank) {
    const auto setup = std::make_shared<rollout_setup>(*rolling);
    if (info.rank == 0) { // the one that serves
      rolling->desk = nullptr;
      rolling->server = nullptr;
    }
    caf::anon_send(coordinator, info, guard.keep(sys.spawn<caf::detached>(rollout, setup, info, coordinator)));
  }
  watch(*parts.host, coordinator, signals, nullptr);
}

/// The reward's way to the learner. `deliver`: the reward's thread; gives up as soon as the learner is known to be gone.
class batch_link {
public:
  explicit batch_link(std::string secret) : secret_(std::move(secret)) {}
  void set_current(const std::string& endpoint) {
    const std::lock_guard lock(mutex_);
    current_ = endpoint;
  }
  void deliver(const std::string& endpoint, const std::string& bytes) {
    if (endpoint != connected_ || !sender_) {
      sender_ = connect_experience(endpoint, secret_);
      connected_ = endpoint;
    }
    sender_->send(bytes, send_deadline);
    for (auto waited = 0ms;; waited += slice) {
      try {
        return sender_->flush(slice);
      } catch (const error& e) {
        if (e.code() != errc::timeout || waited >= send_deadline)
          throw;
      }
      if (!is_current(endpoint)) {
        sender_.reset();
        throw error(errc::peer_lost, "the learner at " + endpoint + " is gone");
      }
    }
  }

private:
  static constexpr std::chrono::milliseconds slice = 200ms;
  bool is_current(const std::string& endpoint) {
    const std::lock_guard lock(mutex_);
    return current_ == endpoint;
  }
  const std::string secret_;
  std::unique_ptr<experience_sender> sender_;
  std::string connected_;
  std::mutex mutex_;
  std::string current_;
};

void run_in_processes(const run_inputs& in, run_outputs& outputs) {
  const held_signals signals;
  central_parts parts(in, outputs);
  const std::string secret = make_secret();
  batch_link link(secret);
  parts.coordinator.learner_ranks = std::uint32_t(learner_layout(in.cfg).training.size());
  parts.coordinator.rollout_ranks = std::uint32_t(in.cfg.rollout.tensor_parallel_size);
  parts.coordinator.learner_at = [&link](const std::string& endpoint) { link.set_current(endpoint); };
  if (needs_texts(in.cfg))
    parts.coordinator.texts = std::make_shared<const std::string>(pack_texts(in.cfg.model.path, in.template_time));
  parts.reward->deliver = [&link](const std::string& endpoint, const std::vector<scored_group>& groups) {
    link.deliver(endpoint, pack_scored(groups));
  };
  system_config settings(true);
  caf::actor_system sys{settings};
  const auto groups = parts.reward->groups;
  const auto receiver = listen_experience("127.0.0.1", secret, experience_credits, [groups, &outputs](const std::string& bytes) {
    try {
      groups->push(unpack_group(bytes));
    } catch (const error& e) { // a peer's fault must not end this process
      outputs.log(std::string("a message on the experience channel is dropped: ") + e.what());
    }
  });
  parts.coordinator.welcome.experience_endpoint = receiver->endpoint();
  actor_guard guard;
  const auto coordinator = guard.keep(parts.spawn(sys));
  gate entrance(sys, in, outputs, coordinator, secret);
  entrance.start_workers(
      n_local_workers(in.cfg, parts.coordinator.learner_ranks + std::size_t(in.cfg.rollout.actors) * parts.coordinator.rollout_ranks));
  watch(*parts.host, coordinator, signals, &entrance.workers());
}

} // namespace

void check_placement(const config& cfg) {
  const std::string& channel = cfg.weightsync.channel;
  const bool processes = cfg.placement.processes;
  if (processes && channel == "shared")
    throw error(errc::bad_config,
                "weightsync.channel = \"shared\" needs one process; with placement.processes = true use \"auto\" or \"zmq\"");
  if (!processes && (channel == "zmq" || channel == "nccl"))
    throw error(errc::bad_config,
                "weightsync.channel = \"" + channel + "\" needs placement.processes = true; in one process use \"auto\" or \"shared\"");
  if (channel == "nccl" && !has_nccl())
    throw error(errc::unsupported, "weightsync.channel = \"nccl\": this program is built without CUDA; use \"auto\", or ./dev build cuda");
  if (channel == "nccl" && (learner_layout(cfg).training.size() > 1 || cfg.rollout.tensor_parallel_size > 1))
    throw error(errc::unsupported, "weightsync.channel = \"nccl\": this version can do models of one rank; use \"auto\" or \"zmq\"");
  if (!processes)
    return;
  const auto [host, port] = parse_address(cfg.placement.listen, "placement.listen");
  if (!is_loopback(host))
    throw error(errc::unsupported, "placement.listen = \"" + cfg.placement.listen +
                                       "\": listening off loopback needs certificates, this version cannot; use 127.0.0.1:PORT");
  constexpr std::int64_t longest = 15000; // tokens: a prompt is one control message, and those stay under 64 KiB
  if (cfg.data.max_prompt_length > longest)
    throw error(errc::unsupported, "data.max_prompt_length = " + std::to_string(cfg.data.max_prompt_length) +
                                       ": with placement.processes = true this version can do prompts up to " + std::to_string(longest) +
                                       " tokens");
}

void check_listen(const config& cfg) {
  if (!cfg.rollout.serve.empty()) {
    const auto [host, port] = parse_address(cfg.rollout.serve, "rollout.serve");
    check_port(host, port, "rollout.serve");
  }
  if (!cfg.placement.processes)
    return;
  const auto [host, port] = parse_address(cfg.placement.listen, "placement.listen");
  check_port(host, port, "placement.listen");
}

void run_training(const run_inputs& inputs, run_outputs& outputs) {
  if (inputs.cfg.run.task != run_task::rl)
    run_supervised(inputs, outputs);
  else if (inputs.cfg.placement.processes)
    run_in_processes(inputs, outputs);
  else
    run_in_one_process(inputs, outputs);
}

} // namespace troupe
