#include "core/error.hpp"
#include "core/zmq_util.hpp"
#include "weightsync/channel.hpp"
#include "weightsync/connection.hpp"
#include "weightsync/manifest.hpp"
#include "weightsync/version_text.hpp"
#include "weightsync/zmq_protocol.hpp"
#include <algorithm>
#include <array>
#include <cstring>
#include <map>
#include <optional>
#include <set>
#include <thread>

namespace troupe {
namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

constexpr std::size_t window = 8; // chunks asked for and not yet here

/// A fetch's questions to one source and its answers, in order.
class session {
public:
  session(const std::string& endpoint, const std::string& secret, weights_version version, milliseconds deadline)
      : secret_(secret), version_(version), link_(endpoint, version, deadline) {}

  void ask(std::uint32_t entry, std::uint64_t offset) {
    send_frame(link_.socket(), secret_, true);
    send_frame(link_.socket(), pack(chunk_request{version_, entry, offset}), false);
  }

  /// The bytes of the oldest question. Empty: the source has another version, which `has` names. what: for messages.
  std::optional<zmq::message_t> hear(std::uint32_t entry, std::uint64_t offset, const std::string& what,
                                     std::optional<weights_version>& has) {
    std::array<zmq::message_t, 2> frames;
    link_.wait(what);
    if (!receive_frames(link_.socket(), frames) || frames[0].size() != chunk_reply_bytes)
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

  [[noreturn]] void fail(errc code, const std::string& reason) const { link_.fail(code, reason); }

private:
  const std::string& secret_;
  const weights_version version_;
  source_connection link_;
};

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

// ---- which part of what goes where ----

const std::vector<std::int64_t>& whole_shape(const manifest_entry& e) { return e.global_shape.empty() ? e.shape : e.global_shape; }
const std::vector<std::int64_t>& whole_shape(const parameter& p) { return p.global_shape.empty() ? p.shape : p.global_shape; }

/// What a source's tensor and this model's have in common: [begin, end) of the whole along dim.
struct overlap {
  std::size_t parameter = 0;
  std::size_t dim = 0;
  std::int64_t begin = 0, end = 0;
};

/// Empty ranges too: a tensor of no elements is there all the same. Throws errc::bad_input where the two are not of one tensor.
overlap overlap_of(const session& s, const manifest_entry& e, const parameter& p, std::size_t index, dtype type) {
  if (whole_shape(e) != whole_shape(p) || e.shape.empty() || e.type != type)
    s.fail(errc::bad_input,
           "tensor " + e.name + " is " + describe(e.type, whole_shape(e)) + " there and " + describe(type, whole_shape(p)) + " here");
  overlap o{index, e.shape != whole_shape(e) ? e.dim : std::size_t(p.dim), 0, 0};
  if (e.shape != whole_shape(e) && p.shape != whole_shape(p) && std::size_t(p.dim) != o.dim)
    s.fail(errc::bad_input,
           "tensor " + e.name + " is cut along dimension " + std::to_string(o.dim) + " there and " + std::to_string(p.dim) + " here");
  const std::int64_t theirs = std::size_t(e.dim) == o.dim ? e.begin : 0, mine = std::size_t(p.dim) == o.dim ? p.begin : 0;
  o.begin = std::max(theirs, mine);
  o.end = std::max(o.begin, std::min(theirs + e.shape[o.dim], mine + p.shape[o.dim]));
  return o;
}

/// One source under a fetch.
struct source_link {
  std::unique_ptr<session> link;
  manifest offer;
  std::vector<overlap> overlaps; // [entries]
  std::vector<std::size_t> wanted;
  std::vector<chunk> chunks;
};

/// Fills the sources' overlaps. Throws errc::bad_input naming the first tensor that is not this model's, or not all there.
void plan(std::vector<source_link>& sources, causal_lm& model) {
  const auto parameters = model.parameters();
  std::map<std::string_view, std::size_t> index;
  for (std::size_t i = 0; i < parameters.size(); ++i)
    index[parameters[i].name] = i;
  std::vector<std::size_t> found(parameters.size()), elements(parameters.size()); // of the parts that sources have, which do not overlap
  for (source_link& s : sources)
    for (const manifest_entry& e : s.offer.entries) {
      const auto at = index.find(e.name);
      if (at == index.end())
        s.link->fail(errc::bad_input, "the source has a tensor " + e.name + ", which this model lacks");
      const parameter& p = parameters[at->second];
      const overlap& o = s.overlaps.emplace_back(overlap_of(*s.link, e, p, at->second, model.compute_type()));
      ++found[at->second];
      elements[at->second] += p.numel() == 0 ? 0 : std::size_t(o.end - o.begin) * (p.numel() / std::size_t(p.shape[o.dim]));
    }
  for (std::size_t i = 0; i < parameters.size(); ++i)
    if (found[i] == 0 || elements[i] != parameters[i].numel())
      sources[0].link->fail(errc::bad_input,
                            std::string("the source lacks ") + (found[i] == 0 ? "" : "some of ") + "tensor " + parameters[i].name);
}

/// The overlap's elements from the entry's bytes to the parameter's value. Rows of two dimensions; the others are whole.
void copy_overlap(const manifest_entry& e, const overlap& o, const std::byte* from, parameter& p) {
  const std::int64_t theirs = std::size_t(e.dim) == o.dim ? e.begin : 0, mine = std::size_t(p.dim) == o.dim ? p.begin : 0;
  const auto bytes_of_row = [&](const std::vector<std::int64_t>& shape) {
    std::size_t n = size_of(e.type);
    for (std::size_t d = o.dim; d < shape.size(); ++d)
      n *= std::size_t(shape[d]);
    return n;
  };
  const std::size_t from_row = bytes_of_row(e.shape), to_row = bytes_of_row(p.shape);
  const std::size_t one = e.shape[o.dim] == 0 ? 0 : from_row / std::size_t(e.shape[o.dim]); // bytes of an index along dim
  const std::size_t rows = from_row == 0 ? 0 : std::size_t(e.n_bytes) / from_row;
  for (std::size_t r = 0; r < rows; ++r)
    std::memcpy(p.value.data() + r * to_row + std::size_t(o.begin - mine) * one, from + r * from_row + std::size_t(o.begin - theirs) * one,
                std::size_t(o.end - o.begin) * one);
}

std::vector<std::string> split_endpoints(const std::string& text) {
  std::vector<std::string> out;
  for (std::size_t begin = 0; begin <= text.size();) {
    const auto comma = std::min(text.find(',', begin), text.size());
    out.push_back(text.substr(begin, comma - begin));
    begin = comma + 1;
  }
  return out;
}

class zmq_sink final : public weights_sink {
public:
  zmq_sink(const std::string& endpoints, std::shared_ptr<causal_lm> model, std::string secret)
      : endpoints_(split_endpoints(endpoints)), model_(std::move(model)), secret_(std::move(secret)) {
    zmq::context_t context(1);
    for (const auto& endpoint : endpoints_) {
      zmq::socket_t probe(context, zmq::socket_type::dealer);
      probe.set(zmq::sockopt::linger, 0);
      connect_to(probe, endpoint); // a malformed endpoint is refused here
    }
  }

  sync_result fetch(weights_version version, milliseconds deadline) override {
    const auto start = steady_clock::now();
    std::vector<source_link> sources;
    for (const auto& endpoint : endpoints_) {
      source_link& s = sources.emplace_back();
      s.link = std::make_unique<session>(endpoint, secret_, version, deadline);
      s.offer = fetch_manifest(*s.link, version);
    }
    plan(sources, *model_);
    applied_.resize(sources.size());
    sync_result result{version, 0, 0};
    for (std::size_t i = 0; i < sources.size(); ++i) {
      source_link& s = sources[i];
      choose(s, applied_[i]);
      s.chunks = chunks_of(s.offer, s.wanted);
      fetch_chunks(*s.link, s.offer, s.chunks);
      for (const std::size_t e : s.wanted)
        result.bytes += s.offer.entries[e].n_bytes;
    }
    apply(sources);
    result.seconds = std::chrono::duration<double>(steady_clock::now() - start).count();
    return result;
  }

private:
  using checksums = std::vector<std::optional<std::uint64_t>>; // [entries] of the values that were applied; none: not known

  /// The trainable tensors, and those that are not the source's; of them what concerns this model.
  static void choose(source_link& s, checksums& applied) {
    applied.resize(s.offer.entries.size());
    for (std::size_t i = 0; i < s.offer.entries.size(); ++i) {
      const manifest_entry& e = s.offer.entries[i];
      const bool mine = s.overlaps[i].begin < s.overlaps[i].end || e.n_bytes == 0;
      if (mine && (e.trainable || applied[i] != e.checksum))
        s.wanted.push_back(i);
    }
  }

  void apply(std::vector<source_link>& sources) {
    const auto parameters = model_->parameters();
    std::set<std::size_t> changed;
    for (std::size_t k = 0; k < sources.size(); ++k) {
      source_link& s = sources[k];
      std::fill(applied_[k].begin(), applied_[k].end(), std::nullopt);
      std::vector<std::byte> whole;
      for (const chunk& c : s.chunks) {
        const manifest_entry& e = s.offer.entries[c.entry];
        parameter& p = parameters[s.overlaps[c.entry].parameter];
        if (const overlap& o = s.overlaps[c.entry]; o.end - o.begin == e.shape[o.dim] && p.shape == e.shape) { // the very same part
          std::memcpy(p.value.data() + c.offset, c.bytes.data(), c.bytes.size());
          continue;
        }
        whole.resize(e.n_bytes);
        std::memcpy(whole.data() + c.offset, c.bytes.data(), c.bytes.size());
        if (c.offset + c.bytes.size() == e.n_bytes)
          copy_overlap(e, s.overlaps[c.entry], whole.data(), p);
      }
      for (const std::size_t i : s.wanted)
        changed.insert(s.overlaps[i].parameter);
      for (std::size_t i = 0; i < s.offer.entries.size(); ++i)
        applied_[k][i] = s.offer.entries[i].checksum;
    }
    if (!changed.empty()) // an empty list would mean all
      model_->publish_values(std::vector<std::size_t>(changed.begin(), changed.end()));
  }

  const std::vector<std::string> endpoints_;
  const std::shared_ptr<causal_lm> model_;
  const std::string secret_;
  std::vector<checksums> applied_; // [sources]
};

} // namespace

std::unique_ptr<weights_sink> make_zmq_sink(const std::string& endpoint, std::shared_ptr<causal_lm> model, const std::string& secret) {
  return std::make_unique<zmq_sink>(endpoint, std::move(model), secret);
}

} // namespace troupe
