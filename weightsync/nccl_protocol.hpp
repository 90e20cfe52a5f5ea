#pragma once
#include "core/binary.hpp"
#include "experience/trajectory.hpp"
#include <array>
#include <cstdint>
#include <optional>
#include <string>

namespace troupe {

// Who takes part in a transfer is agreed on over ZeroMQ; the bytes go over NCCL.
// Sink to source:  [secret] [nccl_join]            once it wants a version, and again after `version` and `ended`
// Source to sink:  [kind, then what belongs to it]
enum class nccl_message : std::uint8_t {
  version,    // nccl_has: another one is offered, or none
  invitation, // nccl_invitation: the transfer begins
  beat,       // nothing: both ends are there
  ended       // nccl_ended: the transfer has failed
};

struct nccl_join {
  std::uint64_t sink = 0; // which one it is, whatever connection it comes by
  weights_version version;
  std::uint64_t group = 0; // of ranks that it still has a communicator with; 0: none
  bool everything = false; // it lacks the tensors that are not trainable, too
};
inline constexpr std::size_t nccl_join_bytes = 25;

struct nccl_has {
  std::optional<weights_version> version;
};

struct nccl_invitation {
  std::uint64_t group = 0;
  bool fresh = false; // a new communicator, of `id`; else the sink has it
  std::array<char, 128> id = {};
  std::int32_t rank = 0, size = 0; // the source is rank 0
  bool everything = false;         // all tensors, or the trainable ones
  std::string manifest;
};

struct nccl_ended {
  std::uint64_t group = 0;
  bool again = false; // another rank was lost: those that are left are to join again
  std::string reason;
};

/// Where a source of NCCL is, where it serves sinks that cannot take part in that, and which GPU it is on:
/// "nccl:tcp://...;tcp://...;0000:1b:00.0".
struct nccl_endpoint {
  std::string control, zmq, gpu;
  std::string text() const { return "nccl:" + control + ";" + zmq + ";" + gpu; }
  static std::optional<nccl_endpoint> parse(const std::string& text) {
    const std::size_t first = text.find(';'), last = text.rfind(';');
    if (!text.starts_with("nccl:") || first == last)
      return std::nullopt;
    return nccl_endpoint{text.substr(5, first - 5), text.substr(first + 1, last - first - 1), text.substr(last + 1)};
  }
};

std::string pack(const nccl_join& j);
nccl_join unpack_join(std::string_view bytes);
std::string pack_beat();
std::string pack(const nccl_has& h);
std::string pack(const nccl_invitation& i);
std::string pack(const nccl_ended& e);
/// What stands behind the kind. Throw errc::bad_input.
nccl_has unpack_has(byte_reader& in);
nccl_invitation unpack_invitation(byte_reader& in);
nccl_ended unpack_ended(byte_reader& in);

} // namespace troupe
