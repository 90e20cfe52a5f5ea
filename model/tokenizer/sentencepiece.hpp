#pragma once
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

namespace troupe {

/// The tokenizer.json that Transformers' LlamaTokenizer makes of a SentencePiece `tokenizer.model` (BPE, as Llama 2 and Mistral have
/// it). config: tokenizer_config.json's object, which may be empty; `name` stands in messages.
/// Throws errc::bad_input (no such file of SentencePiece's, or one that contradicts itself) and errc::unsupported.
nlohmann::json sentencepiece_tokenizer(std::string_view model, const nlohmann::json& config, const std::string& name);

/// A model directory's tokenizer.json, or what its tokenizer.model stands for. Throws as above, and errc::bad_input without either.
std::string tokenizer_json(const std::filesystem::path& dir);

} // namespace troupe
