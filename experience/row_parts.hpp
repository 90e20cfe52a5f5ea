#pragma once
#include "experience/dataset.hpp"
#include "experience/json_lines.hpp"
#include <cstdint>
#include <string>
#include <vector>

namespace troupe {

// What the readers of prompts and of supervised rows share. They throw errc::bad_input with the line's place.

/// A list of objects with "role" and "content".
void check_messages(const json_line& line, const std::string& key, const nlohmann::ordered_json& messages);
/// The prompt of a row, tokenized as [data] says.
std::vector<std::int32_t> prompt_ids(const json_line& line, const data_section& data, const prompt_encoder& encoder);

} // namespace troupe
