#pragma once
#include <cstddef>
#include <utility>

struct CUstream_st;

namespace troupe::cuda {

/// CUDA's cudaStream_t, for headers that plain C++ includes; null is the default stream.
using stream = CUstream_st*;

/// GPUs this process can use; 0 where there is no driver.
int device_count();

/// Waits for everything on the stream. Throws errc::failed with CUDA's reason.
void synchronize(stream where = nullptr);

/// Memory on the current device, freed with it. One owner; moved, not copied. Throws errc::failed when there is not enough.
class device_buffer {
public:
  device_buffer() = default;
  explicit device_buffer(std::size_t n_bytes);
  device_buffer(device_buffer&& other) noexcept { swap(other); }
  device_buffer& operator=(device_buffer&& other) noexcept {
    swap(other);
    return *this;
  }
  ~device_buffer();
  void* data() const { return data_; }
  std::size_t size() const { return n_bytes_; }
  /// Whole buffer, size() bytes; `from` and `to` are host memory. Return when done.
  void upload(const void* from);
  void download(void* to) const;

private:
  void swap(device_buffer& other) noexcept { std::swap(data_, other.data_), std::swap(n_bytes_, other.n_bytes_); }
  void* data_ = nullptr;
  std::size_t n_bytes_ = 0;
};

} // namespace troupe::cuda
