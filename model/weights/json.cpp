#include "model/weights/json.hpp"
#include "core/error.hpp"
#include <unordered_set>
#include <vector>

namespace troupe {

namespace {

constexpr int max_depth = 64;

/// Refuses what nlohmann's parser lets pass: a second value for a key (it keeps the last) and endless nesting.
class strictness {
public:
  explicit strictness(const std::string& name) : name_(name) {}

  bool operator()(int depth, nlohmann::json::parse_event_t event, nlohmann::json& parsed) {
    using parse_event = nlohmann::json::parse_event_t;
    if (depth > max_depth)
      throw error(errc::bad_input, name_ + ": nested deeper than " + std::to_string(max_depth) + " levels");
    if (event == parse_event::object_start)
      keys_.emplace_back();
    else if (event == parse_event::object_end)
      keys_.pop_back();
    else if (event == parse_event::key && !keys_.back().insert(parsed.get_ref<const std::string&>()).second)
      throw error(errc::bad_input, name_ + ": key " + in_quotes(parsed.get_ref<const std::string&>()) + " occurs twice");
    return true;
  }

private:
  const std::string& name_;
  std::vector<std::unordered_set<std::string>> keys_;
};

/// nlohmann's text without its "[json.exception...]" tag.
std::string reason_of(const nlohmann::json::exception& e) {
  std::string text = e.what();
  if (const auto tag = text.find("] "); tag != std::string::npos)
    text.erase(0, tag + 2);
  if (text.rfind("parse error ", 0) == 0)
    text.erase(0, std::string_view("parse error ").size());
  const bool clean = is_utf8(text);
  for (char& c : text)
    if (static_cast<unsigned char>(c) < 0x20)
      c = ' ';
    else if (!clean && static_cast<unsigned char>(c) >= 0x80)
      c = '?';
  return text.size() > 240 ? text.substr(0, 240) + "..." : text;
}

} // namespace

std::string in_quotes(std::string_view text, std::size_t limit) {
  constexpr char digits[] = "0123456789abcdef";
  std::string out = "\"";
  for (const char c : text.substr(0, limit)) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\')
      (out += '\\') += c;
    else if (byte < 0x20 || byte == 0x7f)
      ((out += "\\x") += digits[byte >> 4]) += digits[byte & 15];
    else
      out += c;
  }
  return out + (text.size() > limit ? "...\"" : "\"");
}

nlohmann::json parse_json(std::string_view text, const std::string& name) {
  strictness check(name);
  try {
    return nlohmann::json::parse(text.begin(), text.end(), std::ref(check));
  } catch (const nlohmann::json::exception& e) {
    throw error(errc::bad_input, name + ": not JSON: " + reason_of(e));
  }
}

nlohmann::json parse_json_object(std::string_view text, const std::string& name) {
  nlohmann::json value = parse_json(text, name);
  if (!value.is_object())
    throw error(errc::bad_input, name + ": a JSON object is wanted, found " + value.type_name());
  return value;
}

bool is_utf8(std::string_view text) noexcept {
  for (std::size_t i = 0; i < text.size();) {
    const auto lead = static_cast<unsigned char>(text[i]);
    const std::size_t length = lead < 0x80                   ? 1
                               : lead >= 0xc2 && lead < 0xe0 ? 2
                               : (lead & 0xf0) == 0xe0       ? 3
                               : lead >= 0xf0 && lead < 0xf5 ? 4
                                                             : 0;
    if (length == 0 || length > text.size() - i)
      return false;
    for (std::size_t j = 1; j < length; ++j)
      if ((static_cast<unsigned char>(text[i + j]) & 0xc0) != 0x80)
        return false;
    const auto second = length > 1 ? static_cast<unsigned char>(text[i + 1]) : 0;
    // Overlong forms, surrogates and what lies beyond U+10FFFF.
    if ((lead == 0xe0 && second < 0xa0) || (lead == 0xed && second > 0x9f) || (lead == 0xf0 && second < 0x90) ||
        (lead == 0xf4 && second > 0x8f))
      return false;
    i += length;
  }
  return true;
}

} // namespace troupe
