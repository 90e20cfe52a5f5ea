#pragma once
#include "core/dtype.hpp"
#include "model/kernels/cuda/memory.hpp"
#include "model/parallel/communicator.hpp"
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>

namespace troupe {

/// `communicator`'s calls for memory of the ranks' GPUs: one queues work on a stream and returns, done when the stream is there.
/// All ranks make the same calls, in the same order and with the same sizes, or wait in vain. A wait (or the first call of two ranks
/// with one another) that lasts longer than the deadline throws errc::timeout, naming `what`, and aborts the world.
/// One thread a rank, always on the same device; `abort` any thread.
class device_communicator {
public:
  virtual ~device_communicator() = default;
  virtual int rank() const = 0;
  virtual int size() const = 0;

  /// to: [size][bytes], the parts of all ranks in rank order.
  virtual void all_gather(const void* from, void* to, std::size_t bytes, cuda::stream where, std::string_view what) = 0;
  /// from, to: [size][bytes], apart; part r of `from` goes to rank r, what rank r sends lands at part r of `to`.
  virtual void all_to_all(const void* from, void* to, std::size_t bytes, cuda::stream where, std::string_view what) = 0;
  virtual void broadcast(void* data, std::size_t bytes, int root, cuda::stream where, std::string_view what) = 0;
  /// Not buffered: done when the other side has come. Ranks that send to each other do it within a `group`.
  virtual void send(const void* from, std::size_t bytes, int to, cuda::stream where, std::string_view what) = 0;
  virtual void recv(void* to, std::size_t bytes, int from, cuda::stream where, std::string_view what) = 0;
  /// The calls within run side by side.
  virtual void group(std::string_view what, const std::function<void()>& calls) = 0;
  /// Until all that is queued on the stream is done. Throws errc::peer_lost when the world is aborted.
  virtual void wait(cuda::stream where, std::string_view what) = 0;
  virtual void abort(const std::string& reason) = 0;
};

/// Over NCCL, on the device that is current in this thread. group: the same ranks' communicator for host memory, by which NCCL's id goes
/// and whose world a failure aborts. Made by all its ranks; returns when all are there.
std::unique_ptr<device_communicator> make_nccl_communicator(std::shared_ptr<communicator> group, const std::string& name,
                                                            communicator_deadline deadline = default_deadline);

// Sums over ranks with the bits of model/parallel/reduce.hpp; `type` f32 or bf16, all memory the device's.

/// parts: [size][count], one for each rank -> out [count]: the sum of all ranks' part for this one. scratch: [size][count].
void reduce_scatter(device_communicator& group, dtype type, const void* parts, std::int64_t count, void* out, void* scratch,
                    cuda::stream where, std::string_view what);
/// data [count] becomes the sum over all ranks. scratch: all_reduce_scratch_bytes.
void all_reduce(device_communicator& group, dtype type, void* data, std::int64_t count, void* scratch, cuda::stream where,
                std::string_view what);
std::size_t all_reduce_scratch_bytes(int size, dtype type, std::int64_t count);

} // namespace troupe
