#pragma once
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace troupe {

/// Memory of a GPU.
struct device_bytes {
  void* data = nullptr;
  std::size_t n_bytes = 0;
};

/// weights_checksum of each, computed on its GPU, after whatever was queued there before. Throws errc::unsupported where this program is
/// built without CUDA.
std::vector<std::uint64_t> device_checksums(std::span<const device_bytes> values);

/// Whether NCCL can connect the GPU of that name (nccl_endpoint) with the one where `data` is: since 2.30 that may be the same one.
bool nccl_reaches(const std::string& gpu, const void* data);

} // namespace troupe
