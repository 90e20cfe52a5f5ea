#pragma once
#include "model/compute.hpp"
#include "model/kernels/gemm.hpp"
#include "model/layout.hpp"
#include "model/registry.hpp"
#include <cmath>
#include <cstring>
#include <map>
#include <random>

namespace troupe {

// A tiny model, a batch and the gradients that reach it, made alike in every rank, thread or process.

/// Sizes that no tensor-parallel size divides: vocabulary 61; tokens as the batch has them.
inline model_config tiny_llama(std::int64_t n_kv_heads, bool tied) {
  model_config cfg;
  cfg.architecture = "LlamaForCausalLM";
  cfg.vocab_size = 61;
  cfg.n_layers = 3;
  cfg.layer.hidden = 40;
  cfg.layer.intermediate = 72;
  cfg.layer.n_heads = 4;
  cfg.layer.n_kv_heads = n_kv_heads;
  cfg.layer.head_dim = 12;
  cfg.tie_word_embeddings = tied;
  cfg.max_position_embeddings = 128;
  return cfg;
}

/// Two layers 32 wide, a bridge with a ReLU, two layers 48 wide with one key/value head; the vocabulary as above.
inline model_config split_of_two_widths() {
  const auto half = [](int hidden, int layers, int n_kv_heads) {
    return R"({"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 61, "eos_token_id": 2, "hidden_size": )" +
           std::to_string(hidden) + R"(, "intermediate_size": )" + std::to_string(hidden + 8) + R"(, "num_hidden_layers": )" +
           std::to_string(layers) + R"(, "num_attention_heads": 4, "num_key_value_heads": )" + std::to_string(n_kv_heads) +
           R"(, "max_position_embeddings": 128})";
  };
  return parse_model_config(R"({"architectures": ["CustomSplitLLamaForCausalLM"], "num_layers_8": 2, "num_layers_70": 2, "vocab_size": 61,
    "mlp": true, "config_8b": )" +
                                half(32, 3, 2) + R"(, "config_70b": )" + half(48, 3, 1) + "}",
                            "config.json");
}

/// Fills every part from the same whole tensors.
inline void fill_by_name(causal_lm& model) {
  for (parameter& p : model.parameters()) {
    const std::vector<std::int64_t>& whole = p.global_shape.empty() ? p.shape : p.global_shape;
    const std::int64_t width = whole.size() > 1 ? whole[1] : 1, own = p.shape.size() > 1 ? p.shape[1] : 1;
    std::mt19937 rng(std::uint32_t(std::hash<std::string>{}(p.name)));
    std::normal_distribution<float> normal(p.shape.size() > 1 ? 0.f : 1.f, p.shape.size() > 1 ? 0.15f : 0.05f);
    std::vector<float> all(std::size_t(whole[0] * width));
    for (auto& v : all)
      v = normal(rng);
    for (std::int64_t r = 0; r < p.shape[0]; ++r)
      for (std::int64_t c = 0; c < own; ++c) {
        const float v = all[std::size_t((r + (p.dim == 0 ? p.begin : 0)) * width + c + (p.dim == 1 ? p.begin : 0))];
        const auto at = std::size_t(r * own + c);
        if (!p.master.empty())
          p.master[at] = v;
        if (model.compute_type() == dtype::f32)
          reinterpret_cast<float*>(p.value.data())[at] = v;
        else
          reinterpret_cast<kernels::bf16*>(p.value.data())[at] = kernels::narrow(v);
      }
  }
  model.publish_values();
}

/// `prompts` prompts, the first `extra` tokens longer, two or three responses each; prompts share blocks with their responses.
inline packed_batch tiny_batch(int prompts, int extra) {
  std::mt19937 rng(std::uint32_t(100 * prompts + extra));
  const auto ids = [&](int n) {
    std::vector<std::int32_t> v;
    for (int i = 0; i < n; ++i)
      v.push_back(std::int32_t(rng() % 61));
    return v;
  };
  batch_builder builder;
  for (int p = 0; p < prompts; ++p)
    builder.add_group(ids(5 + 9 * p + (p == 0 ? extra : 0)), {ids(4), ids(7 + p), ids(p % 3)});
  return builder.take();
}

/// Results of score and backward on one rank (or all).
struct pass_result {
  std::vector<float> logprobs, entropy, decoded;
  std::map<std::string, std::vector<float>> grads; // whole tensors, where `gather` could see all parts
};

inline std::vector<float> tiny_gradients(std::size_t n, std::uint32_t seed) {
  std::mt19937 rng(seed);
  std::uniform_real_distribution<float> uniform(-1, 1);
  std::vector<float> v(n);
  for (auto& x : v)
    x = uniform(rng);
  return v;
}

/// Log-probs of a sequence through the cache: a prefill in two chunks, then token by token.
inline std::vector<float> decode(causal_lm& model, const std::vector<std::int32_t>& ids, std::size_t prompt) {
  auto cache = model.make_cache(4);
  std::vector<float> logprobs, logits(std::size_t(model.config().vocab_size));
  for (std::size_t begin = 0; begin + 1 < ids.size();) {
    const std::size_t end = begin == 0 ? prompt / 2 : begin < prompt ? prompt : begin + 1;
    token_batch b;
    b.n_blocks = 4;
    for (std::size_t i = begin; i < end; ++i) {
      b.ids.push_back(ids[i]);
      b.positions.push_back(std::int32_t(i));
    }
    b.segments.push_back({0, std::int32_t(end - begin), std::int32_t(begin), {2, 0}});
    const std::vector<std::int32_t> wanted = {std::int32_t(end - begin) - 1};
    model.forward(b, *cache, end >= prompt ? wanted : std::vector<std::int32_t>{}, logits.data());
    if (end >= prompt)
      logprobs.push_back(model.logprob(logits.data(), ids[end], 0.7f));
    begin = end;
  }
  return logprobs;
}

/// A pass with gradients; two calls of `backward`, so that sums over calls are seen too.
inline pass_result run_pass(causal_lm& model, const packed_batch& batch, bool training) {
  pass_result result;
  std::unique_ptr<tape> saved;
  auto values = model.score(batch, 0.7f, true, training ? &saved : nullptr);
  result.logprobs = values.logprobs;
  result.entropy = values.entropy;
  if (!training)
    return result;
  model.zero_grads();
  model.backward(*saved, tiny_gradients(batch.targets.size(), 1), tiny_gradients(batch.targets.size(), 2));
  const packed_batch second = tiny_batch(1, 3);
  model.score(second, 0.7f, false, &saved);
  model.backward(*saved, tiny_gradients(second.targets.size(), 3), {});
  model.sum_gradients();
  return result;
}

/// The bits of a rank's results: values that all ranks have alike, and its own gradients.
struct rank_digest {
  std::uint64_t values = 14695981039346656037ull, grads = 14695981039346656037ull;
  bool operator==(const rank_digest&) const = default;
  std::string text() const { return std::to_string(values) + " " + std::to_string(grads); }
};

inline void add_bits(std::uint64_t& digest, std::span<const float> values) {
  for (const float v : values) {
    std::uint32_t bits;
    std::memcpy(&bits, &v, 4);
    digest = (digest ^ bits) * 1099511628211ull;
  }
}

/// Runs everything and digests the values.
inline rank_digest digest_of_use(causal_lm& model) {
  const pass_result result = run_pass(model, tiny_batch(3, 0), true);
  rank_digest digest;
  add_bits(digest.values, result.logprobs);
  add_bits(digest.values, result.entropy);
  add_bits(digest.values, decode(model, {3, 60, 31, 0, 17, 44, 5, 59, 12, 8}, 6));
  return digest;
}

/// Makes a rank's model, runs everything and digests it.
inline rank_digest digest_of_rank(const model_config& cfg, dtype type, const rank_context& ranks, bool sequence) {
  compute where(1);
  auto setup = std::make_shared<rank_setup>();
  setup->ranks = ranks;
  setup->sequence_parallel = sequence;
  const auto model = make_model(cfg, {type, true, {"*"}, setup}, where);
  fill_by_name(*model);
  rank_digest digest = digest_of_use(*model);
  for (const parameter& p : model->parameters())
    add_bits(digest.grads, p.grad);
  return digest;
}

} // namespace troupe
