#pragma once
#include "experience/trajectory.hpp"
#include "model/causal_lm.hpp"
#include <chrono>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

namespace troupe {

/// One tensor of a manifest.
struct manifest_entry {
  std::string name;
  dtype type = dtype::f32;
  std::vector<std::int64_t> shape;
  std::uint64_t n_bytes = 0;
  bool trainable = false;
  std::uint64_t checksum = 0;           // of the bytes of `version`
};

/// What a holder of a version has.
struct manifest {
  weights_version version;
  std::vector<manifest_entry> entries;
};

/// 64-bit checksum: words mixed with their index and summed, so any order and any split gives the same value.
std::uint64_t weights_checksum(std::span<const std::byte> bytes);
manifest make_manifest(causal_lm& model, weights_version version);
std::string pack_manifest(const manifest& m);
manifest unpack_manifest(std::string_view bytes); // throws errc::bad_input

struct sync_result {
  weights_version version;
  std::uint64_t bytes = 0;              // that travelled
  double seconds = 0;
};

/// The learner's side: offers the current version to any number of receivers. `publish` blocks until no receiver reads the old one.
class weights_source {
public:
  virtual ~weights_source() = default;
  virtual std::string endpoint() const = 0;
  /// The model's values are now `version`; the caller changes none of them until the next `retract`.
  virtual void publish(weights_version version) = 0;
  /// The values are about to change: a fetch under way is cut off with an error to its receiver.
  virtual void retract() = 0;
};

/// The rollout's side. One thread; between two generation steps.
class weights_sink {
public:
  virtual ~weights_sink() = default;
  /// Brings the model to `version`: all tensors the first time (or after an incarnation's change when `everything`), later the trainable ones.
  /// Every tensor's checksum is compared. Throws errc::timeout (naming endpoint and tensor), errc::bad_input (checksum, manifest), errc::peer_lost.
  virtual sync_result fetch(weights_version version, std::chrono::milliseconds deadline) = 0;
};

/// One process: the sink's model is the source's; fetch checks the version and copies nothing.
std::unique_ptr<weights_source> make_shared_source(std::shared_ptr<causal_lm> model);
std::unique_ptr<weights_sink> make_shared_sink(weights_source& source, std::shared_ptr<causal_lm> model);

/// Processes: ZeroMQ. secret as in experience/channel.hpp.
std::unique_ptr<weights_source> make_zmq_source(std::shared_ptr<causal_lm> model, const std::string& host, const std::string& secret);
std::unique_ptr<weights_sink> make_zmq_sink(const std::string& endpoint, std::shared_ptr<causal_lm> model, const std::string& secret);

} // namespace troupe
