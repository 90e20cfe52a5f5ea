#pragma once
#include <cooperative_groups.h>

// Clusters of thread blocks, which GPUs before Hopper do not have: there a cluster is one block.
namespace troupe::cuda {

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
/// A cluster of one, with the calls of cooperative_groups::cluster_group.
struct block_cluster {
  __device__ static unsigned num_blocks() { return 1; }
  __device__ static unsigned block_rank() { return 0; }
  __device__ static unsigned num_threads() { return blockDim.x; }
  __device__ static unsigned thread_rank() { return threadIdx.x; }
  __device__ static void sync() { __syncthreads(); }
  template <class T>
  __device__ static T* map_shared_rank(T* own, int) {
    return own;
  }
};
__device__ __forceinline__ block_cluster this_cluster() { return {}; }
#else
__device__ __forceinline__ cooperative_groups::cluster_group this_cluster() { return cooperative_groups::this_cluster(); }
#endif

} // namespace troupe::cuda
