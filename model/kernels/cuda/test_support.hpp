#pragma once
#include "core/dtype.hpp"
#include "model/kernels/cuda/memory.hpp"
#include "model/kernels/gemm.hpp"
#include <cmath>
#include <cstdint>
#include <gtest/gtest.h>
#include <vector>

namespace troupe::cuda {

/// Skips where there is no GPU. P: the parameters of a table.
template <class P>
class gpu_table : public testing::TestWithParam<P> {
protected:
  void SetUp() override {
    if (device_count() == 0)
      GTEST_SKIP() << "no GPU";
  }
};
class gpu_test : public testing::Test {
protected:
  void SetUp() override {
    if (device_count() == 0)
      GTEST_SKIP() << "no GPU";
  }
};

/// Host values on the device, as they are, and back.
template <class T>
device_buffer to_device(const std::vector<T>& values) {
  device_buffer buffer(values.size() * sizeof(T));
  if (!values.empty())
    buffer.upload(values.data());
  return buffer;
}
template <class T>
std::vector<T> to_host(const device_buffer& buffer) {
  synchronize();
  std::vector<T> values(buffer.size() / sizeof(T));
  if (!values.empty())
    buffer.download(values.data());
  return values;
}
template <class T>
T* as(const device_buffer& buffer) {
  return static_cast<T*>(buffer.data());
}

inline float round_to(dtype type, float v) { return type == dtype::bf16 ? kernels::widen(kernels::narrow(v)) : v; }

/// Floats as values of `type` on the device (rounded), and back.
inline device_buffer upload(dtype type, const std::vector<float>& values) {
  if (type == dtype::f32)
    return to_device(values);
  std::vector<kernels::bf16> halves;
  for (const float v : values)
    halves.push_back(kernels::narrow(v));
  return to_device(halves);
}
inline std::vector<float> download(dtype type, const device_buffer& buffer) {
  if (type == dtype::f32)
    return to_host<float>(buffer);
  std::vector<float> values;
  for (const auto half : to_host<kernels::bf16>(buffer))
    values.push_back(kernels::widen(half));
  return values;
}
inline device_buffer room(dtype type, std::int64_t count) { return device_buffer(std::size_t(count) * size_of(type)); }

/// Values in -4 .. 4 that `type` holds exactly.
inline std::vector<float> noise(dtype type, std::int64_t n, std::uint32_t seed) {
  std::vector<float> values(static_cast<std::size_t>(n));
  for (auto& v : values) {
    seed = seed * 1664525u + 1013904223u;
    v = round_to(type, float(std::int32_t(seed) / 65536) / 8192.f);
  }
  return values;
}

inline void expect_near(const std::vector<float>& got, const std::vector<float>& want, float relative, float absolute) {
  ASSERT_EQ(got.size(), want.size());
  for (std::size_t i = 0; i < got.size(); ++i)
    ASSERT_NEAR(got[i], want[i], relative * std::abs(want[i]) + absolute) << "element " << i;
}

} // namespace troupe::cuda
