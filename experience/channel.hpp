#pragma once
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>

namespace troupe {

/// Receives messages of the experience plane on a thread of its own and hands each to `sink`, each sender's once and in order.
/// A sink that blocks makes the senders wait. Destroying it joins the thread; no message is handed over afterwards.
class experience_receiver {
public:
  virtual ~experience_receiver() = default;
  /// "tcp://127.0.0.1:40123", for senders.
  virtual std::string endpoint() const = 0;
};

/// Sends messages to one receiver, in order. One thread. At most the receiver's `credits` messages are on the way at a time.
/// Destroying it never blocks for longer than a second; what was not flushed may be lost.
class experience_sender {
public:
  virtual ~experience_sender() = default;
  /// Waits at most `deadline` for a credit and throws errc::timeout naming the endpoint. What is lost with a connection
  /// is sent again by later calls of `send` and `flush`.
  virtual void send(std::string_view bytes, std::chrono::milliseconds deadline) = 0;
  /// Waits until the sink has taken every message; throws errc::timeout as `send`.
  virtual void flush(std::chrono::milliseconds deadline) = 0;
};

/// The largest message; `send` throws errc::bad_input for a larger one, and a receiver drops its connection.
inline constexpr std::int64_t max_experience_bytes = std::int64_t{256} << 20;

/// host: an address of this machine, e.g. "127.0.0.1"; the port is chosen by the system. secret: shared by the run's
/// processes; a message without it is dropped. credits: messages a sender may have on the way; waiting here are at most
/// credits times the senders. sink must not throw. Throws errc::io.
std::unique_ptr<experience_receiver> listen_experience(const std::string& host, const std::string& secret, int credits,
                                                       std::function<void(std::string)> sink);
/// Does not wait for the receiver: it may start later. Throws errc::bad_input for an endpoint that is none.
std::unique_ptr<experience_sender> connect_experience(const std::string& endpoint, const std::string& secret);

} // namespace troupe
