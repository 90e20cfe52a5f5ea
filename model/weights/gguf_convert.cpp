#include "core/error.hpp"
#include "core/files.hpp"
#include "model/config.hpp"
#include "model/layout.hpp"
#include "model/weights/convert.hpp"
#include "model/weights/gguf.hpp"
#include "model/weights/gguf_tokenizer.hpp"
#include "model/weights/json.hpp"
#include "model/weights/safetensors.hpp"
#include <algorithm>
#include <cmath>
#include <numbers>
#include <set>

namespace troupe {

namespace fs = std::filesystem;

namespace {

constexpr const char* rope_factors_name = "rope_freqs.weight";

std::int64_t required_integer(const gguf_reader& file, const std::string& key) {
  const auto value = file.integer(key);
  if (!value)
    file.refuse("key " + in_quotes(key) + " is missing");
  return *value;
}

[[noreturn]] void unsupported(const gguf_reader& file, const std::string& what, const std::string& known) {
  throw error(errc::unsupported, file.path().string() + ": " + what + ": this version knows " + known);
}

/// What a file's `general.architecture` stands for: which class, whether llama.cpp turned the rows of its queries and keys.
struct family {
  const char* name;
  const char* architecture;
  bool permuted;
};
constexpr family families[] = {
    {"llama", "LlamaForCausalLM", true}, {"qwen2", "Qwen2ForCausalLM", false}, {"qwen3", "Qwen3ForCausalLM", false}};

const family& family_of(const gguf_reader& file) {
  const auto architecture = file.text("general.architecture");
  if (!architecture)
    file.refuse("key \"general.architecture\" is missing");
  std::string names;
  for (const auto& known : families) {
    if (*architecture == known.name)
      return known;
    (names += names.empty() ? "" : ", ") += known.name;
  }
  unsupported(file, "general.architecture = " + in_quotes(*architecture), names);
}

/// "llama." + key
std::string key_of(const gguf_reader& file, const char* key) { return std::string(family_of(file).name) + "." + key; }

/// How much of frequency i keeps its speed under llama3 scaling: 0 for the slow ones, 1 for the fast ones.
double llama3_smooth(const rope_config& rope, std::int64_t i, std::int64_t head_dim) {
  const double wavelength = 2 * std::numbers::pi * std::pow(rope.theta, double(2 * i) / double(head_dim));
  const double turns = double(rope.original_max_position) / wavelength;
  return std::clamp((turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor), 0.0, 1.0);
}

/// The divisors of llama3 scaling, one a frequency, as llama.cpp's converter stores them in rope_freqs.weight.
std::vector<float> llama3_factors(const rope_config& rope, std::int64_t head_dim) {
  std::vector<float> factors;
  for (std::int64_t i = 0; i < head_dim / 2; ++i) {
    const double smooth = llama3_smooth(rope, i, head_dim);
    factors.push_back(float(1 / ((1 - smooth) / rope.factor + smooth)));
  }
  return factors;
}

/// The factor that makes the slowest frequency's divisor, to three decimals; not finite when there is none.
double llama3_factor_of(const rope_config& rope, float slowest, std::int64_t head_dim) {
  const double smooth = llama3_smooth(rope, head_dim / 2 - 1, head_dim);
  return std::round((1 - smooth) / (1 / double(slowest) - smooth) * 1000) / 1000;
}

/// GGUF keeps the outcome of llama3 scaling only. Its three other numbers are the same in every model so far: recomputed
/// with them the factors must agree, else the scaling is another one.
rope_config rope_from_factors(const gguf_reader& file, const gguf_tensor& tensor, rope_config rope, std::int64_t head_dim) {
  std::vector<float> stored(tensor.numel());
  dequantize(tensor.type, tensor.bytes, stored.data());
  rope.kind = rope_kind::llama3;
  rope.factor = llama3_factor_of(rope, stored.back(), head_dim);
  const auto wanted = llama3_factors(rope, head_dim);
  const auto agrees = [](float a, float b) { return std::fabs(a - b) <= 1e-3f * std::fabs(b); };
  if (stored.size() != wanted.size() || !std::equal(stored.begin(), stored.end(), wanted.begin(), agrees))
    unsupported(file, std::string("tensor \"") + rope_factors_name + "\" holds other factors than llama3 scaling makes",
                "low_freq_factor 1, high_freq_factor 4 and original_max_position_embeddings 8192");
  return rope;
}

rope_config read_rope(const gguf_reader& file, std::int64_t head_dim, std::int64_t context) {
  rope_config rope;
  const auto number = [&](const char* key, double otherwise) { return file.number(key_of(file, key)).value_or(otherwise); };
  rope.theta = number("rope.freq_base", rope.theta);
  if (const auto turned = file.integer(key_of(file, "rope.dimension_count")); turned && *turned != head_dim)
    unsupported(file, key_of(file, "rope.dimension_count") + " = " + std::to_string(*turned) + " with heads of " + std::to_string(head_dim),
                "rotary embedding of whole heads");
  const auto type_key = key_of(file, "rope.scaling.type");
  const auto kind = file.text(type_key).value_or("none");
  if (kind == "linear") {
    rope.kind = rope_kind::linear;
    rope.factor = number("rope.scaling.factor", 1.0);
  } else if (kind == "yarn") {
    rope.kind = rope_kind::yarn;
    rope.factor = number("rope.scaling.factor", 1.0);
    rope.original_max_position = file.integer(key_of(file, "rope.scaling.original_context_length")).value_or(context);
    rope.attention_factor = number("rope.scaling.attn_factor", 0.0);
    rope.beta_fast = number("rope.scaling.yarn_beta_fast", rope.beta_fast);
    rope.beta_slow = number("rope.scaling.yarn_beta_slow", rope.beta_slow);
  } else if (kind != "none") {
    unsupported(file, type_key + " = " + in_quotes(kind), "none, linear and yarn");
  }
  const auto factors = file.tensors().find(rope_factors_name);
  return factors == file.tensors().end() ? rope : rope_from_factors(file, factors->second, rope, head_dim);
}

std::int64_t vocabulary_rows(const gguf_reader& file) {
  const auto embedding = file.tensors().find("token_embd.weight");
  if (embedding == file.tensors().end() || embedding->second.shape.size() != 2)
    file.refuse("tensor \"token_embd.weight\" is missing or not a matrix");
  const auto rows = embedding->second.shape[0];
  if (const auto declared = file.integer(key_of(file, "vocab_size")); declared && *declared != rows)
    file.refuse(key_of(file, "vocab_size") + " = " + std::to_string(*declared) + ", but token_embd.weight has " + std::to_string(rows) +
                " rows");
  if (const auto tokens = file.metadata().find("tokenizer.ggml.tokens");
      tokens != file.metadata().end() && tokens->second.count > std::uint64_t(rows))
    file.refuse("has " + std::to_string(tokens->second.count) + " tokens, but token_embd.weight has " + std::to_string(rows) + " rows");
  return rows;
}

/// Which options of a layer the file has, by its tensors and keys.
void read_options(const gguf_reader& file, model_config& cfg) {
  const auto has = [&](const char* name) { return file.tensors().contains(std::string("blk.0.") + name); };
  cfg.layer.qkv_bias = has("attn_q.bias");
  cfg.layer.o_bias = has("attn_output.bias");
  cfg.layer.mlp_bias = has("ffn_down.bias");
  cfg.layer.qk_norm = has("attn_q_norm.weight");
  const auto window = file.integer(key_of(file, "attention.sliding_window")).value_or(0);
  if (window <= 0)
    return;
  if (cfg.architecture != "LlamaForCausalLM")
    unsupported(file, key_of(file, "attention.sliding_window") + " = " + std::to_string(window), "windows of Mistral");
  cfg.architecture = "MistralForCausalLM"; // goes by the Llama's name in these files
  cfg.layer.window = window;
}

model_config read_config(const gguf_reader& file) {
  model_config cfg;
  cfg.architecture = family_of(file).architecture;
  const auto key = [&](const char* name) { return key_of(file, name); };
  if (file.integer(key("expert_count")).value_or(0) != 0)
    unsupported(file, key("expert_count") + " is not 0", "dense models");
  for (const auto* name : {"attention.head_count", "attention.head_count_kv", "feed_forward_length"})
    if (const auto found = file.metadata().find(key(name)); found != file.metadata().end() && found->second.is_array)
      unsupported(file, key(name) + " differs between layers", "one value for all");
  cfg.vocab_size = vocabulary_rows(file);
  cfg.n_layers = required_integer(file, key("block_count"));
  if (cfg.n_layers < 1 || std::uint64_t(cfg.n_layers) > file.tensors().size())
    file.refuse(key("block_count") + " = " + std::to_string(cfg.n_layers) + " with " + std::to_string(file.tensors().size()) + " tensors");
  auto& layer = cfg.layer;
  layer.hidden = required_integer(file, key("embedding_length"));
  layer.intermediate = required_integer(file, key("feed_forward_length"));
  layer.n_heads = required_integer(file, key("attention.head_count"));
  layer.n_kv_heads = file.integer(key("attention.head_count_kv")).value_or(layer.n_heads);
  if (layer.n_heads < 1)
    file.refuse(key("attention.head_count") + " = " + std::to_string(layer.n_heads));
  layer.head_dim = file.integer(key("attention.key_length")).value_or(layer.hidden / layer.n_heads);
  const auto epsilon = file.number(key("attention.layer_norm_rms_epsilon"));
  if (!epsilon)
    file.refuse("key " + in_quotes(key("attention.layer_norm_rms_epsilon")) + " is missing");
  layer.rms_norm_eps = *epsilon;
  cfg.tie_word_embeddings = !file.tensors().contains("output.weight");
  cfg.max_position_embeddings = required_integer(file, key("context_length"));
  cfg.bos_token_id = gguf_token_id(file, "bos").value_or(-1);
  if (const auto eos = gguf_token_id(file, "eos"))
    cfg.eos_token_ids = {std::int32_t(*eos)};
  read_options(file, cfg);
  // The reader of config.json holds the rules on sizes; the rotary embedding is added once they are known to be sound.
  cfg = parse_model_config(to_config_json(cfg, dtype::f32), file.path().string() + " (as config.json)");
  cfg.layer.rope = read_rope(file, cfg.layer.head_dim, cfg.max_position_embeddings);
  return parse_model_config(to_config_json(cfg, dtype::f32), file.path().string() + " (as config.json)");
}

/// One tensor of the model: its name on both sides, its shape, and the heads whose rows llama.cpp has interleaved (0: none).
struct mapping {
  std::string from, to;
  std::vector<std::int64_t> shape;
  std::int64_t permuted_heads = 0;
};

/// llama.cpp's name of a tensor.
std::string name_in_file(const std::string& name) {
  constexpr std::pair<const char*, const char*> whole[] = {
      {"model.embed_tokens.weight", "token_embd.weight"}, {"model.norm.weight", "output_norm.weight"}, {"lm_head.weight", "output.weight"}};
  constexpr std::pair<const char*, const char*> parts[] = {
      {"input_layernorm", "attn_norm"},         {"self_attn.q_proj", "attn_q"},      {"self_attn.k_proj", "attn_k"},
      {"self_attn.v_proj", "attn_v"},           {"self_attn.o_proj", "attn_output"}, {"self_attn.q_norm", "attn_q_norm"},
      {"self_attn.k_norm", "attn_k_norm"},      {"mlp.gate_proj", "ffn_gate"},       {"mlp.up_proj", "ffn_up"},
      {"post_attention_layernorm", "ffn_norm"}, {"mlp.down_proj", "ffn_down"}};
  for (const auto& [ours, theirs] : whole)
    if (name == ours)
      return theirs;
  // model.layers.N.PART.weight
  const auto number = std::string("model.layers.").size(), dot = name.find('.', number), last = name.rfind('.');
  for (const auto& [ours, theirs] : parts)
    if (name.substr(dot + 1, last - dot - 1) == ours)
      return "blk." + name.substr(number, dot - number) + "." + theirs + name.substr(last);
  throw error(errc::unsupported, "tensor " + name + " has no name in a GGUF file");
}

std::vector<mapping> mappings_of(const gguf_reader& file, const model_config& cfg) {
  const bool permuted = family_of(file).permuted;
  std::vector<mapping> all;
  for (const auto& t : tensors_of(cfg)) {
    all.push_back({name_in_file(t.name), t.name, t.shape});
    if (permuted && t.name.find("self_attn.q_proj") != std::string::npos)
      all.back().permuted_heads = cfg.layer.n_heads;
    if (permuted && t.name.find("self_attn.k_proj") != std::string::npos)
      all.back().permuted_heads = cfg.layer.n_kv_heads;
  }
  return all;
}

std::string shape_text(const std::vector<std::int64_t>& shape) { return nlohmann::json(shape).dump(); }

void check_tensors(const gguf_reader& file, const std::vector<mapping>& mappings) {
  std::set<std::string> known = {rope_factors_name};
  for (const auto& m : mappings) {
    const auto found = file.tensors().find(m.from);
    if (found == file.tensors().end())
      file.refuse("tensor " + in_quotes(m.from) + " is missing");
    if (found->second.shape != m.shape)
      file.refuse("tensor " + in_quotes(m.from) + " has shape " + shape_text(found->second.shape) + ", the model needs " +
                  shape_text(m.shape));
    known.insert(m.from);
  }
  for (const auto& [name, tensor] : file.tensors())
    if (!known.contains(name))
      unsupported(file, "tensor " + in_quotes(name) + " has no place in the model", "weights without adapters or experts");
}

/// llama.cpp turns neighbouring rows where Hugging Face turns the halves of a head: row 2j + p of a head there is row
/// p * head_dim / 2 + j here. rows: [n_heads * head_dim, n_columns] f32.
std::vector<float> unpermute(const std::vector<float>& rows, std::int64_t n_heads, std::int64_t n_columns) {
  std::vector<float> out(rows.size());
  const auto head_dim = std::int64_t(rows.size()) / n_columns / n_heads, half = head_dim / 2;
  for (std::int64_t h = 0; h < n_heads; ++h)
    for (std::int64_t r = 0; r < head_dim; ++r)
      std::copy_n(rows.begin() + (h * head_dim + r) * n_columns, n_columns,
                  out.begin() + (h * head_dim + r % 2 * half + r / 2) * n_columns);
  return out;
}

void fill_tensor(const gguf_reader& file, const mapping& m, dtype type, std::span<std::byte> out) {
  const auto& tensor = file.tensors().at(m.from);
  std::vector<float> values(tensor.numel());
  dequantize(tensor.type, tensor.bytes, values.data());
  if (!std::all_of(values.begin(), values.end(), [](float v) { return std::isfinite(v); }))
    file.refuse("tensor " + in_quotes(m.from) + " holds values that are not finite");
  if (m.permuted_heads > 0)
    values = unpermute(values, m.permuted_heads, m.shape.size() > 1 ? m.shape[1] : 1);
  convert_elements(dtype::f32, reinterpret_cast<const std::byte*>(values.data()), type, out.data(), values.size());
}

std::string generation_config_json(const gguf_reader& file, const model_config& cfg) {
  nlohmann::json config = {{"_from_model_config", true}};
  if (cfg.bos_token_id >= 0)
    config["bos_token_id"] = cfg.bos_token_id;
  if (const auto padding = gguf_token_id(file, "padding"))
    config["pad_token_id"] = *padding;
  // A chat model may end a turn with another token than a text.
  std::vector<std::int64_t> ends(cfg.eos_token_ids.begin(), cfg.eos_token_ids.end());
  for (const auto* role : {"eot", "eom"})
    if (const auto id = gguf_token_id(file, role); id && std::find(ends.begin(), ends.end(), *id) == ends.end())
      ends.push_back(*id);
  if (!ends.empty())
    config["eos_token_id"] = ends.size() == 1 ? nlohmann::json(ends[0]) : nlohmann::json(ends);
  return config.dump(2) + "\n";
}

} // namespace

conversion convert_gguf(const fs::path& source, const fs::path& target, dtype type) {
  const gguf_reader file(source);
  const auto cfg = read_config(file);
  const auto mappings = mappings_of(file, cfg);
  check_tensors(file, mappings);
  staged_directory staged(target);
  write_gguf_tokenizer(file, staged.path());
  write_file(staged.path() / "config.json", to_config_json(cfg, type));
  write_file(staged.path() / "generation_config.json", generation_config_json(file, cfg));
  conversion done;
  done.source = source;
  std::vector<tensor_to_make> tensors;
  for (const auto& m : mappings) {
    done.parameters += file.tensors().at(m.from).numel();
    tensors.push_back({m.to, type, m.shape, [&file, &m, type](std::span<std::byte> out) { fill_tensor(file, m, type, out); }});
  }
  done.tensors = tensors.size();
  write_safetensors(staged.path(), tensors);
  staged.commit();
  return done;
}

} // namespace troupe
