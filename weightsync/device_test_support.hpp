#pragma once
#include "model/kernels/cuda/memory.hpp"
#include "weightsync/channel.hpp"
#include "weightsync/manifest.hpp"
#include "weightsync/test_support.hpp"

namespace troupe {

/// A fake_model whose values are on the current GPU; the host's copies are zeros.
struct device_model {
  std::shared_ptr<fake_model> host;
  std::vector<cuda::device_buffer> buffers;

  explicit device_model(unsigned fill, const std::vector<fake_model::spec>& s = specs) : host(model(fill, s)) {
    const auto parameters = host->parameters();
    for (std::size_t i = 0; i < parameters.size(); ++i) {
      parameter& p = parameters[i];
      buffers.emplace_back(p.value.size() + 1); // an empty tensor has a place, too
      p.device_value = buffers.back().data();
      upload(i);
      std::fill(p.value.begin(), p.value.end(), std::byte{0});
    }
  }
  /// The host's value of tensor i, as it is now, to the GPU.
  void upload(std::size_t i) {
    const parameter& p = host->parameters()[i];
    cuda::copy_async(p.device_value, p.value.data(), p.value.size(), nullptr);
    cuda::synchronize();
  }
  /// Adds 1 to the tensor's first byte.
  void change(std::size_t i) {
    const parameter& p = host->parameters()[i];
    std::byte first;
    cuda::copy_async(&first, p.device_value, 1, nullptr);
    cuda::synchronize();
    first = std::byte(int(first) + 1);
    cuda::copy_async(p.device_value, &first, 1, nullptr);
    cuda::synchronize();
  }
  /// Of all values, from the GPU, by the host's arithmetic.
  std::uint64_t digest() const {
    std::uint64_t sum = 0;
    for (const parameter& p : host->parameters()) {
      std::vector<std::byte> bytes(p.value.size());
      cuda::copy_async(bytes.data(), p.device_value, bytes.size(), nullptr);
      cuda::synchronize();
      sum = sum * 31 + weights_checksum(bytes);
    }
    return sum;
  }
};

} // namespace troupe
