#include "cli/memory.hpp"
#include "model/layout.hpp"
#include "model/parallel/communicator.hpp"
#include "model/parallel/stages.hpp"
#include "model/registry.hpp"
#include <algorithm>
#include <array>
#include <cstdio>
#include <fstream>
#include <unistd.h>

namespace troupe {
namespace {

constexpr std::uint64_t cache_block_tokens = 32;
constexpr std::uint64_t most_teacher_logits = std::uint64_t{1} << 26; // numbers: the learner looks at fewer rows at a time beyond that
constexpr std::uint64_t most_kept_logits = std::uint64_t{1} << 30;    // the forward pass computes them again beyond that

struct sizes {
  std::uint64_t parameters = 0, linear = 0, trained = 0; // elements
  std::uint64_t element = 4;                             // bytes of the compute type
};

bool is_trained(const config& cfg, const std::string& name) {
  return std::any_of(cfg.model.trainable.begin(), cfg.model.trainable.end(), [&](const auto& glob) { return glob_match(glob, name); });
}

// Of blocks [first, last) on one of tp ranks.
sizes sizes_of(const config& cfg, const std::vector<block_spec>& blocks, std::size_t first, std::size_t last, std::int64_t tp) {
  sizes s;
  s.element = cfg.model.dtype == compute_dtype::bfloat16 ? 2 : 4;
  const auto add = [&](const tensor_spec& tensor, bool held, bool multiplied) {
    std::uint64_t n = 1;
    for (const auto size : shard_shape(tensor, 0, tp))
      n *= std::uint64_t(size);
    s.parameters += held ? n : 0;
    s.linear += multiplied ? n : 0;
    s.trained += held && is_trained(cfg, tensor.name) ? n : 0;
  };
  for (std::size_t b = first; b < last; ++b) {
    for (const auto& tensor : blocks[b].tensors)
      add(tensor, true, tensor.linear);
    if (blocks[b].tied) // multiplies the embedding's table; another stage has a copy of it
      add(blocks.front().tensors[0], first > 0, true);
  }
  return s;
}

sizes sizes_of(const config& cfg, const model_config& model) {
  const auto blocks = layout_of(model);
  return sizes_of(cfg, blocks, 0, blocks.size(), 1);
}

std::uint64_t ceil_div(std::uint64_t a, std::uint64_t b) { return (a + b - 1) / b; }

std::uint64_t cache_bytes(const config& cfg, const model_config& model, std::uint64_t element) {
  const std::uint64_t longest = std::uint64_t(cfg.data.max_prompt_length + cfg.data.max_response_length);
  const std::uint64_t samples = std::uint64_t(cfg.data.train_batch_size * cfg.rollout.n);
  const std::uint64_t sequences = std::min(std::uint64_t(cfg.rollout.max_num_seqs), samples);
  std::uint64_t per_token = 0;
  for (const auto& block : layout_of(model))
    if (block.kind == block_kind::decoder)
      per_token += 2 * std::uint64_t(block.layer.n_kv_heads * block.layer.head_dim) * element;
  return sequences * ceil_div(longest, cache_block_tokens) * cache_block_tokens * per_token;
}

// Of blocks [first, last), on one of tp ranks, of a micro-batch that `replicas` share in this process.
std::uint64_t activation_bytes(const config& cfg, const std::vector<block_spec>& blocks, std::size_t first, std::size_t last,
                               std::int64_t tp, std::int64_t replicas, std::uint64_t element) {
  const std::uint64_t prompts = std::uint64_t(cfg.learner.ppo_mini_batch_size);
  const std::int64_t samples = cfg.run.task == run_task::rl ? cfg.rollout.n : 1;
  const std::uint64_t in_batch = prompts * std::uint64_t(cfg.data.max_prompt_length + samples * cfg.data.max_response_length);
  const std::uint64_t tokens = std::min(std::uint64_t(cfg.learner.ppo_max_token_len * replicas), in_batch);
  // Kept for the backward pass in a layer: two inputs and two norms, q, k, v, the attention's output, gate, up and their product.
  std::uint64_t width = 0;
  for (std::size_t b = first; b < last; ++b)
    if (const layer_config& l = blocks[b].layer; blocks[b].kind == block_kind::decoder)
      width += std::uint64_t(4 * l.hidden) +
               ceil_div(std::uint64_t((2 * l.n_heads + 2 * l.n_kv_heads) * l.head_dim + 3 * l.intermediate), std::uint64_t(tp));
  if (last < blocks.size())
    return tokens * width * element;
  const std::uint64_t targets =
      cfg.run.task == run_task::rl ? std::min(tokens, prompts * std::uint64_t(samples * cfg.data.max_response_length)) : tokens;
  const std::uint64_t logits =
      std::min(ceil_div(targets * std::uint64_t(blocks.front().tensors[0].shape[0]), std::uint64_t(tp)) * 4, most_kept_logits);
  return tokens * width * element + logits;
}

// A frozen model in the learner's process, and the logits it is asked for: with distill.top_k = 0 they, the model's own, two
// distributions and a gradient exist at once.
std::uint64_t teacher_bytes(const config& cfg, const model_config& teacher) {
  const sizes s = sizes_of(cfg, teacher);
  const std::uint64_t rows = std::max(most_teacher_logits / std::uint64_t(teacher.vocab_size),
                                      std::uint64_t(cfg.data.max_prompt_length + cfg.data.max_response_length));
  return (s.parameters + s.linear) * s.element + rows * std::uint64_t(teacher.vocab_size) * 4 * (cfg.distill.top_k == 0 ? 5 : 1);
}

std::vector<memory_part> learner_parts(const config& cfg, const sizes& s, std::uint64_t n_trained, std::uint64_t replicas) {
  const bool bf16 = cfg.model.dtype == compute_dtype::bfloat16;
  return {{"master weights (float32)", n_trained * 4},
          {"gradients (float32)", n_trained * 4 * replicas},
          {"Adam's moments (float32)", n_trained * 8},
          {"weights (compute type)", (s.parameters - (bf16 ? 0 : n_trained)) * s.element}, // float32: the masters are they
          {"weights laid out for the kernels", 2 * s.linear * s.element * replicas}};      // forward and backward
}

// Every rank is a process with its own part of everything; data-parallel ranks repeat theirs.
std::vector<rank_memory> memory_of_processes(const config& cfg, const model_config& model, const std::optional<model_config>& teacher) {
  const auto blocks = layout_of(model);
  const mesh shape{int(cfg.learner.pipeline_parallel_size), int(cfg.learner.data_parallel_size), int(cfg.learner.tensor_parallel_size)};
  const auto cuts = stage_cuts(blocks, shape.pp);
  std::vector<rank_memory> ranks;
  for (int r = 0; r < shape.size(); ++r) {
    const auto stage = std::size_t(r / (shape.dp * shape.tp));
    const sizes s = sizes_of(cfg, blocks, cuts[stage], cuts[stage + 1], shape.tp);
    rank_memory learner{"learner " + std::to_string(r), learner_parts(cfg, s, s.trained, 1)};
    learner.parts.push_back(
        {"activations and logits", activation_bytes(cfg, blocks, cuts[stage], cuts[stage + 1], shape.tp, 1, s.element)});
    if (cfg.learner.use_kl_loss)
      learner.parts.push_back({"reference model", (s.parameters + s.linear) * s.element});
    if (teacher && r == 0)
      learner.parts.push_back({"teacher", teacher_bytes(cfg, *teacher)});
    ranks.push_back(std::move(learner));
  }
  const std::int64_t tp = cfg.rollout.tensor_parallel_size;
  const sizes s = sizes_of(cfg, blocks, 0, blocks.size(), tp);
  for (std::int64_t r = 0; cfg.run.task == run_task::rl && r < cfg.rollout.actors * tp; ++r)
    ranks.push_back({"rollout " + std::to_string(r),
                     {{"weights (compute type)", s.parameters * s.element},
                      {"weights laid out for the kernels", s.linear * s.element},
                      {"key/value cache", ceil_div(cache_bytes(cfg, model, s.element), std::uint64_t(tp))}}});
  return ranks;
}

std::uint64_t control_group_limit() {
  std::ifstream file("/sys/fs/cgroup/memory.max");
  std::uint64_t limit = 0;
  return file >> limit ? limit : ~std::uint64_t{0}; // "max", or no such file
}

} // namespace

std::uint64_t rank_memory::total() const {
  std::uint64_t sum = 0;
  for (const auto& part : parts)
    sum += part.bytes;
  return sum;
}

std::vector<rank_memory> estimate_memory(const config& cfg, const model_config& model, std::uint64_t n_trainable,
                                         const std::optional<model_config>& teacher) {
  if (cfg.placement.processes)
    return memory_of_processes(cfg, model, teacher);
  const sizes s = sizes_of(cfg, model);
  const auto blocks = layout_of(model);
  const std::vector<memory_part> policy = {{"weights (compute type)", s.parameters * s.element},
                                           {"weights laid out for the kernels", s.linear * s.element}};
  // Ranks are threads of one process and share what is not a data-parallel rank's own.
  const std::int64_t replicas = cfg.learner.data_parallel_size;
  rank_memory learner{"learner 0", learner_parts(cfg, s, n_trainable, std::uint64_t(replicas))};
  learner.parts.push_back({"activations and logits", activation_bytes(cfg, blocks, 0, blocks.size(), 1, replicas, s.element)});
  if (cfg.learner.use_kl_loss)
    learner.parts.push_back({"reference model", (s.parameters + s.linear) * s.element});
  if (teacher)
    learner.parts.push_back({"teacher", teacher_bytes(cfg, *teacher)});
  std::vector<rank_memory> ranks = {learner};
  if (cfg.run.task != run_task::rl)
    return ranks;
  for (std::int64_t i = 0; i < cfg.rollout.actors; ++i) {
    rank_memory rollout{"rollout " + std::to_string(i), policy};
    rollout.parts.push_back({"key/value cache", cache_bytes(cfg, model, s.element)});
    ranks.push_back(std::move(rollout));
  }
  return ranks;
}

std::uint64_t machine_memory() {
  const auto pages = ::sysconf(_SC_PHYS_PAGES), page = ::sysconf(_SC_PAGESIZE);
  return std::min(std::uint64_t(pages) * std::uint64_t(page), control_group_limit());
}

std::string memory_shortage(const config& cfg, const std::vector<rank_memory>& ranks, std::uint64_t available) {
  // With processes that are started elsewhere nobody here knows which ranks come to this machine.
  if (cfg.placement.processes && cfg.placement.local_workers != "all")
    return "";
  std::uint64_t needed = 0;
  for (const auto& rank : ranks)
    needed += rank.total();
  if (needed <= available)
    return "";
  return "the run needs about " + spelled_bytes(needed) + " of memory and this machine has " + spelled_bytes(available) +
         (cfg.run.task == run_task::rl
              ? "; lower rollout.max_num_seqs, learner.ppo_max_token_len or rollout.actors, or take a smaller model"
              : "; lower learner.ppo_max_token_len, train less (model.trainable), or take a smaller model");
}

std::string spelled_bytes(std::uint64_t bytes) {
  constexpr std::array<const char*, 5> units = {"B", "KiB", "MiB", "GiB", "TiB"};
  double value = double(bytes);
  std::size_t unit = 0;
  for (; value >= 1024 && unit + 1 < units.size(); ++unit)
    value /= 1024;
  std::array<char, 32> text;
  std::snprintf(text.data(), text.size(), unit == 0 ? "%.0f %s" : "%.1f %s", value, units[unit]);
  return text.data();
}

} // namespace troupe
