#include "model/zero_pages.hpp"
#include "core/error.hpp"
#include <ATen/ops/from_blob.h>
#include <ATen/ops/zeros.h>
#include <string>
#include <sys/mman.h>

namespace troupe {

at::Tensor zero_pages(at::IntArrayRef shape, at::ScalarType type) {
  constexpr std::size_t least = 1 << 20; // below it malloc wastes less
  std::size_t bytes = c10::elementSize(type);
  for (const auto size : shape)
    bytes *= std::size_t(size);
  if (bytes < least)
    return at::zeros(shape, type);
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED)
    throw error{errc::failed, "a tensor of " + std::to_string(bytes) + " bytes: the system has not that much memory"};
  madvise(memory, bytes, MADV_HUGEPAGE);
  return at::from_blob(
      memory, shape, [bytes](void* at) { munmap(at, bytes); }, type);
}

} // namespace troupe
