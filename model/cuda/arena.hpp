#pragma once
#include "model/kernels/cuda/memory.hpp"
#include <cstddef>
#include <vector>

namespace troupe::cuda {

/// GPU memory that is handed out in order and taken back at once; chunks are kept for the next round. One stream.
class arena {
public:
  /// 256-byte aligned, uninitialised, valid until `reset`.
  void* take(std::size_t bytes);
  template <class T>
  T* take_array(std::size_t count) {
    return static_cast<T*>(take(count * sizeof(T)));
  }
  void reset();

private:
  std::vector<device_buffer> chunks_;
  std::size_t chunk_ = 0, used_ = 0; // of chunks_[chunk_]
};

} // namespace troupe::cuda
