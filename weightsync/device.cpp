#include "weightsync/device.hpp"
#include "model/kernels/cuda/checksum.hpp"
#include "model/kernels/cuda/nccl.hpp"
#include "weightsync/channel.hpp"

namespace troupe {

bool has_nccl() { return true; }

bool nccl_reaches(const std::string& gpu, const void* data) {
  return cuda::device_name(cuda::device_of(data)) != gpu || cuda::nccl_version() >= 23000;
}

std::vector<std::uint64_t> device_checksums(std::span<const device_bytes> values) {
  std::vector<std::uint64_t> sums(values.size());
  if (values.empty())
    return sums;
  cuda::set_device(cuda::device_of(values[0].data));
  cuda::synchronize_device(); // what writes the values may be on any stream
  cuda::device_buffer on_device(sums.size() * sizeof(std::uint64_t));
  for (std::size_t i = 0; i < values.size(); ++i)
    cuda::weights_checksum(values[i].data, values[i].n_bytes, static_cast<std::uint64_t*>(on_device.data()) + i, nullptr);
  on_device.download(sums.data());
  return sums;
}

} // namespace troupe
