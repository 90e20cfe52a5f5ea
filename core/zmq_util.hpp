#pragma once
#include <chrono>
#include <span>
#include <string>
#include <string_view>
#include <zmq.hpp>

namespace troupe {

using steady_time = std::chrono::steady_clock::time_point;

/// Binds to a port of `host` that the system chooses. Throws errc::io with the address and the reason.
/// Returns the endpoint for the other side.
std::string bind_any_port(zmq::socket_t& socket, const std::string& host);

/// Starts connecting; there need be nobody yet. Throws errc::bad_input for what is not an endpoint.
void connect_to(zmq::socket_t& socket, const std::string& endpoint);

/// Waits for the items' events, until `until` at most; a signal does not end the wait. True when there is one.
bool poll_until(std::span<zmq::pollitem_t> items, steady_time until);

/// Sends one frame without waiting; a signal is no error. False: the queue is full, or there is nobody.
bool send_frame(zmq::socket_t& socket, zmq::message_t frame, bool more);
bool send_frame(zmq::socket_t& socket, std::string_view bytes, bool more);

/// Receives all frames of a message, `frames.size()` at most: a message with more is read and refused.
/// False: none waits, or it has another number of frames.
bool receive_frames(zmq::socket_t& socket, std::span<zmq::message_t> frames);

/// Compares in a time that depends on the lengths alone.
bool same_secret(std::string_view a, std::string_view b);

std::string_view view(const zmq::message_t& frame);

/// Wakes a thread that polls: `item()` in its poll set, `wake()` from one other thread.
class wake_up {
public:
  wake_up(zmq::context_t& context, const std::string& name);
  zmq::pollitem_t item() { return {inner_.handle(), 0, ZMQ_POLLIN, 0}; }
  void wake() { send_frame(outer_, std::string_view(), false); }

private:
  zmq::socket_t inner_, outer_;
};

} // namespace troupe
