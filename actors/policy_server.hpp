#pragma once
#include "actors/run_texts.hpp"
#include "core/config.hpp"
#include "model/config.hpp"
#include "rollout/request_desk.hpp"
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

namespace troupe {

/// Answers requests of others while a run lasts (rollout.serve). Made in cli/, which knows HTTP.
class policy_server {
public:
  /// What is still under way is told that the run has ended.
  virtual ~policy_server() = default;
  /// New connections are refused; what is under way goes on. Any thread.
  virtual void stop_accepting() = 0;
  virtual const std::string& address() const = 0; // "http://127.0.0.1:8000"
};

/// What a policy server works with.
struct served_policy {
  const config& cfg;
  const model_config& model;
  run_texts texts;
  std::int64_t longest = 0; // tokens of prompt and answer
  std::shared_ptr<request_desk> desk;
};
/// Listens from then on. Throws errc::bad_config, naming rollout.serve, when it cannot.
using policy_server_maker = std::function<std::unique_ptr<policy_server>(const served_policy&)>;

/// Of requests at the generator: above the keys of a run's groups in training, below those in validation.
inline constexpr std::uint64_t first_served_id = std::uint64_t{1} << 62;
inline constexpr std::chrono::seconds drain_limit{30};   // for what is under way when the run is over
inline constexpr std::int64_t most_served_waiting = 256; // prompts without a first token

} // namespace troupe
