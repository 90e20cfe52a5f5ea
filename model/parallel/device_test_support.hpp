#pragma once
#include "model/kernels/cuda/memory.hpp"
#include "model/kernels/cuda/nccl.hpp"
#include <cstdlib>
#include <filesystem>
#include <string>

namespace troupe {

/// Why `n` ranks cannot run here, "" if they can: then what ranks that share a GPU need of NCCL is set, for workers to inherit.
inline std::string prepare_device_ranks(int n) {
  const int devices = cuda::device_count();
  if (devices == 0)
    return "no GPU";
  if (devices >= n)
    return "";
  if (cuda::nccl_version() < 23000)
    return "ranks that share a GPU need NCCL 2.30, this is " + std::to_string(cuda::nccl_version());
  setenv("NCCL_MULTI_RANK_GPU_ENABLE", "1", 0);
  setenv("NCCL_NVLS_ENABLE", "0", 0);
  setenv("NCCL_MAX_CTAS", "8", 0);
  return "";
}

/// A program in this one's folder.
inline std::string program_beside(const std::string& name) {
  return (std::filesystem::read_symlink("/proc/self/exe").parent_path() / name).string();
}

} // namespace troupe
