#include "model/registry.hpp"
#include "core/error.hpp"
#include "model/decoder_lm.hpp"
#include "model/weights/tensor_check.hpp"
#include <cmath>
#include <cstring>
#include <map>

namespace troupe {

using kernels::bf16;

namespace {

template <class T>
std::shared_ptr<causal_lm> make_llama(const model_config& cfg, const model_options& options, compute& where) {
  composition<T> parts;
  auto embedding = std::make_unique<embedding_block<T>>("model.embed_tokens.weight", cfg.vocab_size, cfg.layer.hidden);
  weight* tied = cfg.tie_word_embeddings ? &embedding->table() : nullptr;
  parts.blocks.push_back(std::move(embedding));
  const auto rope = std::make_shared<rope_table>(cfg.layer.rope, cfg.layer.head_dim);
  for (std::int64_t i = 0; i < cfg.n_layers; ++i)
    parts.blocks.push_back(std::make_unique<decoder_block<T>>("model.layers." + std::to_string(i) + ".", cfg.layer, rope));
  parts.head = std::make_unique<lm_head<T>>(cfg.vocab_size, cfg.layer.hidden, cfg.layer.rms_norm_eps, tied);
  return std::make_shared<decoder_lm<T>>(cfg, std::move(parts), options, where);
}

using maker = std::shared_ptr<causal_lm> (*)(const model_config&, const model_options&, compute&);
struct architecture {
  maker f32, bf16_;
};

// Every architecture: its composition for both compute types.
const std::map<std::string, architecture>& table() {
  static const std::map<std::string, architecture> known = {
      {"LlamaForCausalLM", {make_llama<float>, make_llama<bf16>}},
  };
  return known;
}

// A tied head that is also in the files must be the embedding.
void check_tied_head(const safetensors_reader& files, const model_config& cfg) {
  const tensor_info* head = cfg.tie_word_embeddings ? files.find("lm_head.weight") : nullptr;
  const tensor_info& table = *files.find("model.embed_tokens.weight");
  if (head &&
      (head->type != table.type || head->shape != table.shape || std::memcmp(head->bytes.data(), table.bytes.data(), head->n_bytes) != 0))
    throw error{errc::bad_input, files.path().string() + ": tensor lm_head.weight " + spelled(head->shape) + " belongs to no part of " +
                                     cfg.architecture + " with tie_word_embeddings; it differs from the embedding"};
}

void check_finite(std::span<const float> values, const std::string& name, const std::filesystem::path& dir) {
  for (std::size_t i = 0; i < values.size(); ++i)
    if (!std::isfinite(values[i]))
      throw error{errc::bad_input, dir.string() + ": tensor " + name + " holds " + (std::isnan(values[i]) ? "NaN" : "infinity") +
                                       " at element " + std::to_string(i) + "; weights must be finite"};
}

} // namespace

std::vector<std::string> architectures() {
  std::vector<std::string> names;
  for (const auto& [name, makers] : table())
    names.push_back(name);
  return names;
}

std::shared_ptr<causal_lm> make_model(const model_config& cfg, const model_options& options, compute& where) {
  const auto it = table().find(cfg.architecture);
  if (it == table().end()) {
    std::string known;
    for (const auto& name : architectures())
      known += (known.empty() ? "" : ", ") + name;
    throw error{errc::unsupported, "architecture " + cfg.architecture + ": this version has " + known};
  }
  if (options.compute_type != dtype::f32 && options.compute_type != dtype::bf16)
    throw error{errc::unsupported, "compute type " + std::string(name_of(options.compute_type)) + ": float32 or bfloat16"};
  return (options.compute_type == dtype::f32 ? it->second.f32 : it->second.bf16_)(cfg, options, where);
}

void load_weights(causal_lm& model, const std::filesystem::path& dir) {
  const safetensors_reader files{dir};
  check_tensors(files, model.config());
  check_tied_head(files, model.config());
  std::vector<float> values;
  for (const parameter& p : model.parameters()) {
    const tensor_info* found = files.find(p.name);
    if (!found)
      continue; // optional, zero
    const tensor_info& t = *found;
    std::span<float> as_f32 = p.master;
    if (as_f32.empty()) {
      values.resize(p.numel());
      as_f32 = values;
    }
    convert_elements(t.type, t.bytes.data(), dtype::f32, reinterpret_cast<std::byte*>(as_f32.data()), p.numel());
    check_finite(as_f32, p.name, dir);
    if (static_cast<const void*>(as_f32.data()) != static_cast<const void*>(p.value.data()))
      convert_elements(dtype::f32, reinterpret_cast<const std::byte*>(as_f32.data()), model.compute_type(), p.value.data(), p.numel());
  }
  model.publish_values();
}

std::shared_ptr<causal_lm> load_model(const std::filesystem::path& dir, const model_options& options, compute& where) {
  auto model = make_model(load_model_config(dir), options, where);
  load_weights(*model, dir);
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
