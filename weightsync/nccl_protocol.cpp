#include "weightsync/nccl_protocol.hpp"
#include <algorithm>

namespace troupe {
namespace {

void put(byte_writer& out, weights_version v) {
  out.put(v.incarnation);
  out.put(v.step);
}
weights_version get_version(byte_reader& in) {
  const auto incarnation = in.get<std::uint32_t>();
  return {incarnation, in.get<std::uint32_t>()};
}
bool get_flag(byte_reader& in) { return in.get<std::uint8_t>() != 0; }

} // namespace

std::string pack(const nccl_join& j) {
  byte_writer out;
  out.put(j.sink);
  put(out, j.version);
  out.put(j.group);
  out.put(std::uint8_t(j.everything));
  return out.take();
}
nccl_join unpack_join(std::string_view bytes) {
  byte_reader in(bytes, "weights request");
  nccl_join j;
  j.sink = in.get<std::uint64_t>();
  j.version = get_version(in);
  j.group = in.get<std::uint64_t>();
  j.everything = get_flag(in);
  in.finish();
  return j;
}

std::string pack_beat() { return std::string(1, char(nccl_message::beat)); }
std::string pack(const nccl_has& h) {
  byte_writer out;
  out.put(std::uint8_t(nccl_message::version));
  out.put(std::uint8_t(h.version.has_value()));
  put(out, h.version.value_or(weights_version{}));
  return out.take();
}
std::string pack(const nccl_invitation& i) {
  byte_writer out;
  out.put(std::uint8_t(nccl_message::invitation));
  out.put(i.group);
  out.put(std::uint8_t(i.fresh));
  out.put_array(std::span<const char>(i.id));
  out.put(i.rank);
  out.put(i.size);
  out.put(std::uint8_t(i.everything));
  out.put_string(i.manifest);
  return out.take();
}
std::string pack(const nccl_ended& e) {
  byte_writer out;
  out.put(std::uint8_t(nccl_message::ended));
  out.put(e.group);
  out.put(std::uint8_t(e.again));
  out.put_string(e.reason);
  return out.take();
}

nccl_has unpack_has(byte_reader& in) {
  const bool there = get_flag(in);
  const weights_version v = get_version(in);
  in.finish();
  return {there ? std::optional(v) : std::nullopt};
}
nccl_invitation unpack_invitation(byte_reader& in) {
  nccl_invitation i;
  i.group = in.get<std::uint64_t>();
  i.fresh = get_flag(in);
  const auto id = in.get_array<char>();
  if (id.size() != i.id.size())
    in.fail("an id of " + std::to_string(id.size()) + " bytes");
  std::copy(id.begin(), id.end(), i.id.begin());
  i.rank = in.get<std::int32_t>();
  i.size = in.get<std::int32_t>();
  if (i.rank < 1 || i.rank >= i.size)
    in.fail("rank " + std::to_string(i.rank) + " of " + std::to_string(i.size));
  i.everything = get_flag(in);
  i.manifest = in.get_string();
  in.finish();
  return i;
}
nccl_ended unpack_ended(byte_reader& in) {
  nccl_ended e;
  e.group = in.get<std::uint64_t>();
  e.again = get_flag(in);
  e.reason = in.get_string();
  in.finish();
  return e;
}

} // namespace troupe
