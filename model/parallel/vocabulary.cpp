#include "model/parallel/vocabulary.hpp"
#include <algorithm>
#include <cstring>

namespace troupe {

using kernels::softmax_stats;

void vocabulary_slice::softmax(compute& where, const float* logits, std::int64_t rows, float temperature, bool moment,
                               std::span<const target> targets, softmax_stats* stats, float* target_logits) const {
  kernels::softmax_rows(where, logits, rows, count_, temperature, moment, stats);
  for (std::size_t i = 0; i < targets.size(); ++i)
    target_logits[i] = holds(targets[i].id) ? logits[targets[i].row * count_ + targets[i].id - begin_] : 0.f;
  if (tp_.size() == 1)
    return;
  // One message: the stats of all rows, then the targets' logits, where they are known.
  const auto n = std::size_t(rows), ranks = std::size_t(tp_.size()), length = n * 3 + targets.size();
  std::vector<float> mine(length), all(length * ranks);
  std::memcpy(mine.data(), stats, n * sizeof(softmax_stats));
  std::copy_n(target_logits, targets.size(), mine.begin() + std::ptrdiff_t(n * 3));
  tp_.group().all_gather(mine.data(), all.data(), length * sizeof(float), "softmax");
  std::vector<softmax_stats> of_row(ranks);
  for (std::size_t r = 0; r < n; ++r) {
    for (std::size_t p = 0; p < ranks; ++p)
      std::memcpy(&of_row[p], all.data() + p * length + r * 3, sizeof(softmax_stats));
    stats[r] = kernels::merge(of_row.data(), int(ranks));
  }
  for (std::size_t i = 0; i < targets.size(); ++i)
    target_logits[i] = all[std::size_t(targets[i].id / widest()) * length + n * 3 + i];
}

softmax_stats vocabulary_slice::softmax_row(isa which, const float* logits, float temperature) const {
  if (tp_.size() == 1)
    return kernels::softmax_row(which, logits, total_, temperature, false);
  std::vector<softmax_stats> slices;
  for (std::int64_t begin = 0; begin < total_; begin += widest())
    slices.push_back(kernels::softmax_row(which, logits + begin, std::min(widest(), total_ - begin), temperature, false));
  return kernels::merge(slices.data(), int(slices.size()));
}

kernels::row_gradient vocabulary_slice::own(const kernels::row_gradient& whole) const {
  if (tp_.size() == 1)
    return whole;
  kernels::row_gradient part;
  part.d_entropy = whole.d_entropy;
  for (std::size_t i = 0; i < whole.ids.size(); ++i)
    if (holds(whole.ids[i])) {
      part.ids.push_back(std::int32_t(whole.ids[i] - begin_));
      part.d_logprob.push_back(whole.d_logprob[i]);
    } else {
      part.elsewhere += whole.d_logprob[i];
    }
  return part;
}

void vocabulary_slice::gather(const float* logits, std::int64_t rows, float* out) const {
  at::Tensor own = empty_matrix<float>(rows, count_);
  std::memcpy(data<float>(own), logits, std::size_t(own.numel()) * sizeof(float));
  const at::Tensor all = tp_.gather_columns<float>(own, widest(), total_, "logits");
  std::memcpy(out, data<float>(all), std::size_t(all.numel()) * sizeof(float));
}

} // namespace troupe
