#pragma once
#include <nlohmann/json.hpp>
#include <utility>

namespace troupe {

/// What differs between the BPE tokenizers that are written here; the names are tokenizer.json's.
struct bpe_json {
  nlohmann::json added_tokens, normalizer, pre_tokenizer, post_processor, decoder;
  nlohmann::json unk_token;
  bool byte_fallback; // SentencePiece's kind, which also puts unknown characters together
  bool ignore_merges;
  nlohmann::json vocab, merges;
};

/// A whole tokenizer.json.
inline nlohmann::json tokenizer_json_of(bpe_json parts) {
  return {{"version", "1.0"},
          {"truncation", nullptr},
          {"padding", nullptr},
          {"added_tokens", std::move(parts.added_tokens)},
          {"normalizer", std::move(parts.normalizer)},
          {"pre_tokenizer", std::move(parts.pre_tokenizer)},
          {"post_processor", std::move(parts.post_processor)},
          {"decoder", std::move(parts.decoder)},
          {"model",
           {{"type", "BPE"},
            {"dropout", nullptr},
            {"unk_token", std::move(parts.unk_token)},
            {"continuing_subword_prefix", nullptr},
            {"end_of_word_suffix", nullptr},
            {"fuse_unk", parts.byte_fallback},
            {"byte_fallback", parts.byte_fallback},
            {"ignore_merges", parts.ignore_merges},
            {"vocab", std::move(parts.vocab)},
            {"merges", std::move(parts.merges)}}}};
}

/// The decoder of SentencePiece's kind; `prefix`: a space stands before the text, which is taken off again.
inline nlohmann::json sentencepiece_decoder(bool prefix) {
  nlohmann::json decoders = {
      {{"type", "Replace"}, {"pattern", {{"String", "\u2581"}}}, {"content", " "}}, {{"type", "ByteFallback"}}, {{"type", "Fuse"}}};
  if (prefix)
    decoders.push_back({{"type", "Strip"}, {"content", " "}, {"start", 1}, {"stop", 0}});
  return {{"type", "Sequence"}, {"decoders", std::move(decoders)}};
}

} // namespace troupe
