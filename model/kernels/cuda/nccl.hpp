#pragma once
#include "core/error.hpp"
#include "model/kernels/cuda/memory.hpp"
#include <array>
#include <chrono>
#include <cstddef>
#include <functional>
#include <string>
#include <string_view>

struct ncclComm;

namespace troupe::cuda {

/// What the ranks of one NCCL communicator have in common: made by one of them, who brings it to the others.
using nccl_id = std::array<char, 128>;
nccl_id make_nccl_id();

/// The library's, e.g. 23007 for 2.30.7. Ranks that share a GPU need 2.30.
int nccl_version();

/// One rank of an NCCL communicator, on the device that is current in its thread. One thread, the same device.
/// A call queues work on a stream; bytes are one rank's part. What lasts longer than the deadline throws errc::timeout, naming `what`,
/// and what NCCL refuses errc::failed; either aborts this rank's side, and later calls throw errc::peer_lost with the first reason.
class nccl_rank {
public:
  /// While it waits it calls `check`, which ends the wait, and this rank, by throwing. name: for messages. Returns when all ranks are
  /// there.
  nccl_rank(const nccl_id& id, int rank, int size, std::string name, std::chrono::milliseconds deadline,
            std::function<void()> check = nullptr);
  ~nccl_rank(); // whatever is under way ends; needs nothing of the others
  nccl_rank(const nccl_rank&) = delete;
  nccl_rank& operator=(const nccl_rank&) = delete;
  int rank() const { return rank_; }
  int size() const { return size_; }

  void all_gather(const void* from, void* to, std::size_t bytes, stream where, std::string_view what); // to: [size][bytes]
  void all_to_all(const void* from, void* to, std::size_t bytes, stream where, std::string_view what); // from, to: [size][bytes]
  void broadcast(void* data, std::size_t bytes, int root, stream where, std::string_view what);
  void send(const void* from, std::size_t bytes, int to, stream where, std::string_view what);
  void recv(void* to, std::size_t bytes, int from, stream where, std::string_view what);
  /// The calls within are one: they run side by side, and none waits for another.
  void group(std::string_view what, const std::function<void()>& calls);
  /// Until all that is queued on the stream is done.
  void wait(stream where, std::string_view what);

private:
  template <class Ready>
  void until(Ready ready, std::string_view what);
  void called(int status, std::string_view what);
  void finish(int status, std::string_view what);
  error refusal(int status, std::string_view what) const;
  void check_alive() const;
  void end(const std::string& reason);
  [[noreturn]] void fail(const error& e);

  const int rank_, size_;
  const std::string name_;
  const std::chrono::milliseconds deadline_;
  const std::function<void()> check_;
  ncclComm* comm_ = nullptr; // null: ended
  bool in_group_ = false;
  std::string reason_; // why it ended
};

} // namespace troupe::cuda
