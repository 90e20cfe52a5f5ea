#pragma once
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

namespace troupe {

/// A model's chat template (Jinja, with Transformers' settings: trim_blocks, lstrip_blocks, tojson, raise_exception,
/// strftime_now). Immutable; any thread. Depth, output size and work are bounded.
class chat_template {
public:
  /// `dir/chat_template.jinja`, else `tokenizer_config.json`'s `chat_template`; null when there is neither.
  static std::shared_ptr<const chat_template> load(const std::filesystem::path& dir);
  /// source: the template; special_tokens: {"bos_token": "...", "eos_token": "...", ...} visible to it.
  static std::shared_ptr<const chat_template> parse(const std::string& source, nlohmann::ordered_json special_tokens,
                                                    const std::string& name);
  ~chat_template();

  /// messages: [{"role": ..., "content": ...}, ...]. Throws errc::bad_input (with the template's own message on raise_exception)
  /// and errc::unsupported naming line and construct.
  std::string render(const nlohmann::ordered_json& messages, bool add_generation_prompt,
                     const nlohmann::ordered_json& variables = nlohmann::ordered_json::object()) const;

private:
  chat_template();
  struct impl;
  std::unique_ptr<impl> impl_;
};

} // namespace troupe
