#include "core/error.hpp"
#include "core/zmq_util.hpp"
#include "weightsync/channel.hpp"
#include "weightsync/manifest.hpp"
#include "weightsync/zmq_protocol.hpp"
#include <algorithm>
#include <array>
#include <mutex>
#include <thread>

namespace troupe {
namespace {

using std::chrono::steady_clock;

/// Serves chunks from the model's own memory. A chunk is copied under the mutex that `retract` takes, so none is ever torn, and
/// `retract` waits for one copy at most. What a receiver has asked for is bounded by its window.
class zmq_source final : public weights_source {
public:
  zmq_source(std::shared_ptr<causal_lm> model, const std::string& host, std::string secret)
      : model_(std::move(model)), secret_(std::move(secret)), context_(1), socket_(context_, zmq::socket_type::router),
        stop_(context_, "stop") {
    socket_.set(zmq::sockopt::maxmsgsize, std::int64_t{4096}); // requests
    socket_.set(zmq::sockopt::linger, 0);
    endpoint_ = bind_any_port(socket_, host);
    thread_ = std::thread([this] { serve(); });
  }
  ~zmq_source() override {
    stop_.wake();
    thread_.join();
  }
  std::string endpoint() const override { return endpoint_; }

  void publish(weights_version version) override {
    manifest next = manifest_;
    if (next.entries.empty())
      next = make_manifest(*model_, version);
    else
      update_manifest(next, *model_, version);
    std::string packed = pack_manifest(next);
    const std::lock_guard lock(mutex_);
    values_.clear();
    for (const parameter& p : model_->parameters())
      if (!p.copy)
        values_.push_back(p.value);
    manifest_ = std::move(next);
    packed_manifest_ = std::move(packed);
    published_ = version;
  }

  void retract() override {
    const std::lock_guard lock(mutex_);
    published_.reset();
  }

private:
  void serve() {
    std::array<zmq::pollitem_t, 2> items = {stop_.item(), zmq::pollitem_t{socket_.handle(), 0, ZMQ_POLLIN, 0}};
    for (;;) {
      if (!poll_until(items, steady_clock::now() + std::chrono::hours(1)))
        continue;
      if (items[0].revents)
        return;
      std::array<zmq::message_t, 3> frames; // who, secret, request
      if (receive_frames(socket_, frames) && same_secret(view(frames[1]), secret_) && frames[2].size() == chunk_request_bytes)
        answer(std::move(frames[0]), unpack_request(view(frames[2])));
    }
  }

  void answer(zmq::message_t who, const chunk_request& request) {
    chunk_reply reply{{}, false, request.entry, request.offset};
    zmq::message_t bytes;
    {
      const std::lock_guard lock(mutex_);
      reply.has = published_;
      if (published_ == request.version)
        reply.ok = copy_chunk(request, bytes);
    }
    // A router drops what is for somebody who left.
    send_frame(socket_, std::move(who), true);
    send_frame(socket_, pack(reply), true);
    send_frame(socket_, std::move(bytes), false);
  }

  /// False: there is no such chunk.
  bool copy_chunk(const chunk_request& request, zmq::message_t& bytes) const {
    if (request.entry == manifest_entry_number) {
      bytes.rebuild(packed_manifest_.data(), packed_manifest_.size());
      return true;
    }
    if (request.entry >= values_.size() || request.offset >= values_[request.entry].size())
      return false;
    const auto left = values_[request.entry].subspan(request.offset);
    bytes.rebuild(left.data(), std::min<std::size_t>(left.size(), chunk_bytes));
    return true;
  }

  const std::shared_ptr<causal_lm> model_;
  const std::string secret_;
  manifest manifest_; // the caller's thread's
  std::mutex mutex_;  // guards the three that follow, and the model's values while a version is published
  std::optional<weights_version> published_;
  std::string packed_manifest_;
  std::vector<std::span<const std::byte>> values_; // [entries], the model's
  zmq::context_t context_;
  zmq::socket_t socket_; // the thread's, once it runs
  wake_up stop_;
  std::string endpoint_;
  std::thread thread_;
};

} // namespace

std::unique_ptr<weights_source> make_zmq_source(std::shared_ptr<causal_lm> model, const std::string& host, const std::string& secret) {
  return std::make_unique<zmq_source>(std::move(model), host, secret);
}

} // namespace troupe
