#pragma once
#include "cli/requests.hpp"
#include "experience/json_lines.hpp"
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace troupe {

/// The keys of a request that say how it is sampled: the command's options by the same names.
const std::vector<std::string>& sampling_keys();

/// Takes what the line says in place of what `options` holds. Throws errc::bad_input with file and line when a value has a wrong
/// type or is out of range.
void read_sampling(const json_line& line, const model_limits& limits, request_options& options);

/// "ID:BIAS" of --logit-bias. Throws errc::bad_usage.
std::pair<std::int32_t, float> parse_logit_bias(std::string_view text);

} // namespace troupe
