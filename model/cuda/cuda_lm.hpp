#pragma once
#include "model/causal_lm.hpp"
#include "model/compute.hpp"
#include "model/registry.hpp"
#include <memory>

namespace troupe {

/// The model of make_model on the GPU that `where` names: the same causal_lm, with the arithmetic of model/kernels/cuda (docs/numerics.md).
/// Optimizer and files see the host's copies of its tensors. `parameter::device_value` is what a pass reads: what is written there between
/// two passes, as weights over NCCL are, counts at once.
/// Throws errc::unsupported for pipeline stages and for ranks that are threads, errc::failed when the GPU's memory does not suffice.
std::shared_ptr<causal_lm> make_cuda_model(const model_config& cfg, const model_options& options, compute& where);

} // namespace troupe
