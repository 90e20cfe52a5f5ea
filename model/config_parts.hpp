#pragma once
#include "model/config.hpp"
#include "model/json_section.hpp"

namespace troupe {

// What config.cpp, config_families.cpp and split_config.cpp share.

model_config parse_llama(const json_section& from);
model_config parse_qwen2(const json_section& from);
model_config parse_qwen3(const json_section& from);
model_config parse_mistral(const json_section& from);
model_config parse_split(const json_section& from);

/// What all these families have in common; no biases.
model_config parse_decoder(const json_section& from);

/// `dtype`, else `torch_dtype`, where it is float32 or bfloat16.
std::optional<dtype> parse_declared_dtype(const json_section& from);
std::vector<std::int32_t> parse_token_ids(const json_section& from, const std::string& key);

/// The keys that only this family writes.
nlohmann::json llama_json(const model_config& cfg);
nlohmann::json qwen2_json(const model_config& cfg);
nlohmann::json qwen3_json(const model_config& cfg);
nlohmann::json mistral_json(const model_config& cfg);
nlohmann::json split_json(const model_config& cfg);

} // namespace troupe
