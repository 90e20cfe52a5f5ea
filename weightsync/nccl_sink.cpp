#include "core/error.hpp"
#include "core/zmq_util.hpp"
#include "weightsync/channel.hpp"
#include "weightsync/connection.hpp"
#include "weightsync/device.hpp"
#include "weightsync/manifest.hpp"
#include "weightsync/nccl_protocol.hpp"
#include "weightsync/nccl_transfer.hpp"
#include "weightsync/version_text.hpp"
#include <array>
#include <random>
#include <thread>

namespace troupe {
namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

constexpr auto between_questions = milliseconds(5);

/// The source gave a transfer up.
struct transfer_ended : error {
  explicit transfer_ended(const nccl_ended& e) : error(errc::peer_lost, e.reason), again(e.again) {}
  bool again;
};

/// Whether both sides' tensors are the same ones. Throws errc::bad_input naming the first that is not.
void check_same(const source_connection& link, const manifest& offer, causal_lm& model) {
  std::size_t i = 0;
  for (const parameter& p : model.parameters()) {
    if (p.copy)
      continue;
    if (i == offer.entries.size() || offer.entries[i].name != p.name)
      link.fail(errc::bad_input, "the source lacks tensor " + p.name + ", or has it at another place");
    const manifest_entry& e = offer.entries[i++];
    if (e.type != model.compute_type() || e.shape != p.shape)
      link.fail(errc::bad_input, "tensor " + p.name + " is " + describe(e.type, e.shape) + " there and " +
                                     describe(model.compute_type(), p.shape) + " here");
    if (e.begin != p.begin || (e.shape != e.global_shape && p.shape != p.global_shape && e.dim != p.dim))
      link.fail(errc::bad_input, "tensor " + p.name + " is another part there than here; weightsync.channel = \"zmq\" can bring it");
  }
  if (i != offer.entries.size())
    link.fail(errc::bad_input, "the source has a tensor " + offer.entries[i].name + ", which this model lacks");
}

class nccl_sink final : public weights_sink {
public:
  nccl_sink(nccl_endpoint endpoint, std::shared_ptr<causal_lm> model, std::string secret)
      : endpoint_(std::move(endpoint)), model_(std::move(model)), secret_(std::move(secret)) {
    std::random_device seed;
    id_ = std::uint64_t{seed()} << 32 | seed();
    source_connection(endpoint_.control, {}, milliseconds(0)); // a malformed endpoint is refused here
  }

  sync_result fetch(weights_version version, milliseconds deadline) override {
    const auto start = steady_clock::now();
    source_connection link(endpoint_.control, version, deadline);
    link_ = &link;
    version_ = version;
    for (what_ = "the transfer";;) {
      try {
        const nccl_invitation invitation = join();
        const std::uint64_t bytes = receive(invitation);
        return {version, bytes, std::chrono::duration<double>(steady_clock::now() - start).count()};
      } catch (const transfer_ended& e) {
        ranks_.reset();
        if (!e.again)
          link.fail(errc::failed, e.what());
        what_ = std::string("the transfer, after one failed (") + e.what() + ")";
      } catch (const error&) {
        ranks_.reset();
        throw;
      }
    }
  }

private:
  /// Asks for the version until its transfer begins.
  nccl_invitation join() {
    ask();
    for (;;) {
      link_->wait(what_);
      const std::string message = next();
      byte_reader in(std::string_view(message).substr(1), "weights message");
      if (nccl_message(message[0]) == nccl_message::invitation)
        return unpack_invitation(in);
      if (nccl_message(message[0]) != nccl_message::version)
        continue; // of a transfer that is over
      const auto has = unpack_has(in).version;
      if (has && *has > version_)
        link_->fail(errc::peer_lost, "the source has moved on to " + text_of(*has));
      what_ = "its publication; " + published_text(has);
      std::this_thread::sleep_for(between_questions);
      ask();
    }
  }

  void ask() {
    send_frame(link_->socket(), secret_, true);
    send_frame(link_->socket(), pack(nccl_join{id_, version_, ranks_ ? group_ : 0, !whole_}), false);
  }

  /// One that waits, not empty.
  std::string next() {
    std::array<zmq::message_t, 1> frames;
    if (!receive_frames(link_->socket(), frames) || frames[0].size() == 0)
      link_->fail(errc::bad_input, "a message of another form came while waiting for " + what_);
    return std::string(view(frames[0]));
  }

  /// Bytes that came.
  std::uint64_t receive(const nccl_invitation& invitation) {
    const manifest offer = unpack_manifest(invitation.manifest);
    if (offer.version != version_)
      link_->fail(errc::bad_input, "the manifest is of " + text_of(offer.version));
    check_same(*link_, offer, *model_);
    const auto values = device_values(*model_);
    const auto entries = entries_of(offer, invitation.everything);
    cuda::set_device(cuda::device_of(values.at(0)));
    cuda::synchronize_device(); // nothing reads the values any more
    if (!stream_)
      stream_ = std::make_unique<cuda::stream_owner>();
    group_ = invitation.group;
    if (invitation.fresh) {
      ranks_.reset();
      ranks_ = std::make_unique<cuda::nccl_rank>(invitation.id, invitation.rank, invitation.size, "of " + text_of(version_), link_->left(),
                                                 [this] { watch(); });
    }
    if (!ranks_)
      link_->fail(errc::bad_input, "the source goes on with a communicator that is not here any more");
    const bool was_whole = whole_;
    whole_ = false;
    broadcast_values(*ranks_, offer, entries, values, stream_->get());
    check_sums(offer, entries, values);
    whole_ = was_whole || invitation.everything;
    std::uint64_t bytes = 0;
    for (const std::size_t i : entries)
      bytes += offer.entries[i].n_bytes;
    return bytes;
  }

  void check_sums(const manifest& offer, std::span<const std::size_t> entries, std::span<void* const> values) {
    std::vector<device_bytes> here;
    for (const std::size_t i : entries)
      here.push_back({values[i], offer.entries[i].n_bytes});
    const auto sums = device_checksums(here);
    for (std::size_t k = 0; k < entries.size(); ++k)
      if (const manifest_entry& e = offer.entries[entries[k]]; sums[k] != e.checksum)
        link_->fail(errc::bad_input, "the checksum of tensor " + e.name +
                                         " is not its manifest's: the bytes changed on the way or after they were published");
  }

  /// While a transfer is waited for.
  void watch() {
    while (link_->has_message(what_)) {
      const std::string message = next();
      byte_reader in(std::string_view(message).substr(1), "weights message");
      if (nccl_message(message[0]) != nccl_message::ended)
        continue;
      if (const nccl_ended ended = unpack_ended(in); ended.group == group_)
        throw transfer_ended(ended);
    }
  }

  const nccl_endpoint endpoint_;
  const std::shared_ptr<causal_lm> model_;
  const std::string secret_;
  std::uint64_t id_ = 0;
  bool whole_ = false; // the tensors that are not trainable are the source's
  std::unique_ptr<cuda::stream_owner> stream_;
  std::uint64_t group_ = 0;
  std::unique_ptr<cuda::nccl_rank> ranks_;
  // Of the fetch under way.
  source_connection* link_ = nullptr;
  weights_version version_;
  std::string what_; // is waited for
};

} // namespace

std::unique_ptr<weights_sink> make_nccl_sink(const std::string& endpoint, std::shared_ptr<causal_lm> model, const std::string& secret) {
  const auto parts = nccl_endpoint::parse(endpoint);
  if (!parts)
    throw error(errc::bad_input, "the weights at " + endpoint + " are not offered over NCCL");
  return std::make_unique<nccl_sink>(*parts, std::move(model), secret);
}

} // namespace troupe
