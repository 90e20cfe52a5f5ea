#include "cli/run_server.hpp"
#include "actors/system.hpp"
#include "cli/serve_api.hpp"
#include "core/error.hpp"
#include <exception>
#include <optional>
#include <thread>

namespace troupe {
namespace {

class run_server : public policy_server {
public:
  run_server(const served_policy& what, const std::string& api_key)
      : desk_(what.desk), texts_(what.texts),
        api_(options_for(what, api_key), *desk_,
             {texts_.tok.get(), texts_.chat.get(), {what.model.vocab_size, what.longest}, most_served_waiting, fresh_seeds(std::nullopt)},
             texts_.tok) {
    check_run_server(what.cfg, api_key);
    const auto [host, port] = parse_address(what.cfg.rollout.serve, "rollout.serve");
    try {
      address_ = "http://" + host + ":" + std::to_string(api_.bind(host, port));
    } catch (const error& e) {
      throw error(errc::bad_config, std::string("rollout.serve: ") + e.what());
    }
    thread_ = std::thread([this] { api_.run(); });
  }
  ~run_server() override {
    stop_accepting();
    desk_->close(std::make_exception_ptr(error(errc::cancelled, "the run has ended; ask again elsewhere")), false);
    thread_.join();
  }
  void stop_accepting() override {
    if (!std::exchange(stopped_, true))
      api_.stop_accepting();
  }
  const std::string& address() const override { return address_; }

private:
  static serve_options options_for(const served_policy& what, const std::string& api_key) {
    serve_options o;
    o.model_name = what.cfg.run.name;
    o.fingerprint = std::string("troupe-0.1.0-") + (what.cfg.model.dtype == compute_dtype::bfloat16 ? "bfloat16" : "float32");
    o.of_a_run = true;
    o.api_key = api_key;
    o.max_queue = most_served_waiting;
    o.http.max_connections = std::size_t(what.cfg.rollout.max_num_seqs + most_served_waiting) + 64;
    return o;
  }

  const std::shared_ptr<request_desk> desk_;
  const run_texts texts_;
  serve_api api_;
  std::string address_;
  bool stopped_ = false;
  std::thread thread_;
};

} // namespace

void check_run_server(const config& cfg, const std::string& api_key) {
  if (cfg.rollout.serve.empty() || !api_key.empty() || is_loopback(parse_address(cfg.rollout.serve, "rollout.serve").first))
    return;
  throw error(errc::bad_config, "rollout.serve = \"" + cfg.rollout.serve +
                                    "\" can be reached from other machines: set TROUPE_API_KEY to a key that requests must bring, or "
                                    "listen on 127.0.0.1");
}

policy_server_maker make_run_server(const std::string& api_key) {
  return [api_key](const served_policy& what) -> std::unique_ptr<policy_server> { return std::make_unique<run_server>(what, api_key); };
}

} // namespace troupe
