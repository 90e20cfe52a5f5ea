#pragma once
#include "core/error.hpp"
#include "core/files.hpp"
#include "model/tokenizer/utf8.hpp"
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>

namespace troupe::part_json {

/// Depth to which parts may hold parts.
inline constexpr int max_depth = 16;

/// A value for a message: short, and without walking into it.
inline std::string brief(const nlohmann::json& value) {
  if (value.is_structured())
    return value.type_name();
  auto text = value.dump();
  if (text.size() > 80)
    text.replace(77, std::string::npos, "...");
  return text;
}

/// A JSON object; Json: nlohmann::json, or ordered_json where the keys' order counts. Bounded in size and depth: several times what
/// the largest tokenizers have.
template <class Json = nlohmann::json>
Json parse_object(std::string_view text, const std::string& name) {
  constexpr std::size_t max_bytes = 128u << 20;
  constexpr int max_nesting = 256;
  if (text.size() > max_bytes)
    throw error(errc::bad_input, name + ": " + std::to_string(text.size()) + " bytes; at most " + std::to_string(max_bytes) + " are read");
  try {
    auto root = Json::parse(text, [&](int depth, typename Json::parse_event_t, Json&) {
      if (depth > max_nesting)
        throw error(errc::bad_input, name + ": nested deeper than " + std::to_string(max_nesting) + " levels");
      return true;
    });
    if (root.is_object())
      return root;
  } catch (const nlohmann::json::exception& e) {
    throw error(errc::bad_input, name + ": not JSON: " + e.what());
  }
  throw error(errc::bad_input, name + ": must be a JSON object");
}

/// The same of a file.
template <class Json = nlohmann::json>
Json object_in(const std::filesystem::path& file) {
  return parse_object<Json>(read_model_file(file), file.string());
}

inline std::string type_of(const nlohmann::json& part, const std::string& where) {
  if (!part.is_object() || !part.contains("type") || !part["type"].is_string())
    throw error(errc::bad_input, where + " must be an object with a \"type\"");
  return part["type"].get<std::string>();
}

inline bool boolean(const nlohmann::json& part, const char* key, bool otherwise, const std::string& where) {
  const auto it = part.find(key);
  if (it == part.end() || it->is_null())
    return otherwise;
  if (!it->is_boolean())
    throw error(errc::bad_input, where + "." + key + " must be true or false");
  return it->get<bool>();
}

inline std::string text(const nlohmann::json& part, const char* key, const std::string& where) {
  const auto it = part.find(key);
  if (it == part.end() || !it->is_string())
    throw error(errc::bad_input, where + "." + key + " must be a string");
  return it->get<std::string>();
}

/// A string of one character.
inline std::string character(const nlohmann::json& part, const char* key, const std::string& where) {
  auto one = text(part, key, where);
  std::size_t pos = 0;
  if (!one.empty())
    utf8::next(one, pos);
  if (one.empty() || pos != one.size())
    throw error(errc::bad_input, where + "." + key + " must be one character, not \"" + one + "\"");
  return one;
}

/// An integer from 0 to `limit`.
inline std::int64_t count(const nlohmann::json& part, const char* key, std::int64_t limit, const std::string& where) {
  const auto it = part.find(key);
  if (it == part.end() || !it->is_number_unsigned() || it->get<std::uint64_t>() > static_cast<std::uint64_t>(limit))
    throw error(errc::bad_input, where + "." + key + " must be an integer from 0 to " + std::to_string(limit));
  return it->get<std::int64_t>();
}

inline const nlohmann::json& array(const nlohmann::json& part, const char* key, const std::string& where) {
  const auto it = part.find(key);
  if (it == part.end() || !it->is_array())
    throw error(errc::bad_input, where + "." + key + " must be an array");
  return *it;
}

/// The readers of the parts of a Sequence: `read(part, where, depth)` for each.
template <class Part, class Read>
std::vector<std::unique_ptr<Part>> sequence(const nlohmann::json& part, const char* key, const std::string& where, int depth, Read read) {
  if (depth >= max_depth)
    throw error(errc::bad_input, where + ": parts nested deeper than " + std::to_string(max_depth));
  std::vector<std::unique_ptr<Part>> out;
  for (const auto& inner : array(part, key, where))
    out.push_back(read(inner, where + "." + key + "[" + std::to_string(out.size()) + "]", depth + 1));
  return out;
}

} // namespace troupe::part_json
