#pragma once
#include "core/dtype.hpp"
#include "model/kernels/cuda/memory.hpp"
#include <bit>
#include <cstdint>
#include <cstring>
#include <random>
#include <string>
#include <vector>

/// Host values as the device wants them, and back.
namespace troupe::cuda::test {

/// Nearest bf16, ties to even, widened again.
inline float round_to(dtype type, float v) {
  const auto bits = std::bit_cast<std::uint32_t>(v);
  return type == dtype::f32 ? v : std::bit_cast<float>((bits + 0x7fffu + (bits >> 16 & 1u)) & 0xffff0000u);
}

inline std::vector<float> noise(dtype type, std::size_t n, float gain, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> values(n);
  for (auto& v : values)
    v = round_to(type, gain * normal(random));
  return values;
}

inline device_buffer upload(dtype type, const std::vector<float>& values) {
  device_buffer buffer(values.size() * size_of(type));
  if (type == dtype::f32) {
    buffer.upload(values.data());
    return buffer;
  }
  std::vector<std::uint16_t> halves(values.size());
  for (std::size_t i = 0; i < values.size(); ++i)
    halves[i] = std::uint16_t(std::bit_cast<std::uint32_t>(values[i]) >> 16);
  buffer.upload(halves.data());
  return buffer;
}
inline device_buffer upload(const std::vector<int>& values) {
  device_buffer buffer(values.size() * sizeof(int));
  buffer.upload(values.data());
  return buffer;
}
inline std::vector<float> download(dtype type, const device_buffer& buffer) {
  std::vector<float> values(buffer.size() / size_of(type));
  if (type == dtype::f32) {
    buffer.download(values.data());
    return values;
  }
  std::vector<std::uint16_t> halves(values.size());
  buffer.download(halves.data());
  for (std::size_t i = 0; i < values.size(); ++i)
    values[i] = std::bit_cast<float>(std::uint32_t(halves[i]) << 16);
  return values;
}
inline void fill(device_buffer& buffer, unsigned char byte) {
  const std::string bytes(buffer.size(), char(byte));
  buffer.upload(bytes.data());
}
template <class T>
T* pointer(const device_buffer& buffer) {
  return static_cast<T*>(buffer.data());
}

} // namespace troupe::cuda::test
