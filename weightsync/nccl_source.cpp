#include "core/error.hpp"
#include "core/zmq_util.hpp"
#include "weightsync/channel.hpp"
#include "weightsync/manifest.hpp"
#include "weightsync/nccl_protocol.hpp"
#include "weightsync/nccl_transfer.hpp"
#include "weightsync/version_text.hpp"
#include <algorithm>
#include <array>
#include <condition_variable>
#include <map>
#include <mutex>
#include <thread>

namespace troupe {
namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

constexpr auto between_beats = milliseconds(50);

/// A sink of the transfer under way is gone.
struct sink_lost : error {
  explicit sink_lost(std::uint64_t which) : error(errc::peer_lost, "a rollout of the transfer is gone"), sink(which) {}
  std::uint64_t sink;
};

/// Gathers the sinks that ask for the version that is published, and brings it to all of them at once; a thread of its own does both.
/// A communicator is kept for as long as the same sinks come. `retract` waits for a transfer, which ends by its limits.
class nccl_source final : public weights_source {
public:
  nccl_source(std::shared_ptr<causal_lm> model, const std::string& host, const std::string& secret, const nccl_limits& limits)
      : model_(std::move(model)), secret_(secret), limits_(limits), zmq_(make_zmq_source(model_, host, secret)), context_(1),
        socket_(context_, zmq::socket_type::router), stop_(context_, "stop") {
    socket_.set(zmq::sockopt::maxmsgsize, std::int64_t{4096}); // requests
    socket_.set(zmq::sockopt::linger, 0);
    socket_.set(zmq::sockopt::router_mandatory, true); // who is gone is noticed
    device_ = cuda::device_of(device_values(*model_).at(0));
    endpoint_ = {bind_any_port(socket_, host), zmq_->endpoint(), cuda::device_name(device_)};
    thread_ = std::thread([this] { serve(); });
  }
  ~nccl_source() override {
    stop_.wake();
    thread_.join();
  }
  std::string endpoint() const override { return endpoint_.text(); }

  void publish(weights_version version) override {
    zmq_->publish(version);
    manifest next = manifest_;
    if (next.entries.empty())
      next = make_manifest(*model_, version);
    else
      update_manifest(next, *model_, version);
    std::unique_lock lock(mutex_);
    idle_.wait(lock, [&] { return !busy_; });
    manifest_ = std::move(next);
    published_ = version;
  }

  void retract() override {
    zmq_->retract();
    std::unique_lock lock(mutex_);
    idle_.wait(lock, [&] { return !busy_; });
    published_.reset();
  }

private:
  struct waiting_sink {
    zmq::message_t address;
    nccl_join request;
  };
  using waiting_sinks = std::map<std::uint64_t, waiting_sink>;

  // ---- the thread's ----

  void serve() {
    std::array<zmq::pollitem_t, 2> items = {stop_.item(), zmq::pollitem_t{socket_.handle(), 0, ZMQ_POLLIN, 0}};
    for (;;) {
      const auto until = waiting_.empty() ? steady_clock::now() + std::chrono::hours(1) : since_ + limits_.window;
      if (poll_until(items, until) && items[0].revents)
        return;
      while (poll_until(std::span(items).subspan(1), steady_clock::now()))
        hear();
      if (const auto version = begin()) {
        bring(*version);
        const std::lock_guard lock(mutex_);
        busy_ = false;
        idle_.notify_all();
      }
    }
  }

  void hear() {
    std::array<zmq::message_t, 3> frames; // who, secret, request
    if (!receive_frames(socket_, frames) || !same_secret(view(frames[1]), secret_) || frames[2].size() != nccl_join_bytes)
      return;
    const nccl_join request = unpack_join(view(frames[2]));
    if (const auto has = published(); has != request.version) {
      tell(frames[0], pack(nccl_has{has}));
      return;
    }
    if (waiting_.empty())
      since_ = steady_clock::now();
    waiting_[request.sink] = {std::move(frames[0]), request};
  }

  std::optional<weights_version> published() {
    const std::lock_guard lock(mutex_);
    return published_;
  }

  /// The version to bring now, from here on kept as it is; none: there is nobody, or others are waited for.
  std::optional<weights_version> begin() {
    const std::lock_guard lock(mutex_);
    for (auto it = waiting_.begin(); it != waiting_.end();)
      if (it->second.request.version == published_) {
        ++it;
      } else {
        tell(it->second.address, pack(nccl_has{published_}));
        it = waiting_.erase(it);
      }
    const bool all =
        std::all_of(known_.begin(), known_.end(), [&](const auto& k) { return k.second == published_ || waiting_.count(k.first); });
    if (waiting_.empty() || (!all && steady_clock::now() < since_ + limits_.window))
      return std::nullopt;
    busy_ = true;
    return published_;
  }

  /// To the sinks that wait, who wait no more.
  void bring(weights_version version) {
    const waiting_sinks sinks = std::move(waiting_);
    waiting_.clear();
    try {
      transfer(version, sinks);
      for (const auto& [id, sink] : sinks)
        known_[id] = version;
      std::erase_if(known_, [&](const auto& k) { return k.second != version; }); // not waited for again until they come
    } catch (const sink_lost& e) {
      known_.erase(e.sink);
      fail(sinks, true, e.what());
    } catch (const error& e) {
      for (const auto& [id, sink] : sinks) // those that are left come back
        known_.erase(id);
      fail(sinks, e.code() == errc::timeout, e.what());
    }
  }

  void transfer(weights_version version, const waiting_sinks& sinks) {
    const auto values = device_values(*model_);
    cuda::set_device(device_);
    if (!stream_)
      stream_ = std::make_unique<cuda::stream_owner>();
    const bool everything = std::any_of(sinks.begin(), sinks.end(), [](const auto& s) { return s.second.request.everything; });
    const bool fresh =
        !ranks_ || !std::equal(sinks.begin(), sinks.end(), members_.begin(), members_.end(),
                               [&](const auto& s, std::uint64_t m) { return s.first == m && s.second.request.group == group_; });
    cuda::nccl_id id = {};
    if (fresh) {
      ranks_.reset();
      members_.clear();
      id = cuda::make_nccl_id();
      ++group_;
    }
    invite(sinks, {group_, fresh, id, 0, int(sinks.size()) + 1, everything, pack_manifest(manifest_)});
    under_way_ = &sinks;
    if (fresh)
      ranks_ =
          std::make_unique<cuda::nccl_rank>(id, 0, int(sinks.size()) + 1, "of " + text_of(version), limits_.transfer, [this] { watch(); });
    if (fresh)
      for (const auto& [which, sink] : sinks)
        members_.push_back(which);
    broadcast_values(*ranks_, manifest_, entries_of(manifest_, everything), values, stream_->get());
  }

  void invite(const waiting_sinks& sinks, nccl_invitation invitation) {
    for (const auto& [id, sink] : sinks) {
      ++invitation.rank;
      if (!tell(sink.address, pack(invitation)))
        throw sink_lost(id);
    }
  }

  /// While a transfer is waited for.
  void watch() {
    std::array<zmq::pollitem_t, 1> stop = {stop_.item()};
    if (poll_until(stop, steady_clock::now()))
      throw error(errc::cancelled, "the source of the weights ends");
    if (steady_clock::now() < next_beat_)
      return;
    next_beat_ = steady_clock::now() + between_beats;
    for (const auto& [id, sink] : *under_way_)
      if (!tell(sink.address, pack_beat()))
        throw sink_lost(id);
  }

  void fail(const waiting_sinks& sinks, bool again, const std::string& reason) {
    ranks_.reset();
    members_.clear();
    for (const auto& [id, sink] : sinks)
      tell(sink.address, pack(nccl_ended{group_, again, reason}));
  }

  /// False: it is gone.
  bool tell(const zmq::message_t& address, const std::string& message) {
    return send_frame(socket_, view(address), true) && send_frame(socket_, message, false);
  }

  const std::shared_ptr<causal_lm> model_;
  const std::string secret_;
  const nccl_limits limits_;
  const std::unique_ptr<weights_source> zmq_; // for those without a GPU
  std::mutex mutex_;                          // guards the four that follow
  std::condition_variable idle_;
  bool busy_ = false; // a transfer reads the model and the manifest
  std::optional<weights_version> published_;
  manifest manifest_; // the caller's thread changes it, while nothing is under way
  zmq::context_t context_;
  zmq::socket_t socket_; // the thread's, once it runs, as are those behind it
  wake_up stop_;
  nccl_endpoint endpoint_;
  int device_ = 0; // the model's
  waiting_sinks waiting_;
  steady_time since_;                              // when the first of them came
  std::map<std::uint64_t, weights_version> known_; // what each sink has that came before, and may come again
  std::unique_ptr<cuda::stream_owner> stream_;
  std::uint64_t group_ = 0;
  std::vector<std::uint64_t> members_; // of ranks_, behind rank 0
  std::unique_ptr<cuda::nccl_rank> ranks_;
  const waiting_sinks* under_way_ = nullptr;
  steady_time next_beat_;
  std::thread thread_;
};

} // namespace

std::unique_ptr<weights_source> make_nccl_source(std::shared_ptr<causal_lm> model, const std::string& host, const std::string& secret,
                                                 const nccl_limits& limits) {
  return std::make_unique<nccl_source>(std::move(model), host, secret, limits);
}

} // namespace troupe
