#pragma once
#include "core/dtype.hpp"
#include "model/cuda/arena.hpp"
#include "model/parallel/device_communicator.hpp"
#include <cstdint>
#include <memory>
#include <string_view>
#include <utility>
#include <vector>

namespace troupe::cuda {

/// The tensor-parallel ranks of a model as its blocks see them: sums in rank order, so that all ranks have the same bits. Without a group,
/// one rank, and every call below does nothing. One thread, one stream.
class device_tp {
public:
  device_tp() = default;
  explicit device_tp(std::unique_ptr<device_communicator> group) : group_(std::move(group)) {}
  int rank() const { return group_ ? group_->rank() : 0; }
  int size() const { return group_ ? group_->size() : 1; }
  /// data [count] becomes the sum over ranks, parts in `type`, added in f32, rounded once.
  void sum(dtype type, void* data, std::int64_t count, arena& work, stream where, std::string_view what) const;
  /// parts f32: [count] of this rank -> the sum over the `replicas` consecutive ranks that hold the same, added to `sum` [count].
  void add_replicas(const float* part, int replicas, std::int64_t count, float* sum, arena& work, stream where,
                    std::string_view what) const;
  /// own [rows, widths[rank]] f32 -> all [rows, sum of widths] on every rank.
  void gather_columns(const float* own, std::int64_t rows, const std::vector<std::int64_t>& widths, float* all, arena& work, stream where,
                      std::string_view what) const;
  /// Until the stream's work is done; a rank that is lost ends the wait.
  void wait(stream where, std::string_view what) const;

private:
  std::unique_ptr<device_communicator> group_;
};

} // namespace troupe::cuda
