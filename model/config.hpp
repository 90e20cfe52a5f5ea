#pragma once
#include "core/dtype.hpp"
#include <cstdint>
#include <filesystem>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <vector>

namespace troupe {

enum class rope_kind : std::uint8_t { standard, linear, llama3, dynamic, yarn };

/// Rotary embedding as in config.json's `rope_scaling` / `rope_theta` or Transformers 5's `rope_parameters`.
struct rope_config {
  rope_kind kind = rope_kind::standard;
  double theta = 10000.0;
  double factor = 1.0;                                  // all but standard
  double low_freq_factor = 1.0, high_freq_factor = 4.0; // llama3
  std::int64_t original_max_position = 8192;            // llama3, yarn
  double beta_fast = 32.0, beta_slow = 1.0;             // yarn
  double attention_factor = 0;                          // yarn: of cosines and sines; 0: as factor and the two below say
  double mscale = 0, mscale_all_dim = 0;                // yarn; 0: not given
  bool truncate = true;                                 // yarn: the ramp begins and ends at whole dimensions
};

/// One decoder layer's sizes and options. A split model has two of them, everything else one.
struct layer_config {
  std::int64_t hidden = 0, intermediate = 0;
  std::int64_t n_heads = 0, n_kv_heads = 0, head_dim = 0;
  double rms_norm_eps = 1e-6;
  rope_config rope;
  bool qkv_bias = false, o_bias = false, mlp_bias = false;
  bool qk_norm = false;    // RMSNorm of each head's queries and keys, before the rotary embedding
  std::int64_t window = 0; // a row attends to so many keys, its own the last of them; 0: to all before it
  std::int64_t group() const { return n_heads / n_kv_heads; }
};

/// What the last block gives for a row: logits, a value (token classification), a sequence's score, or normalised hidden states.
enum class head_kind : std::uint8_t { lm, value, reward, none };

/// Where a new adapter's weights come from when there is no adapter file.
enum class adapter_start : std::uint8_t { identity, normal, fit };

/// What a split model has beside its first half, which `model_config::layer` describes: the first n_layers_8 layers of one
/// model, an adapter, the LAST n_layers_70 layers of another.
struct split_config {
  std::int64_t n_layers_8 = 0, n_layers_70 = 0;
  std::int64_t whole_8 = 0, whole_70 = 0; // layers of the two models they are taken from
  layer_config layer_70;                  // of the second half, the norm and the head
  bool mlp = false;                       // a ReLU between the adapter's two projections
  adapter_start start = adapter_start::identity;
  std::string path_8, path_70, adapter_path; // as written; empty: none
  std::string config_8, config_70;           // the two models' configurations, JSON
};

/// A model as its config.json says, independent of any file format.
struct model_config {
  std::string architecture; // "LlamaForCausalLM"
  std::int64_t vocab_size = 0;
  std::int64_t n_layers = 0;  // a split model's of both halves
  layer_config layer;         // a split model's first half
  std::vector<bool> windowed; // which layers have layer.window; empty: all
  std::optional<split_config> split;
  head_kind head = head_kind::lm;
  bool tie_word_embeddings = false;
  std::int64_t max_position_embeddings = 2048;
  std::int64_t bos_token_id = -1;          // -1: none
  std::vector<std::int32_t> eos_token_ids; // config.json's; see load_eos_token_ids
  std::optional<dtype> declared_dtype;     // `dtype` or `torch_dtype` where it is float32 or bfloat16
  /// The layers that norm and head follow.
  const layer_config& last_layer() const { return split ? split->layer_70 : layer; }
};

/// Parses config.json's text; `file` stands in messages. Throws errc::bad_input (missing, wrong type, inconsistent sizes)
/// and errc::unsupported for an option that this version lacks, naming the key and what is known.
/// A split model's config_8b and config_70b are read from path8b and path70b when absent.
model_config parse_model_config(std::string_view json_text, const std::string& file);
model_config load_model_config(const std::filesystem::path& dir);

/// The two models that a split model is made of, whole.
struct whole_models {
  model_config first, second;
};
whole_models sources_of(const split_config& split);

/// What `architectures[0]` may be.
std::vector<std::string> architecture_names();

/// config.json's text for a directory that troupe writes; `parse_model_config` gives the same struct back.
std::string to_config_json(const model_config& cfg, dtype declared);

/// generation_config.json's `eos_token_id` (int or list), else config.json's, else empty.
std::vector<std::int32_t> load_eos_token_ids(const std::filesystem::path& dir, const model_config& cfg);

} // namespace troupe
