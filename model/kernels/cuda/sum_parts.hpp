#pragma once
#include "core/dtype.hpp"
#include "model/kernels/cuda/memory.hpp"
#include <cstdint>

namespace troupe::cuda {

/// out [count] = sum of parts [n_parts][count] in that order, added in f32 and rounded once: the bits of model/parallel/reduce.hpp's.
/// type: f32 or bf16. `out` may be one of the parts.
void sum_parts(dtype type, const void* parts, int n_parts, std::int64_t count, void* out, stream where);

} // namespace troupe::cuda
