#include "model/parallel/rank_files.hpp"
#include "core/error.hpp"
#include "model/layout.hpp"
#include "model/parallel/stages.hpp"
#include "model/weights/safetensors.hpp"
#include <algorithm>
#include <cstring>
#include <vector>

namespace troupe {

namespace {

// A tensor's parts, put together at the first rank of a stage and, from there, brought to the first rank of all.
class tensor_gatherer {
public:
  tensor_gatherer(causal_lm& model, const rank_context& ranks) : model_(model), ranks_(ranks) {}

  /// All ranks of the tensor's stage, and the first stage. whole: filled at the first rank.
  void gather(const tensor_spec& spec, int stage, std::vector<float>& whole) {
    if (ranks_.pp_rank == stage)
      join(spec, whole);
    if (stage == 0 || ranks_.tp_rank != 0)
      return;
    whole.resize(std::size_t(spec.numel()));
    if (ranks_.pp_rank == stage)
      ranks_.pp->send(whole.data(), whole.size() * sizeof(float), 0, spec.name);
    else if (ranks_.first_stage())
      ranks_.pp->recv(whole.data(), whole.size() * sizeof(float), stage, spec.name);
  }

private:
  std::span<const float> part(const std::string& name) const {
    for (const parameter& p : model_.parameters())
      if (p.name == name) {
        if (p.master.size() != p.numel())
          throw error{errc::bad_shape, "save: tensor " + name + " has no master; load the model for training, with it among what is trained"};
        return p.master;
      }
    throw error{errc::failed, "save: tensor " + name + " is not on this stage"};
  }

  void join(const tensor_spec& spec, std::vector<float>& whole) {
    const std::span<const float> own = part(spec.name);
    const int tp = ranks_.shape.tp;
    const auto numel = std::size_t(spec.numel());
    if (tp == 1 || spec.shard == shard_rule::none) {
      whole.assign(own.begin(), own.end());
      return;
    }
    std::size_t widest = 0;
    for (int r = 0; r < tp; ++r)
      widest = std::max(widest, numel_of(shard_shape(spec, r, tp)));
    std::vector<float> mine(widest), all(widest * std::size_t(tp));
    std::copy(own.begin(), own.end(), mine.begin());
    ranks_.tp->all_gather(mine.data(), all.data(), widest * sizeof(float), spec.name);
    if (ranks_.tp_rank != 0)
      return;
    whole.resize(numel);
    for (int r = 0; r < tp; ++r)
      put(spec, r, all.data() + widest * std::size_t(r), whole);
  }

  // Rank r's part into its place.
  void put(const tensor_spec& spec, int r, const float* from, std::vector<float>& whole) const {
    const shard_range range = shard_of(spec, r, ranks_.shape.tp);
    const std::int64_t width = spec.shape[1], count = range.end - range.begin;
    if (range.dim == 0) {
      std::copy_n(from, count * width, whole.begin() + range.begin * width);
      return;
    }
    for (std::int64_t row = 0; row < spec.shape[0]; ++row)
      std::copy_n(from + row * count, count, whole.begin() + row * width + range.begin);
  }

  static std::size_t numel_of(const std::vector<std::int64_t>& shape) {
    std::size_t n = 1;
    for (const auto size : shape)
      n *= std::size_t(size);
    return n;
  }

  causal_lm& model_;
  const rank_context& ranks_;
};

} // namespace

void save_rank_weights(causal_lm& model, const rank_context& ranks, const std::filesystem::path& dir, dtype type) {
  const auto layout = layout_of(model.config());
  const auto cuts = stage_cuts(layout, ranks.shape.pp);
  tensor_gatherer gatherer(model, ranks);
  std::vector<tensor_to_make> tensors;
  std::vector<std::function<void()>> others; // what ranks that do not write do, in the writer's order
  for (std::size_t b = 0; b < layout.size(); ++b) {
    const int stage = int(std::upper_bound(cuts.begin(), cuts.end() - 1, b) - cuts.begin()) - 1;
    for (const tensor_spec& spec : layout[b].tensors) {
      others.push_back([&gatherer, spec, stage] {
        std::vector<float> whole;
        gatherer.gather(spec, stage, whole);
      });
      tensors.push_back({spec.name, type, spec.shape, [&gatherer, spec, stage, type](std::span<std::byte> to) {
                           std::vector<float> whole;
                           gatherer.gather(spec, stage, whole);
                           convert_elements(dtype::f32, reinterpret_cast<const std::byte*>(whole.data()), type, to.data(), whole.size());
                         }});
    }
  }
  if (ranks.first_stage() && ranks.tp_rank == 0)
    return write_safetensors(dir, tensors);
  for (const auto& take_part : others)
    take_part();
}

} // namespace troupe
