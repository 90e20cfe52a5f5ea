#pragma once
#include "model/causal_lm.hpp"
#include "model/kernels/cuda/nccl.hpp"
#include "weightsync/manifest.hpp"
#include <span>
#include <vector>

namespace troupe {

/// The numbers of the manifest's entries that a transfer brings.
std::vector<std::size_t> entries_of(const manifest& m, bool everything);

/// From rank 0's `device_value`s to the others', as both number them by the manifest; several tensors at a time.
/// Returns when they are there. Errors are nccl_rank's and name tensors.
void broadcast_values(cuda::nccl_rank& ranks, const manifest& m, std::span<const std::size_t> entries, std::span<void* const> values,
                      cuda::stream where);

/// `device_value`s of the tensors that a manifest counts, in its order.
std::vector<void*> device_values(causal_lm& model);

} // namespace troupe
