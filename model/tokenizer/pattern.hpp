#pragma once
#include "model/tokenizer/part_json.hpp"
#include "model/tokenizer/regex.hpp"

namespace troupe {

/// tokenizer.json's {"String": "..."} or {"Regex": "..."}.
inline regex read_pattern(const nlohmann::json& part, const char* key, const std::string& where) {
  const auto it = part.find(key);
  const std::string place = where + "." + key;
  if (it != part.end() && it->is_object() && it->size() == 1) {
    if (it->contains("String"))
      return regex::literal(part_json::text(*it, "String", place), place);
    if (it->contains("Regex"))
      return regex(part_json::text(*it, "Regex", place), place);
  }
  throw error(errc::bad_input, place + " must be {\"String\": \"...\"} or {\"Regex\": \"...\"}");
}

} // namespace troupe
