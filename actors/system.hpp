#pragma once
#include "actors/protocol.hpp"
#include <cstdint>
#include <string>
#include <utility>

namespace troupe {

/// CAF's settings: our messages, few threads, heartbeats that notice a stopped process within seconds. Reads no file.
class system_config : public caf::actor_system_config {
public:
  explicit system_config(bool network);
};

/// "HOST:PORT". Throws errc::bad_usage naming `what`.
std::pair<std::string, std::uint16_t> parse_address(const std::string& text, const std::string& what);
/// Throws errc::bad_config, naming `what`, unless the port is free to listen on; 0 always is.
void check_port(const std::string& host, std::uint16_t port, const std::string& what);
/// Whether only this machine can reach that address.
bool is_loopback(const std::string& host);
std::string host_name();

} // namespace troupe
