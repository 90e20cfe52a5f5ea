#include "model/kernels/cuda/check.cuh"
#include "model/kernels/cuda/checksum.hpp"
#include <algorithm>

namespace troupe::cuda {

namespace {

using word = unsigned long long;

constexpr int threads = 512;
constexpr int most_blocks = 8 * 132; // a few for each multiprocessor; more would only add to the sums' traffic

__device__ word mix(word value, word index) {
  word x = value + (index + 1) * 0x9E3779B97F4A7C15u;
  x ^= x >> 32;
  x *= 0xBF58476D1CE4E5B9u;
  return x ^ x >> 29;
}

/// The word at `index`, little endian; bytes behind the end are zeros.
__device__ word bytewise(const unsigned char* data, std::size_t n_bytes, std::size_t index) {
  word value = 0;
  for (std::size_t i = 0; i < 8 && index * 8 + i < n_bytes; ++i)
    value |= word(data[index * 8 + i]) << (8 * i);
  return value;
}

/// Adds to *sum; words in any order, as the sum is modulo 2^64.
template <bool aligned>
__global__ void checksum_kernel(const unsigned char* data, std::size_t n_bytes, word* sum) {
  const std::size_t first = blockIdx.x * std::size_t(threads) + threadIdx.x, stride = std::size_t(gridDim.x) * threads;
  word mine = 0;
  std::size_t done = 0; // words
  if constexpr (aligned) {
    const auto* pairs = reinterpret_cast<const ulonglong2*>(data);
    const std::size_t n_pairs = n_bytes / 16;
    for (std::size_t i = first; i < n_pairs; i += stride) {
      const ulonglong2 two = pairs[i];
      mine += mix(two.x, 2 * i) + mix(two.y, 2 * i + 1);
    }
    done = n_pairs * 2;
  }
  for (std::size_t i = done + first; i < (n_bytes + 7) / 8; i += stride)
    mine += mix(bytewise(data, n_bytes, i), i);
  for (int lane = 16; lane > 0; lane /= 2)
    mine += __shfl_down_sync(~0u, mine, lane);
  if (threadIdx.x % 32 == 0 && mine != 0)
    atomicAdd(sum, mine);
}

} // namespace

void weights_checksum(const void* data, std::size_t n_bytes, std::uint64_t* sum, stream where) {
  fill_zero(sum, sizeof *sum, where);
  if (n_bytes == 0)
    return;
  const auto blocks = unsigned(std::clamp<std::size_t>(n_bytes / 16 / threads, 1, most_blocks));
  const auto* bytes = static_cast<const unsigned char*>(data);
  auto* to = reinterpret_cast<word*>(sum);
  if (reinterpret_cast<std::uintptr_t>(data) % 16 == 0)
    checksum_kernel<true><<<blocks, threads, 0, where>>>(bytes, n_bytes, to);
  else
    checksum_kernel<false><<<blocks, threads, 0, where>>>(bytes, n_bytes, to);
  check(cudaGetLastError(), "launching a checksum");
}

} // namespace troupe::cuda
