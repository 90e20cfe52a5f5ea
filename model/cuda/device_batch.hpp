#pragma once
#include "model/batch.hpp"
#include "model/kernels/cuda/attention.hpp"
#include "model/kernels/cuda/memory.hpp"
#include <cstdint>
#include <span>
#include <vector>

namespace troupe::cuda {

/// A pass's arrays as the kernels read them, the device's memory.
struct device_batch {
  std::int64_t n = 0;                                                        // rows, padding included
  const std::int32_t *ids = nullptr, *positions = nullptr, *slots = nullptr; // [n]
  attention_plan plan;
  std::int64_t n_copies = 0;
  const std::int32_t *copy_rows = nullptr, *copy_slots = nullptr;
  std::int64_t n_rows = 0;
  const std::int32_t* rows = nullptr; // [n_rows] rows that the head reads
};

/// The ids whose embeddings a rank holds; the others are negative on the device.
struct id_range {
  std::int64_t begin = 0, end = 0;
};

/// Sizes of a pass that may be larger than the batch: what a captured graph was made for. Zeros: as the batch is.
struct pass_bounds {
  std::int64_t rows = 0; // single-row segments, padded with segments of no key
  std::int32_t max_keys = 0;
};

/// Host integers of passes and where they lie on the device: one upload a pass, to the same place while bounds stay.
class batch_upload {
public:
  /// Valid until the next call, which must not come before the work that reads it has ended.
  device_batch put(const token_batch& batch, std::span<const std::int32_t> head_rows, const pass_bounds& bounds, const id_range& own,
                   stream where);
  /// The device memory moved since the last call, so that captured pointers are stale.
  bool moved() const { return moved_; }

private:
  pinned_buffer host_;
  device_buffer device_;
  bool moved_ = false;
};

} // namespace troupe::cuda
