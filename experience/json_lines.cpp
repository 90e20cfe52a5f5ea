#include "experience/json_lines.hpp"
#include "core/error.hpp"
#include "core/files.hpp"

namespace troupe {
namespace {

/// nlohmann's "[json.exception.parse_error.101] parse error at line 1, column 3: reason" without what the caller says better.
std::string reason_of(const nlohmann::ordered_json::exception& e) {
  const std::string text = e.what();
  const auto column = text.find(", column ");
  return column == std::string::npos ? text : text.substr(column + 2);
}

} // namespace

void json_line::fail(const std::string& reason) const { throw error(errc::bad_input, where + ": " + reason); }

const nlohmann::ordered_json& json_line::at(const std::string& key) const {
  const auto it = value.find(key);
  if (it == value.end())
    fail("no key \"" + key + "\"");
  return *it;
}

void for_each_json_line(const std::filesystem::path& file, const std::function<void(const json_line&)>& row) {
  for_each_line(file, [&](std::size_t number, std::string_view text) {
    json_line line{file.string() + ":" + std::to_string(number), text, {}};
    try {
      line.value = nlohmann::ordered_json::parse(text);
    } catch (const nlohmann::ordered_json::exception& e) { // a parse_error, or out_of_range for a number like 1e999
      line.fail("not JSON: " + reason_of(e));
    }
    if (!line.value.is_object())
      line.fail(std::string("a JSON object expected, found ") + line.value.type_name());
    row(line);
  });
}

} // namespace troupe
