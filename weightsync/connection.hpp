#pragma once
#include "core/dtype.hpp"
#include "core/error.hpp"
#include "core/zmq_util.hpp"
#include "experience/trajectory.hpp"
#include <chrono>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace troupe {

/// A sink's connection to a source, for one fetch: whatever an earlier one left under way ended with it. One thread.
class source_connection {
public:
  /// Throws errc::bad_input for what is no endpoint.
  source_connection(std::string endpoint, weights_version version, std::chrono::milliseconds deadline);
  ~source_connection();
  source_connection(const source_connection&) = delete;
  source_connection& operator=(const source_connection&) = delete;

  zmq::socket_t& socket() { return socket_; }
  /// Until a message can be read. what: for messages. Throws errc::timeout after the deadline, errc::peer_lost when nobody listens there.
  void wait(const std::string& what);
  /// Whether one can be read now; throws errc::peer_lost likewise.
  bool has_message(const std::string& what);
  /// Of the deadline.
  std::chrono::milliseconds left() const;
  [[noreturn]] void fail(errc code, const std::string& reason) const;

private:
  bool poll(steady_time until, const std::string& what);

  const std::string endpoint_;
  const weights_version version_;
  const std::chrono::milliseconds deadline_;
  const steady_time end_;
  zmq::context_t context_;
  zmq::socket_t socket_, events_;
};

/// For messages: "BF16 [7, 3]".
std::string describe(dtype type, const std::vector<std::int64_t>& shape);

} // namespace troupe
