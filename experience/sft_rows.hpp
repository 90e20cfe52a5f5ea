#pragma once
#include "experience/dataset.hpp"
#include "model/tokenizer/chat_template.hpp"
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace troupe {

/// One row of supervised data: a conversation or a prompt with its response, tokenized up to the last token that is learnt.
struct sft_row {
  std::uint64_t source = 0; // row in the data, from 0, through all files in order
  std::vector<std::int32_t> ids;
  std::vector<std::int32_t> targets; // positions in ids of the tokens that are learnt, ascending, from 1
};

/// What reading supervised rows needs of a tokenizer and a chat template.
struct sft_encoder {
  prompt_encoder prompts;
  std::function<std::string(const nlohmann::ordered_json& messages, bool add_generation_prompt)> render; // empty: no template
  std::function<marked_chat(const nlohmann::ordered_json& messages)> marked; // empty: the template has no {% generation %} blocks
  std::vector<std::int32_t> end_tokens; // the first ends a response that no template ends; empty: nothing does
};

/// tok and chat must outlive the encoder; chat may be null.
sft_encoder make_sft_encoder(const tokenizer& tok, const chat_template* chat, std::vector<std::int32_t> end_tokens);

/// Reads and tokenizes all rows of `files` as [data] says (docs/sft.md: which tokens are learnt). Validated whole: throws
/// errc::bad_input with file, line and reason (bad JSON, missing key, wrong type, nothing to learn, a template that renders
/// the beginning of a conversation otherwise than the whole, too long, no rows).
std::vector<sft_row> load_sft_rows(const std::vector<std::string>& files, const data_section& data, const sft_encoder& encoder);

} // namespace troupe
