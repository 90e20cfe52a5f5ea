#pragma once
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

namespace troupe {

/// Receives messages of the experience plane on a thread of its own and hands each to `sink`.
/// Bounded: at most `credits` messages wait. Destroying it joins the thread.
class experience_receiver {
public:
  virtual ~experience_receiver() = default;
  /// "tcp://127.0.0.1:40123" or "inproc://..." for senders.
  virtual std::string endpoint() const = 0;
};

/// Sends messages to one receiver. One thread. `send` waits at most `deadline` for a credit and throws errc::timeout naming the endpoint.
class experience_sender {
public:
  virtual ~experience_sender() = default;
  virtual void send(std::string_view bytes, std::chrono::milliseconds deadline) = 0;
};

/// host: an address of this machine, e.g. "127.0.0.1"; the port is chosen by the system. secret: shared by the run's
/// processes; a message without it is dropped. Throws errc::io.
std::unique_ptr<experience_receiver> listen_experience(const std::string& host, const std::string& secret, int credits,
                                                       std::function<void(std::string)> sink);
std::unique_ptr<experience_sender> connect_experience(const std::string& endpoint, const std::string& secret);

} // namespace troupe
