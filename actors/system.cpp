#include "actors/system.hpp"
#include <arpa/inet.h>
#include <caf/io/all.hpp>
#include <cerrno>
#include <charconv>
#include <chrono>
#include <cstring>
#include <sys/socket.h>
#include <unistd.h>

namespace troupe {

system_config::system_config(bool network) {
  add_message_types<caf::id_block::troupe>();
  set("scheduler.max-threads", std::size_t{2});
  if (!network)
    return;
  load<caf::io::middleman>();
  set("middleman.heartbeat-interval", caf::timespan(std::chrono::seconds(1)));
  set("middleman.connection-timeout", caf::timespan(std::chrono::seconds(3)));
}

std::pair<std::string, std::uint16_t> parse_address(const std::string& text, const std::string& what) {
  const auto colon = text.rfind(':');
  std::uint16_t port = 0;
  const char* end = text.data() + text.size();
  const bool good = colon != std::string::npos && colon > 0 && colon + 1 < text.size() &&
                    std::from_chars(text.data() + colon + 1, end, port).ptr == end &&
                    std::from_chars(text.data() + colon + 1, end, port).ec == std::errc{};
  if (!good)
    throw error(errc::bad_usage, what + ": \"" + text + "\" is not HOST:PORT with a port from 0 to 65535");
  return {text.substr(0, colon), port};
}

void check_port(const std::string& host, std::uint16_t port, const std::string& what) {
  sockaddr_in at{};
  at.sin_family = AF_INET;
  at.sin_port = htons(port);
  const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  const int reuse = 1; // as the door will: a port whose last run has just ended is free
  const bool good = fd >= 0 && setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &reuse, sizeof reuse) == 0 &&
                    inet_pton(AF_INET, host == "localhost" ? "127.0.0.1" : host.c_str(), &at.sin_addr) == 1 &&
                    bind(fd, reinterpret_cast<const sockaddr*>(&at), sizeof at) == 0 && listen(fd, 1) == 0;
  const int why = errno;
  if (fd >= 0)
    close(fd);
  if (!good)
    throw error(errc::bad_config, what + ": port " + std::to_string(port) + " of " + host + " cannot be listened on (" +
                                      std::strerror(why) + "); name another, or 0 for any");
}

bool is_loopback(const std::string& host) { return host == "localhost" || host.rfind("127.", 0) == 0; }

std::string host_name() {
  char name[256] = {};
  return gethostname(name, sizeof name - 1) == 0 ? name : "this machine";
}

} // namespace troupe
