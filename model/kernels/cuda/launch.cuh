#pragma once
#include "model/kernels/cuda/check.cuh"
#include "model/kernels/cuda/memory.hpp"
#include <cstddef>

// Programmatic dependent launch: a kernel starts while its predecessor in the stream still runs, and waits inside for what it wrote.
// The kernels of a decoding step all do it. Each calls wait_for_predecessors in every thread that touches memory others write, so
// that "my predecessor is done" means that all before it are. Before that they read nothing but weights and tables, which whoever wrote
// them finished before the pass began: a pass's first kernel (embed) is launched without.
namespace troupe::cuda {

/// Returns when the kernels before this one are done and what they wrote can be read, or overwritten.
__device__ __forceinline__ void wait_for_predecessors() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
/// The next kernel may start once every block has said so or ended.
__device__ __forceinline__ void let_successor_start() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

/// Whether the current device is Hopper or later: early starts and clusters. A process uses devices of one kind.
inline bool hopper_or_later() {
  static const bool known = [] {
    int device = 0, major = 0;
    check(cudaGetDevice(&device), "asking for the GPU");
    check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device), "asking for the GPU's capability");
    return major >= 9;
  }();
  return known;
}

/// Launches a kernel that calls wait_for_predecessors, in clusters of so many blocks. shared_bytes: dynamic. All such kernels ask for one
/// split of a multiprocessor's memory: those of different splits are never on one multiprocessor at a time.
template <class... P, class... A>
void launch_early_clusters(const char* what, void (*kernel)(P...), dim3 grid, unsigned cluster, unsigned threads, std::size_t shared_bytes,
                           stream where, const A&... arguments) {
  cudaLaunchAttribute attributes[3]{};
  attributes[0].id = cudaLaunchAttributePreferredSharedMemoryCarveout;
  attributes[0].val.sharedMemCarveout = cudaSharedmemCarveoutMaxShared;
  attributes[1].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[1].val.programmaticStreamSerializationAllowed = hopper_or_later();
  attributes[2].id = cudaLaunchAttributeClusterDimension;
  attributes[2].val.clusterDim = {cluster, 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = shared_bytes;
  config.stream = where;
  config.attrs = attributes;
  config.numAttrs = cluster > 1 ? 3 : 2;
  check(cudaLaunchKernelEx(&config, kernel, static_cast<P>(arguments)...), what);
}
template <class... P, class... A>
void launch_early(const char* what, void (*kernel)(P...), dim3 grid, unsigned threads, std::size_t shared_bytes, stream where,
                  const A&... arguments) {
  launch_early_clusters(what, kernel, grid, 1, threads, shared_bytes, where, arguments...);
}

} // namespace troupe::cuda
