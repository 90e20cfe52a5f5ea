#pragma once
#include "model/weights/gguf.hpp"
#include <filesystem>

namespace troupe {

/// Writes a GGUF file's tokenizer as tokenizer.json, tokenizer_config.json and, when it has a template, chat_template.jinja.
/// Only byte-level BPE whose `tokenizer.ggml.pre` is known exactly. Throws errc::unsupported naming the key, errc::bad_input.
void write_gguf_tokenizer(const gguf_reader& file, const std::filesystem::path& dir);

/// `tokenizer.ggml.<role>_token_id`, e.g. "bos"; checked against the number of tokens. Nothing when absent.
std::optional<std::int64_t> gguf_token_id(const gguf_reader& file, const std::string& role);

} // namespace troupe
