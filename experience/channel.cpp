#include "experience/channel.hpp"
#include "core/binary.hpp"
#include "core/error.hpp"
#include "core/zmq_util.hpp"
#include <algorithm>
#include <array>
#include <deque>
#include <random>
#include <thread>
#include <unordered_map>

namespace troupe {
namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

// Sender to receiver:  [secret] [message_head] [payload; empty in a probe]
// Receiver to sender:  [reply]
// Sequence numbers count a sender's messages. The receiver takes only the next one of each sender and says in every reply which
// that is. A sender that hears nothing sends a probe: connections keep the order, so what was sent before an answered probe
// and is not taken was lost, and is sent again.
struct message_head {
  std::uint64_t sender = 0;   // random, of one experience_sender
  std::uint64_t sequence = 0; // of the payload, from 0
  std::uint64_t probe = 0;    // 0: a payload; else the probe's number
};
struct reply {
  std::uint64_t next = 0;  // the sequence number that the receiver takes next
  std::uint64_t probe = 0; // the probe that is answered, or 0
  std::uint32_t credits = 0;
};
constexpr std::size_t head_bytes = 24, reply_bytes = 20;

std::string pack(const message_head& h) {
  byte_writer out;
  out.put(h.sender);
  out.put(h.sequence);
  out.put(h.probe);
  return out.take();
}

std::string pack(const reply& r) {
  byte_writer out;
  out.put(r.next);
  out.put(r.probe);
  out.put(r.credits);
  return out.take();
}

message_head unpack_head(std::string_view bytes) {
  byte_reader in(bytes, "message head");
  const auto sender = in.get<std::uint64_t>(), sequence = in.get<std::uint64_t>();
  const message_head h{sender, sequence, in.get<std::uint64_t>()};
  in.finish();
  return h;
}

reply unpack_reply(std::string_view bytes) {
  byte_reader in(bytes, "reply");
  const auto next = in.get<std::uint64_t>(), probe = in.get<std::uint64_t>();
  const reply r{next, probe, in.get<std::uint32_t>()};
  in.finish();
  return r;
}

class zmq_receiver final : public experience_receiver {
public:
  zmq_receiver(const std::string& host, std::string secret, int credits, std::function<void(std::string)> sink)
      : secret_(std::move(secret)), credits_(std::uint32_t(credits)), sink_(std::move(sink)), context_(1),
        socket_(context_, zmq::socket_type::router), stop_(context_, "stop") {
    socket_.set(zmq::sockopt::rcvhwm, credits + 8); // and some probes
    socket_.set(zmq::sockopt::maxmsgsize, max_experience_bytes);
    socket_.set(zmq::sockopt::linger, 200); // the last replies
    endpoint_ = bind_any_port(socket_, host);
    thread_ = std::thread([this] { serve(); });
  }
  ~zmq_receiver() override {
    stop_.wake();
    thread_.join();
  }
  std::string endpoint() const override { return endpoint_; }

private:
  void serve() {
    std::array<zmq::pollitem_t, 2> items = {stop_.item(), zmq::pollitem_t{socket_.handle(), 0, ZMQ_POLLIN, 0}};
    for (;;) {
      if (!poll_until(items, steady_clock::now() + std::chrono::hours(1)))
        continue;
      if (items[0].revents)
        return;
      std::array<zmq::message_t, 4> frames; // who, secret, head, payload
      if (receive_frames(socket_, frames) && same_secret(view(frames[1]), secret_) && frames[2].size() == head_bytes)
        take(frames);
    }
  }

  void take(std::array<zmq::message_t, 4>& frames) {
    const message_head head = unpack_head(view(frames[2]));
    std::uint64_t& next = next_[head.sender];
    if (head.probe == 0 && head.sequence == next) {
      sink_(std::string(view(frames[3])));
      ++next;
    }
    // A router drops what is for somebody who left.
    send_frame(socket_, std::move(frames[0]), true);
    send_frame(socket_, pack(reply{next, head.probe, credits_}), false);
  }

  const std::string secret_;
  const std::uint32_t credits_;
  const std::function<void(std::string)> sink_;
  zmq::context_t context_;
  zmq::socket_t socket_; // the thread's, once it runs
  wake_up stop_;
  std::string endpoint_;
  std::unordered_map<std::uint64_t, std::uint64_t> next_; // sender -> next sequence number; the thread's
  std::thread thread_;
};

class zmq_sender final : public experience_sender {
public:
  zmq_sender(std::string endpoint, std::string secret)
      : endpoint_(std::move(endpoint)), secret_(std::move(secret)), context_(1), socket_(context_, zmq::socket_type::dealer) {
    std::random_device random;
    sender_ = std::uint64_t{random()} << 32 | random();
    socket_.set(zmq::sockopt::maxmsgsize, std::int64_t{4096}); // replies
    socket_.set(zmq::sockopt::linger, 1000);
    connect_to(socket_, endpoint_);
  }

  void send(std::string_view bytes, milliseconds deadline) override {
    if (bytes.size() > std::size_t(max_experience_bytes))
      throw error(errc::bad_input, "a message of " + std::to_string(bytes.size()) + " bytes for " + endpoint_ + " is above the limit of " +
                                       std::to_string(max_experience_bytes));
    wait(deadline, "a credit", [this] { return waiting_.size() < credits_; });
    waiting_.emplace_back(bytes);
    transmit({sender_, next_ + waiting_.size() - 1, 0}, waiting_.back());
  }

  void flush(milliseconds deadline) override {
    wait(deadline, "the receipt of what was sent", [this] { return waiting_.empty(); });
  }

private:
  template <class Done>
  void wait(milliseconds deadline, const char* what, Done done) {
    const steady_time end = steady_clock::now() + deadline;
    milliseconds patience(20);
    while (drain(), !done()) {
      const steady_time until = std::min(end, steady_clock::now() + patience);
      zmq::pollitem_t item{socket_.handle(), 0, ZMQ_POLLIN, 0};
      if (poll_until({&item, 1}, until)) {
        patience = milliseconds(20);
        continue;
      }
      if (steady_clock::now() >= end)
        throw error(errc::timeout, "waited " + std::to_string(deadline.count()) + " ms for " + what + " of " + endpoint_ +
                                       "; its process is gone, stopped or busy, or has another secret");
      patience = std::min(2 * patience, milliseconds(2000));
      if (probe_ == probe_sent_) {
        probe_end_ = next_ + waiting_.size();
        transmit({sender_, 0, ++probe_sent_}, {});
      } else { // the probe may have been lost itself
        transmit({sender_, 0, probe_sent_}, {});
      }
    }
  }

  void drain() {
    std::array<zmq::message_t, 1> frame;
    while (receive_frames(socket_, frame))
      if (frame[0].size() == reply_bytes)
        hear(unpack_reply(view(frame[0])));
  }

  void hear(const reply& r) {
    credits_ = r.credits;
    while (!waiting_.empty() && next_ < r.next) {
      waiting_.pop_front();
      ++next_;
    }
    if (r.probe != probe_sent_ || probe_ == probe_sent_)
      return;
    probe_ = probe_sent_;
    for (std::uint64_t s = next_; s < probe_end_; ++s)
      transmit({sender_, s, 0}, waiting_[s - next_]);
  }

  void transmit(const message_head& head, std::string_view payload) {
    // A full queue refuses the first frame: a probe finds out, and the message is sent again.
    if (send_frame(socket_, secret_, true)) {
      send_frame(socket_, pack(head), true);
      send_frame(socket_, payload, false);
    }
  }

  const std::string endpoint_, secret_;
  zmq::context_t context_;
  zmq::socket_t socket_;
  std::uint64_t sender_ = 0;
  std::uint64_t next_ = 0;                   // sequence number of waiting_'s first
  std::deque<std::string> waiting_;          // sent and not yet taken
  std::size_t credits_ = 0;                  // 0 until the receiver was heard
  std::uint64_t probe_sent_ = 0, probe_ = 0; // the last probe sent and the last one answered
  std::uint64_t probe_end_ = 0;              // sequence numbers below it were sent before the probe
};

} // namespace

std::unique_ptr<experience_receiver> listen_experience(const std::string& host, const std::string& secret, int credits,
                                                       std::function<void(std::string)> sink) {
  if (credits < 1)
    throw error(errc::bad_input, "an experience channel needs at least 1 credit, asked were " + std::to_string(credits));
  return std::make_unique<zmq_receiver>(host, secret, credits, std::move(sink));
}

std::unique_ptr<experience_sender> connect_experience(const std::string& endpoint, const std::string& secret) {
  return std::make_unique<zmq_sender>(endpoint, secret);
}

} // namespace troupe
