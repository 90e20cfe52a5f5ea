#pragma once
#include "core/dtype.hpp"
#include <cstdint>
#include <filesystem>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <vector>

namespace troupe {

enum class rope_kind : std::uint8_t { standard, linear, llama3 };

/// Rotary embedding as in config.json's `rope_scaling` / `rope_theta` or Transformers 5's `rope_parameters`.
struct rope_config {
  rope_kind kind = rope_kind::standard;
  double theta = 10000.0;
  double factor = 1.0;                            // linear, llama3
  double low_freq_factor = 1.0, high_freq_factor = 4.0; // llama3
  std::int64_t original_max_position = 8192;      // llama3
};

/// One decoder layer's sizes and options. A split model has two of them, everything else one.
struct layer_config {
  std::int64_t hidden = 0, intermediate = 0;
  std::int64_t n_heads = 0, n_kv_heads = 0, head_dim = 0;
  double rms_norm_eps = 1e-6;
  rope_config rope;
  std::int64_t group() const { return n_heads / n_kv_heads; }
};

/// A model as its config.json says, independent of any file format.
struct model_config {
  std::string architecture;                       // "LlamaForCausalLM"
  std::int64_t vocab_size = 0;
  std::int64_t n_layers = 0;
  layer_config layer;
  bool tie_word_embeddings = false;
  std::int64_t max_position_embeddings = 2048;
  std::int64_t bos_token_id = -1;                 // -1: none
  std::vector<std::int32_t> eos_token_ids;        // config.json's; see load_eos_token_ids
  std::optional<dtype> declared_dtype;            // `dtype` or `torch_dtype` where it is float32 or bfloat16
};

/// Parses config.json's text; `file` stands in messages. Throws errc::bad_input (missing, wrong type, inconsistent sizes)
/// and errc::unsupported for an option that this version lacks, naming the key and what is known.
model_config parse_model_config(std::string_view json_text, const std::string& file);
model_config load_model_config(const std::filesystem::path& dir);

/// config.json's text for a directory that troupe writes; `parse_model_config` gives the same struct back.
std::string to_config_json(const model_config& cfg, dtype declared);

/// generation_config.json's `eos_token_id` (int or list), else config.json's, else empty.
std::vector<std::int32_t> load_eos_token_ids(const std::filesystem::path& dir, const model_config& cfg);

} // namespace troupe
