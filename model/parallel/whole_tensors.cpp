#include "model/parallel/whole_tensors.hpp"
#include "core/error.hpp"
#include "model/parallel/stages.hpp"
#include <algorithm>

namespace troupe {

namespace {

std::size_t numel_of(const std::vector<std::int64_t>& shape) {
  std::size_t n = 1;
  for (const auto size : shape)
    n *= std::size_t(size);
  return n;
}

} // namespace

whole_tensors::whole_tensors(causal_lm& model, const rank_context& ranks) : model_(model), ranks_(ranks) {
  const auto layout = layout_of(model.config());
  const auto cuts = stage_cuts(layout, ranks.shape.pp);
  for (std::size_t b = 0; b < layout.size(); ++b) {
    const int stage = int(std::upper_bound(cuts.begin(), cuts.end() - 1, b) - cuts.begin()) - 1;
    for (const tensor_spec& spec : layout[b].tensors)
      tensors_.push_back({spec, stage});
  }
}

std::span<const float> whole_tensors::own_part(const std::string& name, const part_of& part) const {
  const auto all = model_.parameters();
  for (std::size_t i = 0; i < all.size(); ++i)
    if (all[i].name == name) {
      const auto own = part(all[i], i);
      if (own.size() != all[i].numel())
        throw error{errc::bad_shape, "tensor " + name + ": this rank has " + std::to_string(own.size()) + " of the " +
                                         std::to_string(all[i].numel()) + " values that are to be gathered; load the model for training"};
      return own;
    }
  throw error{errc::failed, "tensor " + name + " is not on this stage"};
}

// First to the first rank of the stage, then to that of all.
void whole_tensors::gather(std::size_t i, const part_of& part, std::vector<float>& whole) const {
  const auto& [spec, stage] = tensors_[i];
  if (ranks_.dp_rank != 0)
    return;
  if (ranks_.pp_rank == stage)
    join(spec, own_part(spec.name, part), whole);
  if (stage == 0 || ranks_.tp_rank != 0)
    return;
  whole.resize(std::size_t(spec.numel()));
  if (ranks_.pp_rank == stage)
    ranks_.pp->send(whole.data(), whole.size() * sizeof(float), 0, spec.name);
  else if (ranks_.first_stage())
    ranks_.pp->recv(whole.data(), whole.size() * sizeof(float), stage, spec.name);
}

void whole_tensors::join(const tensor_spec& spec, std::span<const float> own, std::vector<float>& whole) const {
  const int tp = ranks_.shape.tp;
  if (tp == 1 || spec.shard == shard_rule::none) {
    if (ranks_.tp_rank == 0)
      whole.assign(own.begin(), own.end());
    return;
  }
  if (ranks_.tp_rank != 0)
    return ranks_.tp->send(own.data(), own.size_bytes(), 0, spec.name);
  whole.resize(std::size_t(spec.numel()));
  put(spec, 0, own.data(), whole);
  std::vector<float> other;
  for (int r = 1; r < tp; ++r) {
    other.resize(numel_of(shard_shape(spec, r, tp)));
    ranks_.tp->recv(other.data(), other.size() * sizeof(float), r, spec.name);
    put(spec, r, other.data(), whole);
  }
}

// A rank's part into its place.
void whole_tensors::put(const tensor_spec& spec, int rank, const float* from, std::vector<float>& whole) const {
  const shard_range range = shard_of(spec, rank, ranks_.shape.tp);
  const std::int64_t width = spec.shape.size() > 1 ? spec.shape[1] : 1, count = range.end - range.begin;
  if (range.dim == 0) {
    std::copy_n(from, count * width, whole.begin() + range.begin * width);
    return;
  }
  for (std::int64_t row = 0; row < spec.shape[0]; ++row)
    std::copy_n(from + row * count, count, whole.begin() + row * width + range.begin);
}

} // namespace troupe
