#include "model/tokenizer/chat_template.hpp"
#include "core/error.hpp"
#include "core/files.hpp"
#include "model/tokenizer/jinja/machine.hpp"
#include "model/tokenizer/part_json.hpp"
#include <algorithm>
#include <array>

namespace troupe {
namespace {

using json = nlohmann::ordered_json;

// A special token in tokenizer_config.json is its text or an object that holds it.
json special_tokens(const json& config) {
  json out = json::object();
  for (const auto& [key, token] : config.items()) {
    if (!key.ends_with("_token"))
      continue;
    if (token.is_string())
      out[key] = token;
    else if (token.is_object() && token.contains("content") && token["content"].is_string())
      out[key] = token["content"];
  }
  return out;
}

// The template itself, or of several by name the one called "default".
std::optional<std::string> configured_template(const json& config, const std::string& where) {
  if (!config.contains("chat_template") || config["chat_template"].is_null())
    return std::nullopt;
  const auto& entry = config["chat_template"];
  if (entry.is_string())
    return entry.get<std::string>();
  if (entry.is_array())
    for (const auto& one : entry)
      if (one.is_object() && one.value("name", json()) == "default" && one.contains("template") && one["template"].is_string())
        return one["template"].get<std::string>();
  throw error(errc::bad_input, where + ": chat_template must be a string, or a list with one named \"default\"");
}

// One time for the whole process: prompts do not depend on when each was made.
std::time_t first_use() {
  static const std::time_t now = std::time(nullptr);
  return now;
}

bool has_generation(const jinja::body& statements) {
  return std::any_of(statements.begin(), statements.end(), [](const jinja::statement& s) {
    return s.what == jinja::statement_kind::generation || has_generation(s.inner) || has_generation(s.other);
  });
}

// Transformers reads a message's reasoning under three names and offers it under two.
json with_reasoning(const json& message) {
  static constexpr std::array names = {"reasoning_content", "thinking", "reasoning"};
  for (const char* name : names) {
    const auto it = message.find(name);
    if (it == message.end() || it->is_null())
      continue;
    json out = json::object();
    out["thinking"] = *it;
    for (const auto& [key, item] : message.items())
      out[key] = item;
    out["reasoning_content"] = *it;
    return out;
  }
  return message;
}

} // namespace

struct chat_template::impl {
  jinja::program program;
  json special_tokens;
  std::time_t now;
};

chat_template::chat_template() = default;
chat_template::~chat_template() = default;

std::optional<chat_template_text> chat_template::read(const std::filesystem::path& dir) {
  const auto config_file = dir / "tokenizer_config.json", template_file = dir / "chat_template.jinja";
  const json config = is_there(config_file) ? part_json::object_in<json>(config_file) : json::object();
  if (is_there(template_file))
    return chat_template_text{read_model_file(template_file), special_tokens(config), template_file.string()};
  if (const auto source = configured_template(config, config_file.string()))
    return chat_template_text{*source, special_tokens(config), config_file.string() + ": chat_template"};
  return std::nullopt;
}

std::shared_ptr<const chat_template> chat_template::load(const std::filesystem::path& dir, std::optional<std::time_t> now) {
  const auto text = read(dir);
  return text ? parse(text->source, text->special_tokens, text->name, now) : nullptr;
}

std::shared_ptr<const chat_template> chat_template::parse(const std::string& source, json special_tokens, const std::string& name,
                                                          std::optional<std::time_t> now) {
  std::shared_ptr<chat_template> made(new chat_template);
  made->impl_ = std::make_unique<impl>(impl{jinja::parse(source, name), std::move(special_tokens), now.value_or(first_use())});
  return made;
}

bool chat_template::marks() const { return has_generation(impl_->program.statements); }

std::string chat_template::render(const json& messages, bool add_generation_prompt, const json& variables) const {
  return render_marked(messages, add_generation_prompt, variables).text;
}

marked_chat chat_template::render_marked(const json& messages, bool add_generation_prompt, const json& variables) const {
  if (!messages.is_array())
    throw error(errc::bad_input, "messages must be a list of objects with a role");
  json prepared = json::array();
  for (const auto& message : messages) {
    if (!message.is_object())
      throw error(errc::bad_input, "messages[" + std::to_string(prepared.size()) + "] must be an object");
    prepared.push_back(with_reasoning(message));
  }
  auto top = std::make_shared<jinja::scope>();
  auto& known = top->variables;
  for (const auto& [key, item] : impl_->special_tokens.items())
    known[key] = jinja::value::from_json(item);
  known["messages"] = jinja::value::from_json(prepared);
  known["tools"] = known["documents"] = jinja::value::none();
  known["add_generation_prompt"] = jinja::value::boolean(add_generation_prompt);
  for (const auto& [key, item] : variables.items())
    known[key] = jinja::value::from_json(item);
  jinja::machine machine(impl_->program, impl_->now);
  auto text = machine.run(std::move(top));
  return {std::move(text), machine.generated()};
}

} // namespace troupe
