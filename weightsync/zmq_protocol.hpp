#pragma once
#include "core/binary.hpp"
#include "experience/trajectory.hpp"
#include <cstdint>
#include <optional>

namespace troupe {

// Sink to source:  [secret] [chunk_request]
// Source to sink:  [chunk_reply] [bytes; empty unless `ok`]
inline constexpr std::uint32_t chunk_bytes = 1 << 20;
inline constexpr std::uint32_t manifest_entry_number = ~std::uint32_t{0}; // asks for the manifest, whole

struct chunk_request {
  weights_version version;
  std::uint32_t entry = 0;  // of the manifest
  std::uint64_t offset = 0; // bytes; a multiple of chunk_bytes. The answer holds what is left, chunk_bytes at most
};
inline constexpr std::size_t chunk_request_bytes = 20;

struct chunk_reply {
  std::optional<weights_version> has; // what the source offers; the bytes are there only when it is what was asked for
  bool ok = false;
  std::uint32_t entry = 0; // as asked
  std::uint64_t offset = 0;
};
inline constexpr std::size_t chunk_reply_bytes = 22;

inline std::string pack(const chunk_request& r) {
  byte_writer out;
  out.put(r.version.incarnation);
  out.put(r.version.step);
  out.put(r.entry);
  out.put(r.offset);
  return out.take();
}

inline chunk_request unpack_request(std::string_view bytes) {
  byte_reader in(bytes, "weights request");
  chunk_request r;
  r.version.incarnation = in.get<std::uint32_t>();
  r.version.step = in.get<std::uint32_t>();
  r.entry = in.get<std::uint32_t>();
  r.offset = in.get<std::uint64_t>();
  in.finish();
  return r;
}

inline std::string pack(const chunk_reply& r) {
  byte_writer out;
  const weights_version has = r.has.value_or(weights_version{});
  out.put(std::uint8_t(r.has.has_value()));
  out.put(std::uint8_t(r.ok));
  out.put(has.incarnation);
  out.put(has.step);
  out.put(r.entry);
  out.put(r.offset);
  return out.take();
}

inline chunk_reply unpack_reply(std::string_view bytes) {
  byte_reader in(bytes, "weights reply");
  chunk_reply r;
  const bool has = in.get<std::uint8_t>() != 0;
  r.ok = in.get<std::uint8_t>() != 0;
  const auto incarnation = in.get<std::uint32_t>();
  const weights_version version{incarnation, in.get<std::uint32_t>()};
  if (has)
    r.has = version;
  r.entry = in.get<std::uint32_t>();
  r.offset = in.get<std::uint64_t>();
  in.finish();
  return r;
}

} // namespace troupe
