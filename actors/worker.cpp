#include "actors/failure.hpp"
#include "actors/parts.hpp"
#include "actors/run.hpp"
#include "actors/secret.hpp"
#include "actors/system.hpp"
#include "experience/channel.hpp"
#include "model/registry.hpp"
#include <caf/io/all.hpp>
#include <csignal>
#include <sys/prctl.h>
#include <unistd.h>

namespace troupe {
namespace {

using namespace std::chrono_literals;

constexpr auto join_deadline = 30s;
constexpr auto send_deadline = 60s;
constexpr auto report_deadline = 5s; // for the line about a failure to arrive

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
  request.numerics = numerics_name();
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

work begin_learning(caf::actor_system& sys, const invitation& in, const config& cfg, const worker_info& who, compute& where,
                    const std::string& secret) {
  worker_info info = who;
  const auto setup = std::make_shared<learner_setup>();
  setup->cfg = cfg;
  setup->total_steps = cfg.run.total_steps;
  setup->run_dir = cfg.run_dir();
  setup->policy = load_policy(cfg, false, where);
  setup->reference = load_reference(cfg, where);
  setup->where = &where;
  setup->source = make_zmq_source(setup->policy, "127.0.0.1", secret);
  setup->batches = std::make_shared<inbox<std::vector<scored_group>>>();
  work out;
  out.receiver = listen_experience("127.0.0.1", secret, 1, [batches = setup->batches](const std::string& bytes) {
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

work begin_rolling(caf::actor_system& sys, const invitation& in, const config& cfg, const worker_info& info, compute& where,
                   const std::string& secret) {
  const model_config model = parse_model_config(in.welcome.model_config_json, "the run's config.json");
  const auto setup = std::make_shared<rollout_setup>();
  setup->cfg = cfg;
  setup->end_tokens = model.eos_token_ids;
  setup->model = make_rollout_model(cfg, model, where);
  setup->options = make_generator_options(cfg, model, model.eos_token_ids, where);
  setup->make_sink = [policy = setup->model, secret](const std::string& endpoint) { return make_zmq_sink(endpoint, policy, secret); };
  const std::shared_ptr<experience_sender> sender = connect_experience(in.welcome.experience_endpoint, secret);
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
  const auto on_down = [&](const caf::down_msg& d) {
    const bool let_go = d.source == mine.actor.address() && d.reason == caf::exit_reason::user_shutdown;
    code = let_go ? 0 : 1;
    if (d.source != mine.actor.address()) {
      std::fprintf(stderr, "troupe: the run is gone: this worker ends\n");
      std::_Exit(1); // whatever the actor is at
    }
  };
  while (code < 0)
    self->receive(on_down);
  if (code != 0) // the run hears of it first, and ends
    self->receive([](const caf::down_msg&) {}, caf::after(report_deadline) >> [] {});
  return code;
}

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
  try {
    compute where(options.threads, options.which);
    const auto begin = info.role == worker_role::learner ? &begin_learning : &begin_rolling;
    const work mine = begin(sys, in, cfg, info, where, secret);
    const int code = wait_for_end(self, in, mine);
    std::fflush(nullptr);
    std::_Exit(code); // the actor may still hold the model: nothing is left to tidy up
  } catch (const error& e) {
    self->send(in.coordinator, worker_failed{info.role, info.rank, info.host, e.what(), std::uint8_t(e.code())});
    self->monitor(in.coordinator);
    self->receive([](const caf::down_msg&) {}, caf::after(report_deadline) >> [] {});
    throw;
  }
}

} // namespace troupe
