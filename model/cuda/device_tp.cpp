#include "model/cuda/device_tp.hpp"
#include "model/kernels/cuda/elementwise.hpp"
#include "model/kernels/cuda/sum_parts.hpp"
#include <algorithm>

namespace troupe::cuda {

void device_tp::sum(dtype type, void* data, std::int64_t count, arena& work, stream where, std::string_view what) const {
  if (group_)
    all_reduce(*group_, type, data, count, work.take(all_reduce_scratch_bytes(size(), type, count)), where, what);
}

void device_tp::add_replicas(const float* part, int replicas, std::int64_t count, float* sum, arena& work, stream where,
                             std::string_view what) const {
  if (replicas > 1) {
    auto* all = work.take_array<float>(std::size_t(size() * count));
    group_->all_gather(part, all, std::size_t(count) * sizeof(float), where, what);
    float* mine = all + rank() / replicas * replicas * count;
    sum_parts(dtype::f32, mine, replicas, count, mine, where);
    part = mine;
  }
  add(dtype::f32, sum, part, count, where);
}

void device_tp::gather_columns(const float* own, std::int64_t rows, const std::vector<std::int64_t>& widths, float* all, arena& work,
                               stream where, std::string_view what) const {
  std::int64_t total = 0, begin = 0;
  for (const auto width : widths)
    total += width;
  const std::int64_t widest = *std::max_element(widths.begin(), widths.end());
  auto* parts = work.take_array<float>(std::size_t(size() * rows * widest));
  // A narrower part is sent with what lies behind it: the parts of an all-gather are of one size.
  group_->all_gather(own, parts, std::size_t(rows * widest) * sizeof(float), where, what);
  for (std::size_t r = 0; r < widths.size(); ++r) {
    copy_rows_async(all + begin, std::size_t(total) * sizeof(float), parts + std::int64_t(r) * rows * widest,
                    std::size_t(widths[r]) * sizeof(float), std::size_t(widths[r]) * sizeof(float), std::size_t(rows), where);
    begin += widths[r];
  }
}

void device_tp::wait(stream where, std::string_view what) const {
  if (group_)
    group_->wait(where, what);
  else
    synchronize(where);
}

} // namespace troupe::cuda
