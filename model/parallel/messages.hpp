#pragma once
#include "core/error.hpp"
#include "model/parallel/communicator.hpp"
#include <cstdint>
#include <string>

namespace troupe {

// What the communicators say when a call goes wrong: the same words for every transport.

enum class call_kind : std::uint8_t { all_gather, all_to_all, broadcast, send, recv, barrier, abort };

inline const char* name_of(call_kind kind) {
  static const char* const names[] = {"all_gather", "all_to_all", "broadcast", "send", "recv", "barrier", "abort"};
  return names[std::size_t(kind)];
}

/// One rank's side of a call.
struct call_side {
  int rank = 0;
  call_kind kind = call_kind::barrier;
  std::size_t bytes = 0;
  std::string what;
  std::string text() const {
    return "rank " + std::to_string(rank) + " is in " + name_of(kind) + " (" + what + ", " + std::to_string(bytes) + " bytes)";
  }
};

inline std::string calls_differ(const std::string& group, const call_side& a, const call_side& b) {
  return "communicator " + group + ": " + a.text() + ", " + b.text() + "; all ranks must make the same calls";
}

inline std::string waited_too_long(const std::string& group, const call_side& me, const std::string& for_whom,
                                   communicator_deadline deadline) {
  return "communicator " + group + ": " + me.text() + " and waited " + std::to_string(deadline.count()) + " ms for rank " + for_whom +
         "; it is gone, stopped or slower than the deadline";
}

inline void check_peer(const std::string& group, int peer, int self, int size) {
  if (peer < 0 || peer >= size || peer == self)
    throw error{errc::bad_shape, "communicator " + group + ": rank " + std::to_string(self) + " asks for rank " + std::to_string(peer) +
                                     " of " + std::to_string(size) + "; another rank of the group is wanted"};
}

} // namespace troupe
