#pragma once
#include "model/kernels/cuda/memory.hpp"
#include <cstddef>
#include <cstdint>

namespace troupe::cuda {

/// sum: one value of the device, overwritten with weights_checksum (weightsync/channel.hpp) of n_bytes of the device's memory.
/// One pass at the memory's speed where `data` is aligned to 16 bytes.
void weights_checksum(const void* data, std::size_t n_bytes, std::uint64_t* sum, stream where);

} // namespace troupe::cuda
