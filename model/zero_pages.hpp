#pragma once
#include <ATen/core/Tensor.h>

namespace troupe {

/// Zeros in fresh pages, large ones where the system has them: memory is taken, and costs time, where it is first written, by
/// whichever thread writes it.
at::Tensor zero_pages(at::IntArrayRef shape, at::ScalarType type);

} // namespace troupe
