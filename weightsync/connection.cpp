#include "weightsync/connection.hpp"
#include "weightsync/version_text.hpp"
#include <algorithm>
#include <array>

namespace troupe {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

namespace {

constexpr std::int64_t max_reply_bytes = 64 << 20; // a manifest of 400,000 tensors

} // namespace

source_connection::source_connection(std::string endpoint, weights_version version, milliseconds deadline)
    : endpoint_(std::move(endpoint)), version_(version), deadline_(deadline), end_(steady_clock::now() + deadline), context_(1),
      socket_(context_, zmq::socket_type::dealer), events_(context_, zmq::socket_type::pair) {
  socket_.set(zmq::sockopt::maxmsgsize, max_reply_bytes);
  socket_.set(zmq::sockopt::linger, 0);
  events_.set(zmq::sockopt::linger, 0);
  constexpr const char* address = "inproc://fetch-events";
  if (zmq_socket_monitor(socket_.handle(), address, ZMQ_EVENT_DISCONNECTED | ZMQ_EVENT_CONNECT_RETRIED) != 0)
    throw error(errc::io, std::string("watching a connection: ") + zmq_strerror(zmq_errno()));
  events_.connect(address);
  connect_to(socket_, endpoint_);
}

source_connection::~source_connection() { zmq_socket_monitor(socket_.handle(), nullptr, 0); }

bool source_connection::poll(steady_time until, const std::string& what) {
  std::array<zmq::pollitem_t, 2> items = {zmq::pollitem_t{socket_.handle(), 0, ZMQ_POLLIN, 0},
                                          zmq::pollitem_t{events_.handle(), 0, ZMQ_POLLIN, 0}};
  if (!poll_until(items, until))
    return false;
  if (!items[0].revents)
    fail(errc::peer_lost, "the connection ended, or nobody listens there, while waiting for " + what);
  return true;
}

void source_connection::wait(const std::string& what) {
  if (!poll(end_, what))
    fail(errc::timeout, std::to_string(deadline_.count()) + " ms passed while waiting for " + what);
}

bool source_connection::has_message(const std::string& what) { return poll(steady_clock::now(), what); }

milliseconds source_connection::left() const {
  return std::max(milliseconds(0), std::chrono::ceil<milliseconds>(end_ - steady_clock::now()));
}

void source_connection::fail(errc code, const std::string& reason) const {
  throw error(code, text_of(version_) + " from " + endpoint_ + ": " + reason);
}

std::string describe(dtype type, const std::vector<std::int64_t>& shape) {
  std::string text = std::string(name_of(type)) + " [";
  for (std::size_t i = 0; i < shape.size(); ++i)
    text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + "]";
}

} // namespace troupe
