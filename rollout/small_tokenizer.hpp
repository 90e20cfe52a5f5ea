#pragma once
#include "model/tokenizer/tokenizer.hpp"
#include <memory>

namespace troupe {

/// Of tests: six tokens; the last two are the bytes of "é".
inline std::shared_ptr<const tokenizer> small_tokenizer() {
  return tokenizer::parse(R"({"version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
    "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
    "post_processor": null, "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
    "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null, "end_of_word_suffix": null,
    "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
    "vocab": {"a": 0, "b": 1, "c": 2, "abc": 3, "\u00c3": 4, "\u00a9": 5}, "merges": []}})",
                          "small");
}

} // namespace troupe
