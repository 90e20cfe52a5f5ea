#include "actors/failure.hpp"
#include "actors/parts.hpp"
#include "actors/rank_link.hpp"
#include "actors/rank_weights.hpp"
#include "actors/run.hpp"
#include "actors/run_texts.hpp"
#include "actors/secret.hpp"
#include "actors/system.hpp"
#include "experience/channel.hpp"
#include "model/kernels/thread_pool.hpp"
#include "model/parallel/process_ranks.hpp"
#include "model/registry.hpp"
#include <algorithm>
#include <caf/io/all.hpp>
#include <csignal>
#include <sys/prctl.h>
#include <thread>
#include <tuple>
#include <unistd.h>

namespace troupe {
namespace {

using namespace std::chrono_literals;

constexpr auto join_deadline = 30s;
constexpr auto send_deadline = 60s;
constexpr auto report_deadline = 5s; // for the line about a failure to arrive
constexpr auto farewell_deadline = 1s;
constexpr auto rank_deadline = 30min; // the coordinator notices a rank's death; this ends what nobody noticed
constexpr auto end_deadline = 20s;    // for the coordinator to end what lost its other ranks

/// This process ends with the `train` that started it, however that ends.
void follow_parent(std::int64_t parent) {
  if (parent == 0)
    return;
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (getppid() != pid_t(parent))
    throw error(errc::peer_lost, "the run that started this worker is gone");
}

struct invitation {
  join_answer welcome;
  coordinator_actor coordinator;
};

invitation join(caf::actor_system& sys, caf::scoped_actor& self, const worker_options& options) {
  const auto [host, port] = parse_address(options.join, "--join");
  if (!is_loopback(host))
    throw error(errc::unsupported, "--join " + options.join + ": joining off loopback needs certificates, this version cannot");
  join_request request;
  request.protocol = protocol_hash();
  request.secret = options.secret.empty() ? read_secret(port) : options.secret;
  request.build = build_name();
  request.numerics = numerics_name(options.gpu >= 0);
  request.host = host_name();
  request.isa = name_of(options.which);
  request.pid = getpid();
  const auto door = sys.middleman().remote_actor<door_actor>(host == "localhost" ? "127.0.0.1" : host, port);
  if (!door && door.error() == caf::sec::unexpected_actor_messaging_interface)
    throw error(errc::bad_input, "--join " + options.join + ": the run there speaks another protocol; start the run's own program");
  if (!door)
    throw error(errc::io, "--join " + options.join + ": cannot connect (" + caf::to_string(door.error()) + ")");
  invitation out;
  std::optional<error> refused;
  self->request(*door, join_deadline, request)
      .receive(
          [&](const join_answer& welcome, const coordinator_actor& coordinator) {
            out = {welcome, coordinator};
          },
          [&](const caf::error& e) { refused = to_exception(e, ""); });
  if (refused)
    throw *refused;
  return out;
}

/// A worker's actor and what must live as long as it does.
struct work {
  caf::actor actor;
  std::unique_ptr<experience_receiver> receiver;
};

/// What a worker's actor is made of. ranks: those that share its model; null: it has the model alone.
struct workplace {
  const config& cfg;
  const std::string& secret;
  compute& where;
  process_ranks* ranks = nullptr;
  const policy_server_maker& serve;
};

std::shared_ptr<learner_setup> set_up_learner(const workplace& at) {
  const auto setup = std::make_shared<learner_setup>();
  setup->cfg = at.cfg;
  setup->total_steps = at.cfg.run.total_steps;
  setup->run_dir = at.cfg.run_dir();
  setup->where = &at.where;
  if (at.ranks == nullptr) {
    setup->policy = load_policy(at.cfg, false, at.where);
    setup->reference = load_reference(at.cfg, at.where);
    setup->source = make_process_source(at.cfg.weightsync.channel, setup->policy, "127.0.0.1", at.secret);
  } else {
    const rank_models policy = load_policy_part(at.cfg, *at.ranks, at.where);
    setup->policy = policy.whole;
    setup->reference = load_reference_part(at.cfg, *at.ranks, at.where);
    setup->source = make_rank_source(*at.ranks, policy.own, at.secret);
  }
  return setup;
}

work begin_learning(caf::actor_system& sys, const invitation& in, const worker_info& who, const workplace& at) {
  worker_info info = who;
  const auto setup = set_up_learner(at);
  setup->batches = std::make_shared<inbox<std::vector<scored_group>>>();
  work out;
  out.receiver = listen_experience("127.0.0.1", at.secret, 1, [batches = setup->batches](const std::string& bytes) {
    try {
      batches->push(unpack_scored(bytes));
    } catch (const error& e) { // a peer's fault must not end this process
      std::fprintf(stderr, "a message on the experience channel is dropped: %s\n", e.what());
    }
  });
  info.batch_endpoint = out.receiver->endpoint();
  const auto handle = sys.spawn<caf::detached>(learner_worker, setup);
  out.actor = caf::actor_cast<caf::actor>(handle);
  caf::anon_send(in.coordinator, info, handle);
  return out;
}

using sink_maker = std::function<std::unique_ptr<weights_sink>(const std::string& endpoint)>;

/// The rollout's model, weights zero, and what fills it.
std::pair<std::shared_ptr<causal_lm>, sink_maker> set_up_rollout(const model_config& model, const workplace& at) {
  if (at.ranks == nullptr) {
    const auto policy = make_rollout_model(at.cfg, model, at.where);
    return {policy, [policy, secret = at.secret, channel = at.cfg.weightsync.channel](const std::string& endpoint) {
              return make_process_sink(channel, endpoint, policy, secret);
            }};
  }
  const rank_models policy = make_rollout_part(at.cfg, model, *at.ranks, at.where);
  const auto fetcher = std::make_shared<rank_fetcher>(*at.ranks, policy.own, at.secret);
  return {policy.whole, [fetcher](const std::string& endpoint) { return make_rank_sink(fetcher, endpoint); }};
}

/// The first rollout answers others, where rollout.serve says so.
void begin_serving(rollout_setup& setup, const worker_info& info, const model_config& model, const run_texts& texts, const workplace& at) {
  if (at.cfg.rollout.serve.empty() || info.rank != 0)
    return;
  setup.desk = std::make_shared<request_desk>(most_served_waiting, first_served_id);
  setup.server = at.serve({at.cfg, model, texts, longest_sequence(at.cfg, model), setup.desk});
  std::printf("serving %s on %s\n", at.cfg.run.name.c_str(), setup.server->address().c_str());
  std::fflush(stdout);
}

work begin_rolling(caf::actor_system& sys, const invitation& in, const worker_info& info, const workplace& at) {
  const model_config model = parse_model_config(in.welcome.model_config_json, "the run's config.json");
  const auto setup = std::make_shared<rollout_setup>();
  setup->cfg = at.cfg;
  setup->end_tokens = model.eos_token_ids;
  std::tie(setup->model, setup->make_sink) = set_up_rollout(model, at);
  if (needs_texts(at.cfg)) {
    caf::scoped_actor asking{sys};
    const run_texts texts = bring_texts(asking, in.coordinator);
    setup->tok = texts.tok;
    begin_serving(*setup, info, model, texts, at);
  }
  setup->options = make_generator_options(at.cfg, model, model.eos_token_ids, at.where);
  const std::shared_ptr<experience_sender> sender = connect_experience(in.welcome.experience_endpoint, at.secret);
  setup->outlet = [sender](const trajectory_group& group) {
    sender->send(pack_group(group), send_deadline);
    sender->flush(send_deadline);
  };
  const auto handle = sys.spawn<caf::detached>(rollout, setup, info, in.coordinator);
  caf::anon_send(in.coordinator, info, handle);
  work out;
  out.actor = caf::actor_cast<caf::actor>(handle);
  return out;
}

/// Until the actor or the run ends: 0 when the run let it go.
int wait_for_end(caf::scoped_actor& self, const invitation& in, const work& mine) {
  self->monitor(mine.actor);
  self->monitor(in.coordinator);
  int code = -1;
  bool run_is_gone = false;
  const auto on_down = [&](const caf::down_msg& d) {
    if (d.source != mine.actor.address())
      run_is_gone = true;
    else
      code = d.reason == caf::exit_reason::user_shutdown ? 0 : 1;
  };
  while (code < 0 && !run_is_gone)
    self->receive(on_down);
  if (code < 0) // a run that has ended let its workers go just before
    self->receive(
        on_down, caf::after(farewell_deadline) >> [] {});
  if (code < 0) {
    std::fprintf(stderr, "troupe: the run is gone: this worker ends\n");
    std::_Exit(1); // whatever the actor is at
  }
  if (code != 0) // the run hears of it first, and ends
    self->receive([](const caf::down_msg&) {}, caf::after(report_deadline) >> [] {});
  return code;
}

[[noreturn]] void end_with(int code) {
  std::fflush(nullptr);
  std::_Exit(code); // the actor may still hold the model: nothing is left to tidy up
}

void work_alone(caf::actor_system& sys, caf::scoped_actor& self, const invitation& in, const worker_info& info, const workplace& at) {
  const auto begin = info.role == worker_role::learner ? &begin_learning : &begin_rolling;
  const work mine = begin(sys, in, info, at);
  end_with(wait_for_end(self, in, mine));
}

/// The first rank works as if it were alone, the others follow it. Returns by an exception or not at all: see rank_link.
void work_as_rank(caf::actor_system& sys, caf::scoped_actor& self, const invitation& in, const worker_info& info, const workplace& at) {
  process_ranks& ranks = *at.ranks;
  if (ranks.leads()) {
    const auto begin = info.role == worker_role::learner ? &begin_learning : &begin_rolling;
    const work mine = begin(sys, in, info, at);
    self->monitor(mine.actor);
    self->receive([](const caf::down_msg&) {});
    std::this_thread::sleep_for(end_deadline); // its error has gone to the coordinator
    end_with(1);
  }
  if (info.role == worker_role::learner && at.cfg.run.task != run_task::rl) {
    const rank_models policy = load_policy_part(at.cfg, ranks, at.where);
    const trainee part(at.cfg, policy.whole, at.cfg.run.total_steps, at.where);
    ranks.serve();
  }
  if (info.role == worker_role::learner) {
    const auto setup = set_up_learner(at);
    const trainee part(at.cfg, setup->policy, setup->total_steps, at.where);
    ranks.serve();
  }
  [[maybe_unused]] const auto rollout = set_up_rollout(parse_model_config(in.welcome.model_config_json, "the run's config.json"), at);
  ranks.serve();
}

/// Takes part in finding the ranks that share the worker's model, then in their work.
class rank_work {
public:
  rank_work(caf::actor_system& sys, caf::scoped_actor& self, const invitation& in, const worker_options& options, const std::string& secret)
      : sys_(sys), self_(self), in_(in), options_(options), secret_(secret), n_(int(in.welcome.ranks)),
        rank_(int(in.welcome.rank % in.welcome.ranks)) {}

  void run(const config& cfg, worker_info info) {
    const auto world = std::make_shared<zmq_world>(rank_, n_, secret_, rank_deadline);
    info.rank_endpoint = world->endpoint();
    link_ = sys_.spawn(rank_link, in_.coordinator, caf::actor_cast<caf::strong_actor_ptr>(self_), failing_);
    self_->send(in_.coordinator, info, link_);
    self_->receive([&](const rank_peers& peers) { world->connect(peers.endpoints); });
    const mesh shape = info.role == worker_role::learner ? learner_layout(cfg).training : mesh{1, 1, n_};
    process_ranks ranks(world, rank_, shape);
    compute where(threads(), options_.which, options_.gpu);
    try {
      work_as_rank(sys_, self_, in_, info, {cfg, secret_, where, &ranks, options_.serve});
    } catch (const error& e) {
      if (e.code() == errc::peer_lost || e.code() == errc::timeout) // the coordinator knows of it, or is told by who has the cause
        std::this_thread::sleep_for(end_deadline);
      *failing_ = true;
      self_->monitor(link_); // it ends when the run has heard of it
      world_of_failure_ = world;
      throw;
    }
  }

private:
  /// The ranks share the machine.
  int threads() const {
    if (options_.threads > 0)
      return options_.threads;
    return std::max(1, compute(0, options_.which).threads() / n_);
  }

  caf::actor_system& sys_;
  caf::scoped_actor& self_;
  const invitation& in_;
  const worker_options& options_;
  const std::string& secret_;
  const int n_, rank_;
  const std::shared_ptr<std::atomic<bool>> failing_ = std::make_shared<std::atomic<bool>>(false);
  rank_actor link_;
  std::shared_ptr<zmq_world> world_of_failure_; // the others wait in it while the run hears of the cause
};

} // namespace

int run_worker(const worker_options& options) {
  follow_parent(options.parent);
  system_config settings(true);
  caf::actor_system sys{settings};
  caf::scoped_actor self{sys};
  const invitation in = join(sys, self, options);
  const config cfg = parse_config(in.welcome.config_toml, "the run's configuration");
  const std::string secret = options.secret.empty() ? read_secret(parse_address(options.join, "--join").second) : options.secret;
  const worker_info info{in.welcome.role, in.welcome.rank, host_name(), getpid(), ""};
  rank_work ranks(sys, self, in, options, secret);
  try {
    if (in.welcome.ranks > 1)
      ranks.run(cfg, info);
    compute where(options.threads, options.which, options.gpu);
    work_alone(sys, self, in, info, {cfg, secret, where, nullptr, options.serve});
    return 0;
  } catch (const error& e) {
    self->send(in.coordinator, worker_failed{info.role, info.rank, info.host, e.what(), std::uint8_t(e.code())});
    self->monitor(in.coordinator);
    self->receive([](const caf::down_msg&) {}, caf::after(report_deadline) >> [] {});
    throw;
  }
}

} // namespace troupe
