#include "core/files.hpp"
#include "model/config_parts.hpp"
#include <algorithm>

namespace troupe {

namespace fs = std::filesystem;

namespace {

// One of the two models that a split model is made of.
struct whole_model {
  model_config cfg;
  std::string text; // its configuration, JSON
};

whole_model read_whole(const json_section& from) {
  if (const auto* names = from.find("architectures");
      names != nullptr && (!names->is_array() || names->empty() || (*names)[0] != "LlamaForCausalLM"))
    from.unsupported("architectures", names->dump().substr(0, 80), "halves that are [\"LlamaForCausalLM\"]");
  return {parse_llama(from), from.dump()};
}

// `config_key` in the file itself, else config.json in the directory that `path_key` names.
whole_model find_whole(const json_section& top, const std::string& config_key, const std::string& path_key) {
  if (const auto inside = top.object(config_key))
    return read_whole(*inside);
  const auto dir = top.text(path_key, "");
  if (dir.empty())
    top.refuse(path_key, "is missing, and so is " + config_key + "; one of the two must say what that model is");
  std::error_code ignored;
  if (!fs::is_directory(dir, ignored))
    top.refuse(path_key, in_quotes(dir) + " is not a directory; it must hold a Hugging Face model");
  const auto file = fs::path(dir) / "config.json";
  const auto json = parse_json_object(read_model_file(file), file.string());
  return read_whole(json_section(json, file.string()));
}

std::int64_t layers_taken(const json_section& top, const std::string& key, std::int64_t whole, const std::string& owner) {
  const auto taken = top.integer(key, top.require(key), 0);
  if (taken < 1 || taken > whole)
    top.refuse(key, std::to_string(taken) + " of the " + std::to_string(whole) + " layers that " + owner +
                        " has; a split model takes 1 to " + std::to_string(whole) + " of them");
  return taken;
}

adapter_start parse_start(const json_section& top) {
  const auto name = top.text("adapter_init", "identity");
  if (name == "identity")
    return adapter_start::identity;
  if (name == "normal")
    return adapter_start::normal;
  if (name != "fit")
    top.unsupported("adapter_init", in_quotes(name), "identity, normal and fit");
  return adapter_start::fit;
}

const char* name_of(adapter_start start) {
  constexpr const char* names[] = {"identity", "normal", "fit"};
  return names[std::size_t(start)];
}

void check_vocabulary(const json_section& top, std::int64_t vocab, const whole_model& half, const std::string& owner) {
  if (half.cfg.vocab_size != vocab)
    top.refuse("vocab_size", std::to_string(vocab) + ", and " + owner + ".vocab_size is " + std::to_string(half.cfg.vocab_size) +
                                 "; both halves must have one vocabulary");
}

nlohmann::json or_null(const std::string& text) { return text.empty() ? nlohmann::json(nullptr) : nlohmann::json(text); }

} // namespace

model_config parse_split(const json_section& top) {
  const auto first = find_whole(top, "config_8b", "path8b"), second = find_whole(top, "config_70b", "path70b");
  model_config cfg;
  cfg.vocab_size = top.size("vocab_size");
  check_vocabulary(top, cfg.vocab_size, first, "config_8b");
  check_vocabulary(top, cfg.vocab_size, second, "config_70b");
  if (top.flag("tie_word_embeddings", false))
    top.refuse("tie_word_embeddings", "true; a split model's embedding and head are of two models, so it is false");
  split_config split;
  split.n_layers_8 = layers_taken(top, "num_layers_8", first.cfg.n_layers, "config_8b");
  split.n_layers_70 = layers_taken(top, "num_layers_70", second.cfg.n_layers, "config_70b");
  split.whole_8 = first.cfg.n_layers;
  split.whole_70 = second.cfg.n_layers;
  split.layer_70 = second.cfg.layer;
  top.require("mlp");
  split.mlp = top.flag("mlp", false);
  split.start = parse_start(top);
  split.path_8 = top.text("path8b", "");
  split.path_70 = top.text("path70b", "");
  split.adapter_path = top.text("adapter_path", "");
  split.config_8 = first.text;
  split.config_70 = second.text;
  cfg.n_layers = split.n_layers_8 + split.n_layers_70;
  cfg.layer = first.cfg.layer;
  cfg.split = std::move(split);
  cfg.max_position_embeddings =
      top.size("max_position_embeddings", std::min(first.cfg.max_position_embeddings, second.cfg.max_position_embeddings));
  const auto* bos = top.find("bos_token_id");
  cfg.bos_token_id = bos == nullptr ? first.cfg.bos_token_id : top.integer("bos_token_id", *bos, 0);
  cfg.eos_token_ids = top.find("eos_token_id") == nullptr ? first.cfg.eos_token_ids : parse_token_ids(top, "eos_token_id");
  cfg.declared_dtype = parse_declared_dtype(top);
  return cfg;
}

whole_models sources_of(const split_config& split) {
  const auto parsed = [](const std::string& text, const char* name) {
    const auto json = nlohmann::json::parse(text);
    model_config cfg = parse_llama(json_section(json, name));
    cfg.architecture = "LlamaForCausalLM";
    return cfg;
  };
  return {parsed(split.config_8, "config_8b"), parsed(split.config_70, "config_70b")};
}

nlohmann::json split_json(const model_config& cfg) {
  const auto& split = cfg.split.value();
  const std::string module = "modeling_custom_split_llama.";
  return {
      {"path8b", or_null(split.path_8)},
      {"path70b", or_null(split.path_70)},
      {"num_layers_8", split.n_layers_8},
      {"num_layers_70", split.n_layers_70},
      {"mlp", split.mlp},
      {"adapter_path", or_null(split.adapter_path)},
      {"adapter_init", name_of(split.start)},
      {"config_8b", nlohmann::json::parse(split.config_8)},
      {"config_70b", nlohmann::json::parse(split.config_70)},
      {"auto_map",
       {{"AutoConfig", module + "CustomSplitLLamaConfig"},
        {"AutoModel", module + "CustomSplitLLamaModel"},
        {"AutoModelForCausalLM", module + "CustomSplitLLamaForCausalLM"},
        {"AutoModelForTokenClassification", module + "CustomSplitLLamaForTokenClassification"},
        {"AutoModelForSequenceClassification", module + "CustomSplitLLamaForSequenceClassification"}}},
  };
}

} // namespace troupe
