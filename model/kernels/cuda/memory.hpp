#pragma once
#include <cstddef>
#include <memory>
#include <string>
#include <utility>

struct CUstream_st;
struct CUevent_st;
struct CUgraphExec_st;

namespace troupe::cuda {

/// CUDA's cudaStream_t, for headers that plain C++ includes; null is the default stream.
using stream = CUstream_st*;

/// GPUs this process can use; 0 where there is no driver.
int device_count();
/// The device that this thread's later calls mean.
void set_device(int device);
/// The device whose memory this is.
int device_of(const void* data);
/// What names a GPU in every process of this machine.
std::string device_name(int device);
struct memory_info {
  std::size_t free = 0, total = 0; // bytes
};
/// Of the current device.
memory_info device_memory();

/// Waits for everything on the stream. Throws errc::failed with CUDA's reason.
void synchronize(stream where = nullptr);
/// Waits for everything on the current device.
void synchronize_device();

/// Queues a copy of n_bytes between any two of host and device memory; the host's is pinned where the call is not to wait.
void copy_async(void* to, const void* from, std::size_t n_bytes, stream where);
/// The same for `rows` rows of `width` bytes that lie to_pitch and from_pitch bytes apart.
void copy_rows_async(void* to, std::size_t to_pitch, const void* from, std::size_t from_pitch, std::size_t width, std::size_t rows,
                     stream where);
/// Queues the setting of n_bytes of device memory to 0.
void fill_zero(void* to, std::size_t n_bytes, stream where);

/// Throws errc::failed when the current device has less free memory: what for, how much is wanted and free, and `help`, what to do.
void require_memory(std::size_t n_bytes, const char* what, const char* help);

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

/// Frees what CUDA gave.
struct release {
  void operator()(void* pinned) const;
  void operator()(CUstream_st* stream) const;
  void operator()(CUevent_st* event) const;
  void operator()(CUgraphExec_st* graph) const;
};

/// Host memory that the GPU copies to and from while the host goes on. One owner; moved, not copied.
class pinned_buffer {
public:
  pinned_buffer() = default;
  explicit pinned_buffer(std::size_t n_bytes);
  void* data() const { return data_.get(); }
  std::size_t size() const { return n_bytes_; }

private:
  std::unique_ptr<void, release> data_;
  std::size_t n_bytes_ = 0;
};

/// A stream of its own on the current device, which does not wait for the default stream.
class stream_owner {
public:
  stream_owner();
  stream get() const { return stream_.get(); }

private:
  std::unique_ptr<CUstream_st, release> stream_;
};

/// A mark in a stream's work.
class event {
public:
  event();
  void record(stream where);
  /// Waits until what was queued before the mark is done.
  void synchronize() const;
  /// `where` goes on only after the mark; the host does not wait.
  void hold(stream where) const;
  /// Milliseconds from an earlier mark to this one; both must be done.
  float elapsed_ms(const event& since) const;

private:
  std::unique_ptr<CUevent_st, release> event_;
};

/// Work recorded once, queued at little cost as often as wanted. Its pointers and sizes are those of the recording.
class graph {
public:
  graph() = default;
  explicit operator bool() const { return bool(exec_); }
  void launch(stream where) const;

private:
  friend graph end_capture(stream where);
  std::unique_ptr<CUgraphExec_st, release> exec_;
};
/// What this thread queues on the stream (not the default one) from here on is recorded, and does not run.
void begin_capture(stream where);
/// Ends it, also after a failure in between. Throws errc::failed when something in it cannot be recorded.
graph end_capture(stream where);

} // namespace troupe::cuda
