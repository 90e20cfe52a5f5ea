#include "core/zmq_util.hpp"
#include "core/error.hpp"
#include <algorithm>
#include <cstdlib>

namespace troupe {

std::string bind_any_port(zmq::socket_t& socket, const std::string& host) {
  const bool v6 = host.find(':') != std::string::npos;
  try {
    socket.set(zmq::sockopt::ipv6, v6);
    socket.bind("tcp://" + (v6 ? "[" + host + "]" : host) + ":*");
  } catch (const zmq::error_t& e) {
    throw error(errc::io, "cannot listen on " + host + ": " + e.what() + "; give an address of this machine");
  }
  return socket.get(zmq::sockopt::last_endpoint);
}

void connect_to(zmq::socket_t& socket, const std::string& endpoint) {
  // The library takes a port modulo 2^16.
  const std::string port = endpoint.substr(endpoint.rfind(':') + 1);
  if (endpoint.starts_with("tcp://") && (port.size() > 5 || std::strtol(port.c_str(), nullptr, 10) > 65535))
    throw error(errc::bad_input, "cannot connect to \"" + endpoint + "\": a port is at most 65535");
  try {
    socket.set(zmq::sockopt::ipv6, endpoint.find('[') != std::string::npos);
    // A connection that died without a word is noticed, and made anew.
    socket.set(zmq::sockopt::heartbeat_ivl, 5000);
    socket.set(zmq::sockopt::heartbeat_timeout, 15000);
    socket.connect(endpoint);
  } catch (const zmq::error_t& e) {
    throw error(errc::bad_input, "cannot connect to \"" + endpoint + "\": " + e.what() + "; tcp://ADDRESS:PORT is expected");
  }
}

bool poll_until(std::span<zmq::pollitem_t> items, steady_time until) {
  for (;;) {
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(until - std::chrono::steady_clock::now());
    // Long waits are cut: zmq_poll takes milliseconds as long, and a deadline may be "never".
    const auto wait = std::clamp(left, std::chrono::milliseconds(0), std::chrono::milliseconds(60000));
    const int n = zmq_poll(items.data(), int(items.size()), wait.count());
    if (n > 0)
      return true;
    if (n < 0 && zmq_errno() != EINTR)
      throw error(errc::io, std::string("waiting for a socket: ") + zmq_strerror(zmq_errno()));
    if (n == 0 && left <= wait)
      return false;
  }
}

bool send_frame(zmq::socket_t& socket, zmq::message_t frame, bool more) {
  for (;;) {
    if (zmq_msg_send(frame.handle(), socket.handle(), ZMQ_DONTWAIT | (more ? ZMQ_SNDMORE : 0)) >= 0)
      return true;
    if (zmq_errno() == EAGAIN || zmq_errno() == EHOSTUNREACH)
      return false;
    if (zmq_errno() != EINTR)
      throw error(errc::io, std::string("sending: ") + zmq_strerror(zmq_errno()));
  }
}

bool send_frame(zmq::socket_t& socket, std::string_view bytes, bool more) {
  return send_frame(socket, zmq::message_t(bytes.data(), bytes.size()), more);
}

bool receive_frames(zmq::socket_t& socket, std::span<zmq::message_t> frames) {
  std::size_t n = 0;
  for (bool more = true; more; ++n) {
    zmq::message_t extra;
    zmq::message_t& frame = n < frames.size() ? frames[n] : extra;
    while (zmq_msg_recv(frame.handle(), socket.handle(), ZMQ_DONTWAIT) < 0) {
      if (zmq_errno() == EAGAIN)
        return false;
      if (zmq_errno() != EINTR)
        throw error(errc::io, std::string("receiving: ") + zmq_strerror(zmq_errno()));
    }
    more = frame.more();
  }
  return n == frames.size();
}

bool same_secret(std::string_view a, std::string_view b) {
  if (a.size() != b.size())
    return false;
  volatile unsigned char difference = 0;
  for (std::size_t i = 0; i < a.size(); ++i)
    difference = difference | static_cast<unsigned char>(a[i] ^ b[i]);
  return difference == 0;
}

std::string_view view(const zmq::message_t& frame) { return {frame.data<char>(), frame.size()}; }

wake_up::wake_up(zmq::context_t& context, const std::string& name)
    : inner_(context, zmq::socket_type::pair), outer_(context, zmq::socket_type::pair) {
  inner_.set(zmq::sockopt::linger, 0);
  outer_.set(zmq::sockopt::linger, 0);
  inner_.bind("inproc://" + name);
  outer_.connect("inproc://" + name);
}

} // namespace troupe
