#include "cli/model_tensors.hpp"
#include "core/error.hpp"
#include <set>

namespace troupe {
namespace {

std::string spelled(const std::vector<std::int64_t>& shape) {
  std::string text = "[";
  for (const auto size : shape)
    text += (text.size() > 1 ? ", " : "") + std::to_string(size);
  return text + "]";
}

// Tensors that files may hold and no model reads.
bool ignored(const std::string& name, const model_config& cfg) {
  return name.ends_with(".rotary_emb.inv_freq") || (cfg.tie_word_embeddings && name == "lm_head.weight");
}

bool is_float(dtype type) { return type == dtype::f32 || type == dtype::bf16 || type == dtype::f16 || type == dtype::f64; }

} // namespace

std::uint64_t expected_tensor::numel() const {
  std::uint64_t n = 1;
  for (const auto size : shape)
    n *= std::uint64_t(size);
  return n;
}

std::vector<expected_tensor> expected_tensors(const model_config& cfg) {
  const layer_config& l = cfg.layer;
  const std::int64_t q = l.n_heads * l.head_dim, kv = l.n_kv_heads * l.head_dim;
  std::vector<expected_tensor> all = {{"model.embed_tokens.weight", {cfg.vocab_size, l.hidden}, false}};
  for (std::int64_t i = 0; i < cfg.n_layers; ++i) {
    const std::string layer = "model.layers." + std::to_string(i) + ".";
    all.push_back({layer + "input_layernorm.weight", {l.hidden}, false});
    all.push_back({layer + "self_attn.q_proj.weight", {q, l.hidden}, true});
    all.push_back({layer + "self_attn.k_proj.weight", {kv, l.hidden}, true});
    all.push_back({layer + "self_attn.v_proj.weight", {kv, l.hidden}, true});
    all.push_back({layer + "self_attn.o_proj.weight", {l.hidden, q}, true});
    all.push_back({layer + "post_attention_layernorm.weight", {l.hidden}, false});
    all.push_back({layer + "mlp.gate_proj.weight", {l.intermediate, l.hidden}, true});
    all.push_back({layer + "mlp.up_proj.weight", {l.intermediate, l.hidden}, true});
    all.push_back({layer + "mlp.down_proj.weight", {l.hidden, l.intermediate}, true});
  }
  all.push_back({"model.norm.weight", {l.hidden}, false});
  if (!cfg.tie_word_embeddings)
    all.push_back({"lm_head.weight", {cfg.vocab_size, l.hidden}, true});
  return all;
}

void check_tensors(const safetensors_reader& files, const model_config& cfg) {
  const std::string dir = files.path().string();
  std::set<std::string> wanted;
  for (const auto& expected : expected_tensors(cfg)) {
    wanted.insert(expected.name);
    const tensor_info* found = files.find(expected.name);
    const std::string tensor = dir + ": tensor " + expected.name + " ";
    if (!found)
      throw error(errc::bad_input, tensor + spelled(expected.shape) + " is missing");
    if (found->shape != expected.shape)
      throw error(errc::bad_input, tensor + "is " + spelled(found->shape) + ", config.json makes it " + spelled(expected.shape));
    if (!is_float(found->type))
      throw error(errc::bad_input, tensor + "is of type " + std::string(name_of(found->type)) + "; a weight is F32, BF16, F16 or F64");
  }
  for (const auto& [name, tensor] : files.tensors())
    if (!wanted.contains(name) && !ignored(name, cfg))
      throw error(errc::bad_input, dir + ": tensor " + name + " " + spelled(tensor.shape) + " belongs to no part of " + cfg.architecture);
}

} // namespace troupe
