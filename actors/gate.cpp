#include "actors/gate.hpp"
#include "actors/coordinator.hpp"
#include "actors/parts.hpp"
#include "actors/system.hpp"
#include <caf/io/all.hpp>
#include <charconv>
#include <unistd.h>

namespace troupe {
namespace {

/// The configuration as workers get it: nothing left to resolve.
config for_workers(const run_inputs& in) {
  config c = in.cfg;
  c.run.total_steps = in.total_steps;
  c.run.total_epochs = 0;
  c.run.dir = std::filesystem::absolute(in.cfg.run_dir()).string();
  c.model.path = std::filesystem::absolute(c.model.path).string();
  if (!c.reference.path.empty())
    c.reference.path = std::filesystem::absolute(c.reference.path).string();
  return c;
}

std::uint16_t open_door(caf::actor_system& sys, const door_actor& door, const std::string& listen) {
  const auto [host, port] = parse_address(listen, "placement.listen");
  const auto got = sys.middleman().publish(door, port, host == "localhost" ? "127.0.0.1" : host.c_str(), true);
  if (!got)
    throw error(errc::bad_config, "placement.listen: port " + std::to_string(port) + " of " + host +
                                      " cannot be listened on, it is in use or not allowed; name another, or 0 for any");
  return *got;
}

} // namespace

join_answer make_welcome(const run_inputs& in) {
  join_answer out;
  out.config_toml = to_toml(for_workers(in));
  model_config model = in.model;
  model.eos_token_ids = in.end_tokens;
  out.model_config_json = to_config_json(model, compute_type(in.cfg));
  return out;
}

std::size_t n_local_workers(const config& cfg, std::size_t all) {
  const std::string& text = cfg.placement.local_workers;
  std::size_t n = 0;
  return text == "all" || std::from_chars(text.data(), text.data() + text.size(), n).ec != std::errc{} ? all : n;
}

gate::gate(caf::actor_system& sys, const run_inputs& in, run_outputs& outputs, const coordinator_actor& coordinator,
           const std::string& secret)
    : entrance_(sys.spawn(door, coordinator, secret, numerics_name(in.gpu >= 0))) {
  const std::uint16_t port = open_door(sys, entrance_, in.cfg.placement.listen);
  kept_ = std::make_unique<secret_file>(port, secret);
  const std::string address = parse_address(in.cfg.placement.listen, "placement.listen").first + ':' + std::to_string(port);
  outputs.log("workers join with: troupe worker --join " + address);
  std::vector<std::string> arguments = {"worker", "--join", address, "--isa", std::string(name_of(in.which))};
  arguments.insert(arguments.end(), {"--device", in.gpu >= 0 ? "cuda:" + std::to_string(in.gpu) : "cpu"});
  if (in.threads > 0)
    arguments.insert(arguments.end(), {"--threads", std::to_string(in.threads)});
  const std::vector<std::string> environment = {"TROUPE_SECRET=" + secret, "TROUPE_PARENT=" + std::to_string(getpid())};
  std::vector<std::string> defaults;
  if (in.gpu >= 0) // they share the GPU, of which NCCL wants to be told
    defaults = {"NCCL_MULTI_RANK_GPU_ENABLE=1", "NCCL_NVLS_ENABLE=0", "NCCL_MAX_CTAS=8"};
  workers_ = std::make_unique<supervisor>(arguments, environment, defaults, (in.cfg.run_dir() / "log.txt").string());
}

gate::~gate() { caf::anon_send_exit(entrance_, caf::exit_reason::user_shutdown); }

void gate::start_workers(std::size_t n) {
  for (std::size_t i = 0; i < n; ++i)
    workers_->start();
}

} // namespace troupe
