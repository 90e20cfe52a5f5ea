#pragma once
#include "model/tokenizer/part_json.hpp"
#include <cstdint>
#include <map>
#include <string>

namespace troupe {

/// What Metaspace's two parts, pre-tokenizer and decoder, are told.
struct metaspace_options {
  enum prepend_scheme : std::uint8_t { first, never, always };
  std::string character; // stands for a space
  prepend_scheme scheme = always;
  bool split = true;
};

inline metaspace_options read_metaspace(const nlohmann::json& part, const std::string& where) {
  static const std::map<std::string, metaspace_options::prepend_scheme> names = {
      {"first", metaspace_options::first}, {"never", metaspace_options::never}, {"always", metaspace_options::always}};
  metaspace_options out;
  out.character = part_json::character(part, "replacement", where);
  out.split = part_json::boolean(part, "split", true, where);
  if (part.contains("prepend_scheme")) {
    const auto name = part_json::text(part, "prepend_scheme", where);
    const auto it = names.find(name);
    if (it == names.end())
      throw error(errc::bad_input, where + ".prepend_scheme \"" + name + "\" is none of first, never, always");
    out.scheme = it->second;
  }
  if (!part_json::boolean(part, "add_prefix_space", true, where)) { // how files of old say never
    if (part.contains("prepend_scheme") && out.scheme != metaspace_options::never)
      throw error(errc::bad_input,
                  where + ": add_prefix_space false and prepend_scheme " + part["prepend_scheme"].dump() + " contradict each other");
    out.scheme = metaspace_options::never;
  }
  return out;
}

} // namespace troupe
