#pragma once
#include <filesystem>
#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

namespace troupe {

/// One line of a JSONL file, with what errors about it need.
struct json_line {
  std::string where;            // "file:line"
  std::string_view text;        // the line itself
  nlohmann::ordered_json value; // an object

  /// Throws errc::bad_input: "file:line: reason".
  [[noreturn]] void fail(const std::string& reason) const;
  /// The value of a key; throws errc::bad_input when there is none.
  const nlohmann::ordered_json& at(const std::string& key) const;
};

/// Calls `row` for each non-empty line. Throws errc::bad_input with file and line when a line is not a JSON object.
void for_each_json_line(const std::filesystem::path& file, const std::function<void(const json_line&)>& row);

} // namespace troupe
