#pragma once
#include <cstddef>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

namespace troupe {

/// Text from a file for a one-line message: in double quotes, control characters escaped, cut after `limit` bytes.
std::string in_quotes(std::string_view text, std::size_t limit = 120);

/// Parses JSON as files of models must be: no duplicate key in an object, at most 64 levels, UTF-8.
/// `name` stands in messages. Throws errc::bad_input with line and column, or the key.
nlohmann::json parse_json(std::string_view text, const std::string& name);

/// The same, and the outermost value must be an object.
nlohmann::json parse_json_object(std::string_view text, const std::string& name);

/// True when every byte belongs to a well-formed UTF-8 sequence.
bool is_utf8(std::string_view text) noexcept;

} // namespace troupe
