#pragma once
#include "core/error.hpp"
#include <cuda_runtime.h>
#include <string>

namespace troupe::cuda {

/// Throws errc::failed when a call of CUDA's runtime did not succeed. what: what was asked, for the message.
inline void check(cudaError_t status, const char* what) {
  if (status == cudaSuccess)
    return;
  cudaGetLastError(); // said once
  throw error(errc::failed, std::string(what) + ": CUDA says: " + cudaGetErrorString(status));
}

} // namespace troupe::cuda
