#pragma once
#include "model/kernels/cuda/check.cuh"
#include <cstdint>
#include <cuda.h>
#include <cuda_runtime.h>

// Hopper's bulk copies to shared memory, and the barriers that they report to.
namespace troupe::cuda {

/// A bf16 matrix that is read in boxes of 64 columns (128 bytes, swizzled) and box_rows rows. Rows are 16-byte aligned.
inline CUtensorMap tensor_map(const void* data, std::int64_t rows, std::int64_t columns, unsigned box_rows) {
  static const auto encode = [] {
    void* found = nullptr;
    cudaDriverEntryPointQueryResult result;
    check(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000, cudaEnableDefault, &result), "cuTensorMapEncodeTiled");
    return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(found);
  }();
  CUtensorMap map;
  const cuuint64_t sizes[] = {cuuint64_t(columns), cuuint64_t(rows)}, strides[] = {cuuint64_t(columns) * 2};
  const cuuint32_t box[] = {64, box_rows}, steps[] = {1, 1};
  const CUresult status = encode ? encode(&map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2, const_cast<void*>(data), sizes, strides, box, steps,
                                          CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                                          CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE)
                                 : CUDA_ERROR_NOT_FOUND;
  if (status != CUDA_SUCCESS)
    throw error(errc::failed, "tensor map of [" + std::to_string(rows) + ", " + std::to_string(columns) + "]: CUDA's driver says: error " +
                                  std::to_string(int(status)) + "; a driver of CUDA 12 or newer is needed");
  return map;
}

/// A barrier in shared memory, at address `at`. Its phases have parity 0, 1, 0, ...
struct barrier {
  std::uint32_t at;
  __device__ __forceinline__ void init(int arrivals) const {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(at), "r"(arrivals) : "memory");
  }
  /// One arrival, and so many bytes that copies will bring.
  __device__ __forceinline__ void expect(int bytes) const {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(at), "r"(bytes) : "memory");
  }
  __device__ __forceinline__ void arrive() const { asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(at) : "memory"); }
  __device__ __forceinline__ void wait(int parity) const {
    asm volatile("{.reg .pred p; again: mbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1; @!p bra again;}" ::"r"(at), "r"(parity)
                 : "memory");
  }
};
/// After barriers are initialised, before the threads meet.
__device__ __forceinline__ void publish_barriers() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }

/// The box at (row, column) of a tensor_map; what lies outside of the matrix is 0.
__device__ __forceinline__ void copy_box(std::uint32_t to, const CUtensorMap& from, int row, int column, barrier done) {
  asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::"r"(to),
               "l"(&from), "r"(column), "r"(row), "r"(done.at)
               : "memory");
}
/// A multiple of 16 bytes, 16-byte aligned.
__device__ __forceinline__ void copy_bytes(std::uint32_t to, const void* from, int bytes, barrier done) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to), "l"(from), "r"(bytes),
               "r"(done.at)
               : "memory");
}

} // namespace troupe::cuda
