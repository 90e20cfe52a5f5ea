#include "model/kernels/cuda/sum_parts.hpp"
#include "model/parallel/device_communicator.hpp"

namespace troupe {

namespace {

// Below this an all_gather of everything is one message fewer.
constexpr std::size_t small_bytes = 64 << 10;

bool is_small(dtype type, std::int64_t count) { return std::size_t(count) * size_of(type) <= small_bytes; }
/// Elements that a rank adds up of a large sum; the last rank's are padded.
std::int64_t chunk_of(int size, std::int64_t count) { return (count + size - 1) / size; }

} // namespace

std::size_t all_reduce_scratch_bytes(int size, dtype type, std::int64_t count) {
  return std::size_t(size) * size_of(type) * std::size_t(is_small(type, count) ? count : 2 * chunk_of(size, count));
}

void reduce_scatter(device_communicator& group, dtype type, const void* parts, std::int64_t count, void* out, void* scratch,
                    cuda::stream where, std::string_view what) {
  group.all_to_all(parts, scratch, std::size_t(count) * size_of(type), where, what);
  cuda::sum_parts(type, scratch, group.size(), count, out, where);
}

void all_reduce(device_communicator& group, dtype type, void* data, std::int64_t count, void* scratch, cuda::stream where,
                std::string_view what) {
  const std::size_t bytes = std::size_t(count) * size_of(type);
  if (is_small(type, count)) {
    group.all_gather(data, scratch, bytes, where, what);
    return cuda::sum_parts(type, scratch, group.size(), count, data, where);
  }
  const std::int64_t chunk = chunk_of(group.size(), count);
  const std::size_t chunk_bytes = std::size_t(chunk) * size_of(type), whole = chunk_bytes * std::size_t(group.size());
  auto* const theirs = static_cast<std::byte*>(scratch); // [size][chunk]
  auto* const padded = theirs + whole;                   // [size][chunk]
  void* const parts = whole == bytes ? data : padded;
  if (parts == padded) {
    cuda::copy_async(padded, data, bytes, where);
    cuda::fill_zero(padded + bytes, whole - bytes, where);
  }
  std::byte* const mine = static_cast<std::byte*>(parts) + std::size_t(group.rank()) * chunk_bytes;
  reduce_scatter(group, type, parts, chunk, mine, theirs, where, what);
  group.all_gather(mine, parts, chunk_bytes, where, what); // in place
  if (parts == padded)
    cuda::copy_async(data, padded, bytes, where);
}

} // namespace troupe
