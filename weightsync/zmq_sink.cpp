#include "core/error.hpp"
#include "core/zmq_util.hpp"
#include "weightsync/channel.hpp"
#include "weightsync/version_text.hpp"
#include "weightsync/zmq_protocol.hpp"
#include <algorithm>
#include <array>
#include <cstring>
#include <thread>

namespace troupe {
namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

constexpr std::size_t window = 8;                  // chunks asked for and not yet here
constexpr std::int64_t max_reply_bytes = 64 << 20; // a manifest of 400,000 tensors

/// One connection for one fetch: whatever an earlier one left under way ended with it.
class session {
public:
  session(const std::string& endpoint, const std::string& secret, weights_version version, milliseconds deadline)
      : endpoint_(endpoint), secret_(secret), version_(version), deadline_(deadline), end_(steady_clock::now() + deadline), context_(1),
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
  ~session() { zmq_socket_monitor(socket_.handle(), nullptr, 0); }
  session(const session&) = delete;
  session& operator=(const session&) = delete;

  void ask(std::uint32_t entry, std::uint64_t offset) {
    send_frame(socket_, secret_, true);
    send_frame(socket_, pack(chunk_request{version_, entry, offset}), false);
  }

  /// The bytes of the oldest question. Empty: the source has another version, which `has` names. what: for messages.
  std::optional<zmq::message_t> hear(std::uint32_t entry, std::uint64_t offset, const std::string& what,
                                     std::optional<weights_version>& has) {
    std::array<zmq::message_t, 2> frames;
    wait(what);
    if (!receive_frames(socket_, frames) || frames[0].size() != chunk_reply_bytes)
      fail(errc::bad_input, "an answer of another form came for " + what);
    const chunk_reply reply = unpack_reply(view(frames[0]));
    if (reply.entry != entry || reply.offset != offset)
      fail(errc::bad_input, "an answer for something else came for " + what);
    has = reply.has;
    if (reply.has != version_)
      return std::nullopt;
    if (!reply.ok)
      fail(errc::bad_input, "the source knows no such part of " + what);
    return std::move(frames[1]);
  }

  [[noreturn]] void fail(errc code, const std::string& reason) const {
    throw error(code, text_of(version_) + " from " + endpoint_ + ": " + reason);
  }

private:
  /// Until an answer can be read.
  void wait(const std::string& what) {
    std::array<zmq::pollitem_t, 2> items = {zmq::pollitem_t{socket_.handle(), 0, ZMQ_POLLIN, 0},
                                            zmq::pollitem_t{events_.handle(), 0, ZMQ_POLLIN, 0}};
    if (!poll_until(items, end_))
      fail(errc::timeout, std::to_string(deadline_.count()) + " ms passed while waiting for " + what);
    if (!items[0].revents)
      fail(errc::peer_lost, "the connection ended, or nobody listens there, while waiting for " + what);
  }

  const std::string& endpoint_;
  const std::string& secret_;
  const weights_version version_;
  const milliseconds deadline_;
  const steady_time end_;
  zmq::context_t context_;
  zmq::socket_t socket_, events_;
};

std::string describe(std::string_view type, const std::vector<std::int64_t>& shape) {
  std::string text = std::string(type) + " [";
  for (std::size_t i = 0; i < shape.size(); ++i)
    text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + "]";
}

/// Throws errc::bad_input naming the first tensor that is not this model's.
void check_manifest(const session& s, const manifest& m, causal_lm& model) {
  const auto parameters = model.parameters();
  for (std::size_t i = 0; i < std::max(m.entries.size(), parameters.size()); ++i) {
    if (i >= m.entries.size())
      s.fail(errc::bad_input, "the source lacks tensor " + parameters[i].name);
    const manifest_entry& e = m.entries[i];
    if (i >= parameters.size())
      s.fail(errc::bad_input, "the source has a tensor " + e.name + ", which this model lacks");
    const parameter& p = parameters[i];
    if (e.name != p.name)
      s.fail(errc::bad_input, "the source's tensor " + std::to_string(i) + " is " + e.name + ", this model's is " + p.name);
    if (e.shape != p.shape || e.type != model.compute_type() || e.n_bytes != p.value.size())
      s.fail(errc::bad_input, "tensor " + e.name + " is " + describe(name_of(e.type), e.shape) + " there and " +
                                  describe(name_of(model.compute_type()), p.shape) + " here");
  }
}

/// Waits for the version to be published.
manifest fetch_manifest(session& s, weights_version version) {
  for (std::string what = "the manifest";;) {
    std::optional<weights_version> has;
    s.ask(manifest_entry_number, 0);
    if (const auto bytes = s.hear(manifest_entry_number, 0, what, has)) {
      manifest m = unpack_manifest(view(*bytes));
      if (m.version != version)
        s.fail(errc::bad_input, "the manifest is of " + text_of(m.version));
      return m;
    }
    if (has && *has > version)
      s.fail(errc::peer_lost, "the source has moved on to " + text_of(*has));
    what = "its publication; " + published_text(has);
    std::this_thread::sleep_for(milliseconds(5));
  }
}

struct chunk {
  std::size_t entry = 0;
  std::uint64_t offset = 0;
  zmq::message_t bytes;
};

std::vector<chunk> chunks_of(const manifest& m, std::span<const std::size_t> entries) {
  std::vector<chunk> chunks;
  for (std::size_t i : entries)
    for (std::uint64_t offset = 0; offset < m.entries[i].n_bytes; offset += chunk_bytes)
      chunks.push_back({i, offset, {}});
  return chunks;
}

/// Brings and checks the chunks; nothing is applied yet.
void fetch_chunks(session& s, const manifest& m, std::vector<chunk>& chunks) {
  std::uint64_t sum = 0;
  for (std::size_t asked = 0, heard = 0; heard < chunks.size(); ++heard) {
    for (; asked < chunks.size() && asked < heard + window; ++asked)
      s.ask(std::uint32_t(chunks[asked].entry), chunks[asked].offset);
    chunk& c = chunks[heard];
    const manifest_entry& e = m.entries[c.entry];
    std::optional<weights_version> has;
    auto bytes = s.hear(std::uint32_t(c.entry), c.offset, "tensor " + e.name, has);
    if (!bytes)
      s.fail(errc::peer_lost, "withdrawn by the source during tensor " + e.name + "; " + published_text(has));
    c.bytes = std::move(*bytes);
    const std::uint64_t left = e.n_bytes - c.offset;
    if (c.bytes.size() != std::min<std::uint64_t>(left, chunk_bytes))
      s.fail(errc::bad_input, std::to_string(c.bytes.size()) + " bytes at " + std::to_string(c.offset) + " of tensor " + e.name +
                                  ", which has " + std::to_string(left) + " left there");
    sum = (c.offset == 0 ? 0 : sum) + weights_checksum({c.bytes.data<std::byte>(), c.bytes.size()}, c.offset / 8);
    if (left <= chunk_bytes && sum != e.checksum)
      s.fail(errc::bad_input,
             "the checksum of tensor " + e.name + " is not its manifest's: the bytes changed on the way or after they were published");
  }
}

class zmq_sink final : public weights_sink {
public:
  zmq_sink(std::string endpoint, std::shared_ptr<causal_lm> model, std::string secret)
      : endpoint_(std::move(endpoint)), model_(std::move(model)), secret_(std::move(secret)) {
    zmq::context_t context(1);
    zmq::socket_t probe(context, zmq::socket_type::dealer);
    probe.set(zmq::sockopt::linger, 0);
    connect_to(probe, endpoint_); // a malformed endpoint is refused here
  }

  sync_result fetch(weights_version version, milliseconds deadline) override {
    const auto start = steady_clock::now();
    session s(endpoint_, secret_, version, deadline);
    const manifest m = fetch_manifest(s, version);
    check_manifest(s, m, *model_);
    const std::vector<std::size_t> entries = wanted(m);
    std::vector<chunk> chunks = chunks_of(m, entries);
    fetch_chunks(s, m, chunks);
    apply(m, entries, chunks);
    sync_result result{version, 0, std::chrono::duration<double>(steady_clock::now() - start).count()};
    for (std::size_t i : entries)
      result.bytes += m.entries[i].n_bytes;
    return result;
  }

private:
  /// The trainable tensors, and those that are not the source's.
  std::vector<std::size_t> wanted(const manifest& m) const {
    std::vector<std::size_t> entries;
    for (std::size_t i = 0; i < m.entries.size(); ++i)
      if (m.entries[i].trainable || applied_.empty() || applied_[i] != m.entries[i].checksum)
        entries.push_back(i);
    return entries;
  }

  void apply(const manifest& m, const std::vector<std::size_t>& entries, const std::vector<chunk>& chunks) {
    applied_.clear();
    const auto parameters = model_->parameters();
    for (const chunk& c : chunks)
      std::memcpy(parameters[c.entry].value.data() + c.offset, c.bytes.data(), c.bytes.size());
    if (!entries.empty()) // an empty list would mean all
      model_->publish_values(entries);
    for (const manifest_entry& e : m.entries)
      applied_.push_back(e.checksum);
  }

  const std::string endpoint_;
  const std::shared_ptr<causal_lm> model_;
  const std::string secret_;
  std::vector<std::uint64_t> applied_; // [parameters], checksums of the model's values; empty: not known
};

} // namespace

std::unique_ptr<weights_sink> make_zmq_sink(const std::string& endpoint, std::shared_ptr<causal_lm> model, const std::string& secret) {
  return std::make_unique<zmq_sink>(endpoint, std::move(model), secret);
}

} // namespace troupe
