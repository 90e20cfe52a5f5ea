// Qwen2, Qwen3 and Mistral: what their config.json says beside a Llama's.
#include "model/config_parts.hpp"

namespace troupe {

namespace {

/// Qwen's window: of the layers that `layer_types` names, else of those from max_window_layers on; none without use_sliding_window.
void read_qwen_window(const json_section& from, model_config& cfg) {
  const std::int64_t window = from.size("sliding_window", 4096);
  if (!from.flag("use_sliding_window", false))
    return;
  cfg.layer.window = window;
  cfg.windowed.assign(std::size_t(cfg.n_layers), false);
  const auto* types = from.find("layer_types");
  if (types != nullptr && (!types->is_array() || types->size() != cfg.windowed.size()))
    from.refuse("layer_types", "must be a list of num_hidden_layers = " + std::to_string(cfg.n_layers) + " names");
  const auto* first_key = from.find("max_window_layers");
  const auto first = first_key == nullptr ? 28 : from.integer("max_window_layers", *first_key, 0);
  for (std::size_t i = 0; i < cfg.windowed.size(); ++i) {
    cfg.windowed[i] = types != nullptr ? (*types)[i] == "sliding_attention" : std::int64_t(i) >= first;
    if (types != nullptr && !cfg.windowed[i] && (*types)[i] != "full_attention")
      from.unsupported("layer_types[" + std::to_string(i) + "]", (*types)[i].dump().substr(0, 80), "full_attention and sliding_attention");
  }
}

nlohmann::json qwen_json(const model_config& cfg) {
  auto json = llama_json(cfg);
  json.erase("mlp_bias");
  const bool slides = cfg.layer.window > 0;
  json["use_sliding_window"] = slides;
  json["sliding_window"] = slides ? nlohmann::json(cfg.layer.window) : nlohmann::json(nullptr);
  auto types = nlohmann::json::array();
  std::int64_t first = 0; // layers before the first with a window, what a reader without layer_types goes by
  for (std::int64_t i = 0; i < cfg.n_layers; ++i) {
    const bool windowed = slides && (cfg.windowed.empty() || cfg.windowed[std::size_t(i)]);
    types.push_back(windowed ? "sliding_attention" : "full_attention");
    first += first == i && !windowed;
  }
  json["max_window_layers"] = first;
  json["layer_types"] = types;
  return json;
}

} // namespace

model_config parse_qwen2(const json_section& from) {
  if (from.flag("use_mrope", false))
    from.unsupported("use_mrope", "true", "false alone");
  auto cfg = parse_decoder(from);
  cfg.layer.qkv_bias = true;
  read_qwen_window(from, cfg);
  return cfg;
}

model_config parse_qwen3(const json_section& from) {
  auto cfg = parse_decoder(from);
  if (from.find("head_dim") == nullptr)
    cfg.layer.head_dim = 128;
  cfg.layer.qk_norm = true;
  cfg.layer.qkv_bias = cfg.layer.o_bias = from.flag("attention_bias", false);
  read_qwen_window(from, cfg);
  return cfg;
}

model_config parse_mistral(const json_section& from) {
  auto cfg = parse_decoder(from);
  if (!from.has("sliding_window")) // null: none; Transformers' default otherwise
    cfg.layer.window = 4096;
  else if (from.find("sliding_window") != nullptr)
    cfg.layer.window = from.size("sliding_window");
  return cfg;
}

nlohmann::json qwen2_json(const model_config& cfg) {
  auto json = qwen_json(cfg);
  json.erase("attention_bias"); // queries, keys and values always have one
  return json;
}

nlohmann::json qwen3_json(const model_config& cfg) { return qwen_json(cfg); }

nlohmann::json mistral_json(const model_config& cfg) {
  auto json = llama_json(cfg);
  json.erase("mlp_bias");
  json.erase("attention_bias");
  json["sliding_window"] = cfg.layer.window > 0 ? nlohmann::json(cfg.layer.window) : nlohmann::json(nullptr);
  return json;
}

} // namespace troupe
