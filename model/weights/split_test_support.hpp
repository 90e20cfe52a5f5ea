#pragma once
#include "core/random.hpp"
#include "model/layout.hpp"
#include "model/weights/json.hpp"
#include "model/weights/safetensors.hpp"
#include "model/weights/test_support.hpp"

namespace troupe::test {

/// A tiny Llama's config.json; a null value in `patch` takes a key away.
inline nlohmann::json tiny_config(int hidden, int layers, int heads, int kv_heads, const char* patch = "{}") {
  nlohmann::json json = {{"architectures", {"LlamaForCausalLM"}},
                         {"model_type", "llama"},
                         {"vocab_size", 61},
                         {"num_hidden_layers", layers},
                         {"hidden_size", hidden},
                         {"intermediate_size", hidden + 8},
                         {"num_attention_heads", heads},
                         {"num_key_value_heads", kv_heads},
                         {"max_position_embeddings", 256},
                         {"eos_token_id", 2}};
  json.merge_patch(nlohmann::json::parse(patch));
  return json;
}

/// Writes a model's directory with random weights, each tensor another.
inline void write_model(const std::filesystem::path& dir, const nlohmann::json& config, dtype type,
                        std::size_t max_shard_bytes = default_shard_bytes) {
  std::filesystem::create_directories(dir);
  write_file(dir / "config.json", config.dump());
  const auto specs = tensors_of(load_model_config(dir));
  std::vector<tensor_to_make> tensors;
  for (std::size_t t = 0; t < specs.size(); ++t)
    tensors.push_back({specs[t].name, type, specs[t].shape, [t, type, &specs](std::span<std::byte> out) {
                         const std::size_t n = specs[t].numel();
                         std::vector<float> values(n);
                         for (std::size_t i = 0; i < n; ++i)
                           values[i] = draw_uniform({std::hash<std::string>{}(specs[t].name) % 1000 + specs[0].shape[1], draw::init,
                                                     std::uint32_t(t), std::uint32_t(i)}) -
                                       0.5f;
                         convert_elements(dtype::f32, reinterpret_cast<const std::byte*>(values.data()), type, out.data(), n);
                       }});
  write_safetensors(dir, tensors, max_shard_bytes);
}

inline bool same_bytes(const tensor_info* a, const tensor_info* b) {
  return a && b && a->type == b->type && a->shape == b->shape &&
         std::equal(a->bytes.begin(), a->bytes.end(), b->bytes.begin(), b->bytes.end());
}

} // namespace troupe::test
