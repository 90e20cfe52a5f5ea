#pragma once
#include "core/dtype.hpp"
#include "model/kernels/cuda/memory.hpp"
#include <cstdint>

namespace troupe::cuda {

// Row kernels on the GPU, the twins of model/kernels/elementwise.hpp. A row's bits depend on that row and its width alone.
// Pointers are the device's, row-major, no padding; the work is queued on `where` and the call returns.

/// residual [n, h] += x [n, h], rounded; then y [n, h] = w [h] * round(residual / sqrt(mean(residual^2) + eps)), rounded.
/// All of type `type`, f32 or bf16, 16-byte aligned. x null: nothing is added. y may be x; no other overlap.
/// Throws errc::bad_shape for h < 1 or > 16384 (bf16: 32768; rows that are no multiple of 16 bytes: 4096), errc::unsupported for other
/// types.
void add_rms_norm(dtype type, const void* x, void* residual, const void* w, float eps, std::int64_t n, std::int64_t h, void* y,
                  stream where);

} // namespace troupe::cuda
