#include "model/config.hpp"
#include "core/error.hpp"
#include "core/files.hpp"
#include "model/config_parts.hpp"

namespace troupe {

namespace fs = std::filesystem;

namespace {

void check_partial_rotary(const json_section& from) {
  if (const auto factor = from.positive("partial_rotary_factor", 1.0); factor != 1.0)
    from.unsupported("partial_rotary_factor", std::to_string(factor), "1 alone");
}

void read_yarn(const json_section& top, const json_section& from, rope_config& rope) {
  rope.original_max_position = from.size("original_max_position_embeddings", top.size("max_position_embeddings", 2048));
  rope.factor = from.find("factor") != nullptr ? from.positive("factor")
                                               : double(top.size("max_position_embeddings")) / double(rope.original_max_position);
  rope.beta_fast = from.positive("beta_fast", rope.beta_fast);
  rope.beta_slow = from.positive("beta_slow", rope.beta_slow);
  if (rope.beta_fast < rope.beta_slow)
    from.refuse("beta_fast", "must not be less than beta_slow");
  rope.truncate = from.flag("truncate", true);
  rope.attention_factor = from.positive("attention_factor", 0.0);
  rope.mscale = from.positive("mscale", 0.0);
  rope.mscale_all_dim = from.positive("mscale_all_dim", 0.0);
}

/// As Transformers 5 reads it: a non-empty `rope_scaling` wins over `rope_parameters`, a theta inside over the one outside.
rope_config parse_rope(const json_section& top) {
  rope_config rope;
  rope.theta = top.positive("rope_theta", rope.theta);
  check_partial_rotary(top);
  auto from = top.object("rope_scaling");
  if (!from || from->empty())
    from = top.object("rope_parameters");
  if (!from || from->empty())
    return rope;
  rope.theta = from->positive("rope_theta", rope.theta);
  check_partial_rotary(*from);
  const auto type_key = from->find("rope_type") != nullptr ? "rope_type" : "type";
  const auto type = from->text(type_key, "default");
  if (type == "default")
    return rope;
  constexpr std::pair<const char*, rope_kind> scalings[] = {
      {"linear", rope_kind::linear}, {"llama3", rope_kind::llama3}, {"dynamic", rope_kind::dynamic}, {"yarn", rope_kind::yarn}};
  for (const auto& [name, kind] : scalings)
    if (type == name)
      rope.kind = kind;
  if (rope.kind == rope_kind::standard)
    from->unsupported(type_key, in_quotes(type), "default, linear, llama3, dynamic and yarn");
  if (rope.kind == rope_kind::yarn) {
    read_yarn(top, *from, rope);
    return rope;
  }
  rope.factor = from->positive("factor");
  if (rope.kind != rope_kind::llama3)
    return rope;
  rope.low_freq_factor = from->positive("low_freq_factor");
  rope.high_freq_factor = from->positive("high_freq_factor");
  rope.original_max_position = from->size("original_max_position_embeddings");
  if (rope.low_freq_factor >= rope.high_freq_factor)
    from->refuse("low_freq_factor", "must be less than high_freq_factor");
  return rope;
}

layer_config parse_layer(const json_section& from) {
  layer_config layer;
  layer.hidden = from.size("hidden_size");
  layer.intermediate = from.size("intermediate_size");
  layer.n_heads = from.size("num_attention_heads");
  layer.n_kv_heads = from.size("num_key_value_heads", layer.n_heads);
  if (layer.n_heads % layer.n_kv_heads != 0)
    from.refuse("num_key_value_heads",
                std::to_string(layer.n_kv_heads) + " does not divide num_attention_heads = " + std::to_string(layer.n_heads));
  layer.head_dim = from.size("head_dim", 0);
  if (layer.head_dim == 0) {
    if (layer.hidden % layer.n_heads != 0)
      from.refuse("num_attention_heads", std::to_string(layer.n_heads) + " does not divide hidden_size = " + std::to_string(layer.hidden) +
                                             ", and there is no head_dim");
    layer.head_dim = layer.hidden / layer.n_heads;
  }
  if (layer.head_dim % 2 != 0)
    from.refuse("head_dim", std::to_string(layer.head_dim) + " is odd; rotary embedding turns pairs");
  layer.rms_norm_eps = from.positive("rms_norm_eps", layer.rms_norm_eps);
  layer.rope = parse_rope(from);
  return layer;
}

/// Options whose other values change the computation.
void check_options(const json_section& from) {
  if (const auto act = from.text("hidden_act", "silu"); act != "silu")
    from.unsupported("hidden_act", in_quotes(act), "silu");
  if (const auto* dropout = from.find("attention_dropout"); dropout != nullptr && *dropout != 0)
    from.unsupported("attention_dropout", dropout->dump().substr(0, 80), "0 alone");
  if (from.find("quantization_config") != nullptr)
    from.unsupported("quantization_config", "{...}", "unquantised weights alone");
}

} // namespace

std::vector<std::int32_t> parse_token_ids(const json_section& from, const std::string& key) {
  std::vector<std::int32_t> ids;
  const auto* value = from.find(key);
  if (value == nullptr)
    return ids;
  if (!value->is_array())
    return {std::int32_t(from.integer(key, *value, 0))};
  for (const auto& entry : *value)
    ids.push_back(std::int32_t(from.integer(key, entry, 0)));
  return ids;
}

std::optional<dtype> parse_declared_dtype(const json_section& from) {
  const auto name = from.text(from.find("dtype") != nullptr ? "dtype" : "torch_dtype", "");
  if (name == "float32")
    return dtype::f32;
  if (name == "bfloat16")
    return dtype::bf16;
  return std::nullopt;
}

model_config parse_decoder(const json_section& from) {
  check_options(from);
  model_config cfg;
  cfg.vocab_size = from.size("vocab_size");
  cfg.n_layers = from.size("num_hidden_layers");
  cfg.layer = parse_layer(from);
  cfg.tie_word_embeddings = from.flag("tie_word_embeddings", false);
  cfg.max_position_embeddings = from.size("max_position_embeddings", cfg.max_position_embeddings);
  if (const auto* bos = from.find("bos_token_id"))
    cfg.bos_token_id = from.integer("bos_token_id", *bos, 0);
  cfg.eos_token_ids = parse_token_ids(from, "eos_token_id");
  cfg.declared_dtype = parse_declared_dtype(from);
  return cfg;
}

model_config parse_llama(const json_section& from) {
  auto cfg = parse_decoder(from);
  cfg.layer.qkv_bias = cfg.layer.o_bias = from.flag("attention_bias", false);
  cfg.layer.mlp_bias = from.flag("mlp_bias", false);
  return cfg;
}

namespace {

/// One entry an architecture: its `model_type` and head, how its configuration is read and what only its family writes.
struct architecture_entry {
  const char* name;
  const char* model_type;
  head_kind head;
  model_config (*parse)(const json_section&);
  nlohmann::json (*write)(const model_config&);
};

constexpr architecture_entry known_architectures[] = {
    {"LlamaForCausalLM", "llama", head_kind::lm, parse_llama, llama_json},
    {"LlamaForTokenClassification", "llama", head_kind::value, parse_llama, llama_json},
    {"LlamaForSequenceClassification", "llama", head_kind::reward, parse_llama, llama_json},
    {"Qwen2ForCausalLM", "qwen2", head_kind::lm, parse_qwen2, qwen2_json},
    {"Qwen2ForTokenClassification", "qwen2", head_kind::value, parse_qwen2, qwen2_json},
    {"Qwen2ForSequenceClassification", "qwen2", head_kind::reward, parse_qwen2, qwen2_json},
    {"Qwen3ForCausalLM", "qwen3", head_kind::lm, parse_qwen3, qwen3_json},
    {"Qwen3ForTokenClassification", "qwen3", head_kind::value, parse_qwen3, qwen3_json},
    {"Qwen3ForSequenceClassification", "qwen3", head_kind::reward, parse_qwen3, qwen3_json},
    {"MistralForCausalLM", "mistral", head_kind::lm, parse_mistral, mistral_json},
    {"MistralForTokenClassification", "mistral", head_kind::value, parse_mistral, mistral_json},
    {"MistralForSequenceClassification", "mistral", head_kind::reward, parse_mistral, mistral_json},
    {"CustomSplitLLamaForCausalLM", "custom_split_llama", head_kind::lm, parse_split, split_json},
    {"CustomSplitLLamaForTokenClassification", "custom_split_llama", head_kind::value, parse_split, split_json},
    {"CustomSplitLLamaForSequenceClassification", "custom_split_llama", head_kind::reward, parse_split, split_json},
};

std::string known_names() {
  std::string names;
  for (const auto& entry : known_architectures)
    (names += names.empty() ? "" : ", ") += entry.name;
  return names;
}

const architecture_entry* find_architecture(const std::string& name) {
  for (const auto& entry : known_architectures)
    if (name == entry.name)
      return &entry;
  return nullptr;
}

nlohmann::json rope_json(const rope_config& rope) {
  if (rope.kind == rope_kind::standard)
    return {{"rope_type", "default"}, {"rope_theta", rope.theta}};
  if (rope.kind == rope_kind::linear || rope.kind == rope_kind::dynamic)
    return {{"rope_type", rope.kind == rope_kind::linear ? "linear" : "dynamic"}, {"rope_theta", rope.theta}, {"factor", rope.factor}};
  if (rope.kind == rope_kind::yarn) {
    nlohmann::json json = {{"rope_type", "yarn"},         {"rope_theta", rope.theta},
                           {"factor", rope.factor},       {"original_max_position_embeddings", rope.original_max_position},
                           {"beta_fast", rope.beta_fast}, {"beta_slow", rope.beta_slow},
                           {"truncate", rope.truncate}};
    for (const auto& [key, value] :
         {std::pair{"attention_factor", rope.attention_factor}, {"mscale", rope.mscale}, {"mscale_all_dim", rope.mscale_all_dim}})
      if (value > 0)
        json[key] = value;
    return json;
  }
  return {{"rope_type", "llama3"},
          {"rope_theta", rope.theta},
          {"factor", rope.factor},
          {"low_freq_factor", rope.low_freq_factor},
          {"high_freq_factor", rope.high_freq_factor},
          {"original_max_position_embeddings", rope.original_max_position}};
}

} // namespace

nlohmann::json llama_json(const model_config& cfg) {
  const auto rope = rope_json(cfg.layer.rope);
  // Transformers 4 reads rope_theta and rope_scaling; 5 writes rope_parameters, and reads both.
  return {
      {"hidden_size", cfg.layer.hidden},
      {"intermediate_size", cfg.layer.intermediate},
      {"num_hidden_layers", cfg.n_layers},
      {"num_attention_heads", cfg.layer.n_heads},
      {"num_key_value_heads", cfg.layer.n_kv_heads},
      {"head_dim", cfg.layer.head_dim},
      {"hidden_act", "silu"},
      {"attention_bias", cfg.layer.o_bias},
      {"attention_dropout", 0.0},
      {"mlp_bias", cfg.layer.mlp_bias},
      {"rms_norm_eps", cfg.layer.rms_norm_eps},
      {"rope_theta", cfg.layer.rope.theta},
      {"rope_scaling", cfg.layer.rope.kind == rope_kind::standard ? nlohmann::json(nullptr) : rope},
      {"rope_parameters", rope},
  };
}

namespace {

nlohmann::json eos_json(const std::vector<std::int32_t>& ids) {
  if (ids.empty())
    return nullptr;
  return ids.size() == 1 ? nlohmann::json(ids.front()) : nlohmann::json(ids);
}

} // namespace

std::vector<std::string> architecture_names() {
  std::vector<std::string> names;
  for (const auto& entry : known_architectures)
    names.emplace_back(entry.name);
  return names;
}

model_config parse_model_config(std::string_view json_text, const std::string& file) {
  const auto json = parse_json_object(json_text, file);
  const json_section top(json, file);
  const auto& names = top.require("architectures");
  if (!names.is_array() || names.empty() || !names[0].is_string())
    top.refuse("architectures", "must be a list that begins with a name");
  const auto name = names[0].get<std::string>();
  const auto* entry = find_architecture(name);
  if (entry == nullptr)
    top.unsupported("architectures[0]", in_quotes(name), known_names());
  auto cfg = entry->parse(top);
  cfg.architecture = name;
  cfg.head = entry->head;
  return cfg;
}

model_config load_model_config(const fs::path& dir) {
  const auto file = dir / "config.json";
  return parse_model_config(read_model_file(file), file.string());
}

std::string to_config_json(const model_config& cfg, dtype declared) {
  const auto* entry = find_architecture(cfg.architecture);
  if (entry == nullptr || (declared != dtype::f32 && declared != dtype::bf16))
    throw error(errc::unsupported, "cannot write a config.json for " + in_quotes(cfg.architecture) + " in " +
                                       std::string(name_of(declared)) + ": this version knows " + known_names() + " in F32 and BF16");
  const auto* type = declared == dtype::f32 ? "float32" : "bfloat16";
  nlohmann::json json = {
      {"architectures", {cfg.architecture}},
      {"model_type", entry->model_type},
      {"vocab_size", cfg.vocab_size},
      {"initializer_range", 0.02},
      {"max_position_embeddings", cfg.max_position_embeddings},
      {"tie_word_embeddings", cfg.tie_word_embeddings},
      {"use_cache", true},
      {"bos_token_id", cfg.bos_token_id < 0 ? nlohmann::json(nullptr) : nlohmann::json(cfg.bos_token_id)},
      {"eos_token_id", eos_json(cfg.eos_token_ids)},
      {"dtype", type},
      {"torch_dtype", type},
  };
  if (cfg.head == head_kind::value || cfg.head == head_kind::reward) { // Transformers counts labels by these
    json["id2label"] = {{"0", "LABEL_0"}};
    json["label2id"] = {{"LABEL_0", 0}};
  }
  json.update(entry->write(cfg));
  return json.dump(2) + "\n";
}

std::vector<std::int32_t> load_eos_token_ids(const fs::path& dir, const model_config& cfg) {
  const auto file = dir / "generation_config.json";
  if (!is_there(file))
    return cfg.eos_token_ids;
  const auto json = parse_json_object(read_model_file(file), file.string());
  const json_section from(json, file.string());
  return from.find("eos_token_id") == nullptr ? cfg.eos_token_ids : parse_token_ids(from, "eos_token_id");
}

} // namespace troupe
