#pragma once
#include <ctime>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace troupe {

/// What a template is made of, read from a model's directory.
struct chat_template_text {
  std::string source;
  nlohmann::ordered_json special_tokens; // {"bos_token": "...", ...}
  std::string name;                      // stands in messages
};

struct marked_chat {
  std::string text;
  std::vector<std::pair<std::size_t, std::size_t>> assistant;
};

/// A model's chat template (Jinja, with Transformers' settings: trim_blocks, lstrip_blocks, tojson, raise_exception,
/// strftime_now). Immutable; any thread. Depth, output size and work are bounded.
class chat_template {
public:
  /// `dir/chat_template.jinja`, else `tokenizer_config.json`'s `chat_template`; null when there is neither.
  /// now: the time of strftime_now in all it renders; default: when the process first read a template, for all of them.
  static std::shared_ptr<const chat_template> load(const std::filesystem::path& dir, std::optional<std::time_t> now = {});
  /// The first half of load; none where load is null.
  static std::optional<chat_template_text> read(const std::filesystem::path& dir);
  /// source: the template; special_tokens: {"bos_token": "...", "eos_token": "...", ...} visible to it.
  static std::shared_ptr<const chat_template> parse(const std::string& source, nlohmann::ordered_json special_tokens,
                                                    const std::string& name, std::optional<std::time_t> now = {});
  ~chat_template();

  /// messages: [{"role": ..., "content": ...}, ...]. Throws errc::bad_input (with the template's own message on raise_exception)
  /// and errc::unsupported naming line and construct.
  std::string render(const nlohmann::ordered_json& messages, bool add_generation_prompt,
                     const nlohmann::ordered_json& variables = nlohmann::ordered_json::object()) const;
  /// The same with what the assistant says, by the template's {% generation %} blocks: bytes [begin, end) of the text.
  marked_chat render_marked(const nlohmann::ordered_json& messages, bool add_generation_prompt,
                            const nlohmann::ordered_json& variables = nlohmann::ordered_json::object()) const;
  /// Whether it has such blocks.
  bool marks() const;

private:
  chat_template();
  struct impl;
  std::unique_ptr<impl> impl_;
};

} // namespace troupe
