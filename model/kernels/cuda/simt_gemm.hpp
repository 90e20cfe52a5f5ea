#pragma once
#include "core/dtype.hpp"
#include "model/kernels/cuda/memory.hpp"
#include <cstdint>

namespace troupe::cuda {

/// A matrix as a product reads it: element (i, p) at i * row + p * column.
struct gemm_operand {
  const void* data = nullptr;
  std::int64_t row = 0, column = 0;
};

/// out [n, m] = or += a [n, k] b [m, k]^T (+ bias [m]), without tensor cores: one chain of fused additions an output, k ascending, whatever
/// n and m are; model/kernels/gemm.hpp's order for float32. a, b and bias of `type`, out of `to` (type, or f32). Any shape and alignment.
void simt_gemm(dtype type, gemm_operand a, gemm_operand b, const void* bias, std::int64_t n, std::int64_t m, std::int64_t k, void* out,
               dtype to, bool accumulate, stream where);

} // namespace troupe::cuda
