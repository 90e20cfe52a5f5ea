#pragma once
#include "experience/trajectory.hpp"
#include "model/causal_lm.hpp"
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

namespace troupe {

struct sync_result {
  weights_version version;
  std::uint64_t bytes = 0; // that travelled
  double seconds = 0;
};

/// The learner's side: offers the current version to any number of receivers. One thread calls it.
class weights_source {
public:
  virtual ~weights_source() = default;
  virtual std::string endpoint() const = 0;
  /// The model's values are now `version`; the caller changes none of them until the next `retract`.
  virtual void publish(weights_version version) = 0;
  /// The values are about to change. Nothing reads them once it returns; a fetch under way ends in an error at its receiver.
  virtual void retract() = 0;
};

/// The rollout's side. One thread; between two generation steps.
class weights_sink {
public:
  virtual ~weights_sink() = default;
  /// Brings the model to `version`, waiting for the source to publish it: all tensors the first time, later the trainable ones.
  /// Every tensor's checksum is compared before the first value changes: after an error the model is as it was. (Over NCCL values are
  /// compared where they are to be: after an error the model is of no version until a later fetch succeeds.)
  /// Throws errc::timeout (naming endpoint and tensor), errc::bad_input (checksum, or a manifest that is not this model's, naming
  /// the tensor), errc::peer_lost (the source is gone, or has moved on to a later version).
  virtual sync_result fetch(weights_version version, std::chrono::milliseconds deadline) = 0;
  /// While the result lives the model's values are those of the last fetch; null: they have changed since, or are about to.
  virtual std::shared_ptr<void> hold() {
    return {this, [](void*) {}};
  }
  /// `call`: when values that were fetched are about to change by other hands; by the thread that changes them, which holds no lock.
  virtual void on_retract(const std::function<void()>& call) { (void)call; }
};

/// One process: the sink's model is the source's; fetch checks the version and copies nothing.
/// The sink may outlive the source; fetch then throws errc::peer_lost.
std::unique_ptr<weights_source> make_shared_source(std::shared_ptr<causal_lm> model);
/// source: from make_shared_source, else errc::bad_input; likewise when the models differ.
std::unique_ptr<weights_sink> make_shared_sink(weights_source& source, const std::shared_ptr<causal_lm>& model);

/// Processes: ZeroMQ, on a port that the system chooses, served by a thread of its own. secret as in experience/channel.hpp.
/// Throws errc::io.
std::unique_ptr<weights_source> make_zmq_source(std::shared_ptr<causal_lm> model, const std::string& host, const std::string& secret);
/// endpoint: the source's, or those of several with commas between, which hold parts of the model. The sink's model may hold parts
/// too, cut otherwise: what it needs of each source's tensors is brought, and no whole tensor is put together.
std::unique_ptr<weights_sink> make_zmq_sink(const std::string& endpoint, std::shared_ptr<causal_lm> model, const std::string& secret);

/// How long a source over NCCL waits.
struct nccl_limits {
  std::chrono::milliseconds transfer{60000}; // for all to join, and for a wait within: longer is slower than any link
  std::chrono::milliseconds window{200};     // for the other sinks that lack the version to ask for it too
};
/// Processes with a GPU each, or parts of one: NCCL, from `parameter::device_value` to `device_value`, the host's copies left as they are.
/// Sinks that ask for a version at about the same time get it by one broadcast. Whole tensors, cut alike on both sides.
/// The endpoint serves sinks of make_zmq_sink too (process_channel.cpp). Throws errc::unsupported where this program is built without CUDA.
std::unique_ptr<weights_source> make_nccl_source(std::shared_ptr<causal_lm> model, const std::string& host, const std::string& secret,
                                                 const nccl_limits& limits = {});
std::unique_ptr<weights_sink> make_nccl_sink(const std::string& endpoint, std::shared_ptr<causal_lm> model, const std::string& secret);
bool has_nccl();

/// Between processes, by weightsync.channel: "auto" is NCCL where the models of both ends are on GPUs that it reaches, else ZeroMQ.
/// Throws errc::unsupported when "nccl" is asked for and cannot be.
std::unique_ptr<weights_source> make_process_source(const std::string& channel, std::shared_ptr<causal_lm> model, const std::string& host,
                                                    const std::string& secret);
std::unique_ptr<weights_sink> make_process_sink(const std::string& channel, const std::string& endpoint, std::shared_ptr<causal_lm> model,
                                                const std::string& secret);

} // namespace troupe
