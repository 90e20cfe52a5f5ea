#include "model/registry.hpp"
#include "core/error.hpp"
#include "model/adapter_block.hpp"
#include "model/decoder_lm.hpp"
#include "model/parallel/stages.hpp"
#ifdef TROUPE_CUDA
#include "model/cuda/cuda_lm.hpp"
#endif
#include <algorithm>

namespace troupe {

using kernels::bf16;

namespace {

bool trained(const tensor_spec& tensor, const model_options& options) {
  return options.training &&
         std::any_of(options.trainable.begin(), options.trainable.end(), [&](const auto& glob) { return glob_match(glob, tensor.name); });
}

// Makes blocks [first, last) of the chain.
template <class T>
struct block_maker {
  const std::vector<block_spec>& layout;
  tensor_parallel tp;
  embedding_block<T>* embedding = nullptr;
  std::shared_ptr<rope_table> rope = nullptr;

  void add(composition<T>& parts, const block_spec& spec) {
    if (spec.kind == block_kind::embedding) {
      auto made = std::make_unique<embedding_block<T>>(spec, tp);
      embedding = made.get();
      parts.blocks.push_back(std::move(made));
    } else if (spec.kind == block_kind::decoder) {
      if (!rope)
        rope = std::make_shared<rope_table>(spec.layer.rope, spec.layer.head_dim);
      parts.blocks.push_back(std::make_unique<decoder_block<T>>(spec, rope, tp));
    } else if (spec.kind == block_kind::adapter) {
      rope = nullptr; // the second half has its own
      parts.blocks.push_back(std::make_unique<adapter_block<T>>(spec, tp));
    } else {
      add_head(parts, spec);
    }
  }
  void add_head(composition<T>& parts, const block_spec& spec) {
    const tensor_spec& table = layout.front().tensors[0];
    weight* tied = spec.tied && embedding ? &embedding->table() : nullptr;
    parts.head = std::make_unique<lm_head<T>>(spec, tied, spec.tied && !tied ? &table : nullptr, tp);
  }
};

} // namespace

template <class T>
composition<T> compose(const model_config& cfg, const model_options& options) {
  const auto layout = layout_of(cfg);
  const rank_context ranks = options.parallel ? options.parallel->ranks : rank_context{};
  const auto cuts = stage_cuts(layout, ranks.shape.pp);
  composition<T> parts;
  parts.first = cuts[std::size_t(ranks.pp_rank)];
  const std::size_t last = cuts[std::size_t(ranks.pp_rank) + 1];
  parts.in = layout[parts.first].in;
  parts.out = layout[last - 1].out;
  parts.columns = layout.back().out;
  parts.lowest_trainable = layout.size() - 1;
  for (std::size_t i = layout.size() - 1; i-- > 0;)
    for (const auto& tensor : layout[i].tensors)
      if (trained(tensor, options))
        parts.lowest_trainable = i;
  block_maker<T> maker{layout, tensor_parallel(ranks.tp, options.parallel && options.parallel->sequence_parallel)};
  for (std::size_t i = parts.first; i < last; ++i)
    maker.add(parts, layout[i]);
  if (layout.back().tied && ranks.shape.pp > 1)
    parts.shared_table = ranks.first_stage() ? &maker.embedding->table() : parts.head ? parts.head->copied() : nullptr;
  return parts;
}
template composition<float> compose(const model_config&, const model_options&);
template composition<bf16> compose(const model_config&, const model_options&);

namespace {

template <class T>
std::shared_ptr<causal_lm> make_chain(const model_config& cfg, const model_options& options, compute& where) {
  return std::make_shared<decoder_lm<T>>(cfg, compose<T>(cfg, options), options, where);
}

} // namespace

std::vector<std::string> architectures() { return architecture_names(); }

std::shared_ptr<causal_lm> make_model(const model_config& cfg, const model_options& options, compute& where) {
  const auto names = architectures();
  if (std::find(names.begin(), names.end(), cfg.architecture) == names.end()) {
    std::string known;
    for (const auto& name : names)
      known += (known.empty() ? "" : ", ") + name;
    throw error{errc::unsupported, "architecture " + cfg.architecture + ": this version has " + known};
  }
  if (options.compute_type != dtype::f32 && options.compute_type != dtype::bf16)
    throw error{errc::unsupported, "compute type " + std::string(name_of(options.compute_type)) + ": float32 or bfloat16"};
#ifdef TROUPE_CUDA
  if (where.gpu() >= 0)
    return make_cuda_model(cfg, options, where);
#else
  if (where.gpu() >= 0)
    throw error{errc::unsupported, "device cuda: this build has no GPU parts; build it with ./dev build cuda, or use --device cpu"};
#endif
  return options.compute_type == dtype::f32 ? make_chain<float>(cfg, options, where) : make_chain<bf16>(cfg, options, where);
}

std::shared_ptr<causal_lm> load_model(const std::filesystem::path& dir, const model_options& options, compute& where,
                                      const load_progress& progress) {
  auto model = make_model(load_model_config(dir), options, where);
  load_weights(*model, dir, {&where, progress});
  return model;
}

bool glob_match(std::string_view pattern, std::string_view name) {
  std::size_t p = 0, n = 0, star = std::string_view::npos, mark = 0;
  while (n < name.size()) {
    if (p < pattern.size() && (pattern[p] == '?' || pattern[p] == name[n]))
      ++p, ++n;
    else if (p < pattern.size() && pattern[p] == '*')
      star = p++, mark = n;
    else if (star != std::string_view::npos)
      p = star + 1, n = ++mark;
    else
      return false;
  }
  while (p < pattern.size() && pattern[p] == '*')
    ++p;
  return p == pattern.size();
}

} // namespace troupe
