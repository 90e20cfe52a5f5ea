#include "cli/serve_requests.hpp"
#include "cli/requests_sampling.hpp"
#include "core/config_fields.hpp"
#include "core/error.hpp"
#include "core/random.hpp"
#include "experience/json_lines.hpp"
#include "model/tokenizer/chat_template.hpp"
#include "model/tokenizer/tokenizer.hpp"
#include <algorithm>
#include <atomic>
#include <cctype>
#include <memory>
#include <nlohmann/json.hpp>
#include <random>
#include <string_view>
#include <utility>

namespace troupe {
namespace {

using json = nlohmann::ordered_json;

constexpr std::size_t most_stops = 64, longest_stop = 4096; // every token's text is searched for each
constexpr std::int64_t most_samples_served = 128;           // OpenAI's
constexpr int deepest_json = 100;

std::string shown(const json& value) { return value.is_structured() ? value.type_name() : value.dump(); }

// The body as one line of input, so that what reads `generate`'s lines reads it; fields that are null are absent.
json_line parse_body(const std::string& body, const std::string& where) {
  json_line line{where, body, {}};
  try {
    line.value = json::parse(body, [&](int depth, json::parse_event_t, json&) {
      if (depth > deepest_json)
        line.fail("the body is nested more than " + std::to_string(deepest_json) + " levels deep");
      return true;
    });
  } catch (const json::exception& e) {
    const std::string text = e.what();
    const auto reason = text.find("line ");
    line.fail("the body is not JSON: " + (reason == text.npos ? text : text.substr(reason)));
  }
  if (!line.value.is_object())
    line.fail(std::string("the body must be a JSON object, found ") + line.value.type_name());
  for (auto it = line.value.begin(); it != line.value.end();) {
    if (it->is_null())
      it = line.value.erase(it);
    else
      ++it;
  }
  return line;
}

std::vector<std::string> known_fields(bool chat) {
  std::vector<std::string> out = sampling_keys();
  const std::vector<std::string> both = {"model", "stream", "stream_options", "seed", "logprobs", "return_token_ids",
                                         "return_tokens_as_token_ids",
                                         // said to others than the model
                                         "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"};
  const std::vector<std::string> chats = {"messages",
                                          "tools",
                                          "tool_choice",
                                          "parallel_tool_calls",
                                          "response_format",
                                          "max_completion_tokens",
                                          "add_generation_prompt",
                                          "chat_template_kwargs"};
  const std::vector<std::string> texts = {"prompt", "echo", "best_of", "suffix"};
  out.insert(out.end(), both.begin(), both.end());
  out.insert(out.end(), (chat ? chats : texts).begin(), (chat ? chats : texts).end());
  if (!chat)
    out.erase(std::find(out.begin(), out.end(), "top_logprobs"));
  return out;
}

void check_fields(const json_line& line, bool chat) {
  const auto known = known_fields(chat);
  const std::vector<std::string_view> words(known.begin(), known.end());
  for (const auto& [key, value] : line.value.items())
    if (std::find(known.begin(), known.end(), key) == known.end())
      line.fail("unknown field " + json(key).dump() + "; nearest: " + std::string(nearest_word(key, words)));
}

bool flag(const json_line& line, const char* key, bool otherwise = false) {
  const auto it = line.value.find(key);
  if (it == line.value.end())
    return otherwise;
  if (!it->is_boolean())
    line.fail("\"" + std::string(key) + "\" must be true or false, found " + shown(*it));
  return it->get<bool>();
}

[[noreturn]] void refuse(const json_line& line, const std::string& what) {
  throw error{errc::unsupported, line.where + ": this version cannot do " + what};
}

// What is known and not done here is refused unless it asks for nothing.
void check_unsupported(const json_line& line) {
  const auto& body = line.value;
  if (flag(line, "echo"))
    refuse(line, "\"echo\"; return_token_ids gives the prompt's ids");
  if (const auto it = body.find("best_of"); it != body.end() && *it != body.value("n", json(1)))
    refuse(line, "\"best_of\" other than n");
  if (const auto it = body.find("suffix"); it != body.end() && *it != "")
    refuse(line, "\"suffix\"");
  if (const auto it = body.find("response_format"); it != body.end() && *it != json{{"type", "text"}})
    refuse(line, "\"response_format\" other than {\"type\": \"text\"}");
  if (const auto it = body.find("tool_choice"); it != body.end() && *it != "auto" && *it != "none")
    refuse(line, "\"tool_choice\" other than \"auto\" and \"none\"");
}

// ---- prompts ----

bool is_ids(const json& v) { return v.is_array() && (v.empty() || v[0].is_number()); }

std::vector<std::int32_t> read_prompt(const json_line& line, const json& v, const completion_reader& with) {
  if (v.is_string())
    return with.tok->encode(v.get_ref<const std::string&>(), true);
  if (!is_ids(v))
    line.fail("\"prompt\" must be a text, a list of token ids, or a list of either, found " + shown(v));
  std::vector<std::int32_t> ids;
  for (const auto& id : v) {
    if (!id.is_number_unsigned() || id.get<std::uint64_t>() >= std::uint64_t(with.limits.vocab_size))
      line.fail("\"prompt\" has " + shown(id) + " in it; token ids are integers from 0 to " + std::to_string(with.limits.vocab_size - 1));
    ids.push_back(id.get<std::int32_t>());
  }
  return ids;
}

std::vector<std::vector<std::int32_t>> read_prompts(const json_line& line, const completion_reader& with) {
  const auto& v = line.at("prompt");
  if (v.is_string() || is_ids(v))
    return {read_prompt(line, v, with)};
  if (!v.is_array())
    line.fail("\"prompt\" must be a text, a list of token ids, or a list of either, found " + shown(v));
  if (std::int64_t(v.size()) > with.max_prompts)
    line.fail("\"prompt\" has " + std::to_string(v.size()) + " prompts; this server takes up to " + std::to_string(with.max_prompts) +
              " at once");
  std::vector<std::vector<std::int32_t>> out;
  for (const auto& one : v)
    out.push_back(read_prompt(line, one, with));
  return out;
}

// A list of text parts becomes one text, as templates expect it.
json content_of(const json_line& line, const std::string& where, const json& message) {
  const auto it = message.find("content");
  if (it == message.end() || it->is_null()) {
    if (!message.contains("tool_calls"))
      line.fail(where + " needs a \"content\": a text or a list of text parts");
    return "";
  }
  if (it->is_string())
    return *it;
  if (!it->is_array())
    line.fail(where + ": \"content\" must be a text or a list of text parts, found " + shown(*it));
  std::string text;
  for (const auto& part : *it) {
    if (!part.is_object() || part.value("type", json()) != "text" || !part.value("text", json()).is_string())
      line.fail(where + ": a part of \"content\" is not {\"type\": \"text\", \"text\": ...}; this server takes text alone");
    text += (&part == &it->front() ? "" : "\n") + part["text"].get<std::string>();
  }
  return text;
}

// The arguments of earlier calls come as JSON in a text; templates expect the object.
void open_tool_calls(json& message) {
  if (!message.contains("tool_calls") || !message["tool_calls"].is_array())
    return;
  for (auto& call : message["tool_calls"])
    if (call.is_object() && call.contains("function") && call["function"].is_object() && call["function"].contains("arguments") &&
        call["function"]["arguments"].is_string()) {
      auto& arguments = call["function"]["arguments"];
      auto object = json::parse(arguments.get_ref<const std::string&>(), nullptr, false);
      if (object.is_object())
        arguments = std::move(object);
    }
}

json read_messages(const json_line& line) {
  json messages = line.at("messages");
  if (!messages.is_array() || messages.empty())
    line.fail(std::string("\"messages\" must be a list of at least one message, found ") +
              (messages.is_array() ? "an empty one" : shown(messages)));
  for (std::size_t i = 0; i < messages.size(); ++i) {
    const std::string where = "\"messages\", number " + std::to_string(i);
    auto& m = messages[i];
    if (!m.is_object() || !m.contains("role") || !m["role"].is_string())
      line.fail(where + " must be an object with a text \"role\"");
    m["content"] = content_of(line, where, m);
    open_tool_calls(m);
  }
  return messages;
}

std::vector<std::int32_t> read_chat(const json_line& line, const completion_reader& with) {
  if (!with.chat)
    line.fail("\"messages\" needs a chat template, and the model has none; use /v1/completions");
  const auto messages = read_messages(line);
  json variables = json::object();
  if (const auto it = line.value.find("chat_template_kwargs"); it != line.value.end()) {
    if (!it->is_object())
      line.fail("\"chat_template_kwargs\" must be an object, found " + shown(*it));
    variables = *it;
  }
  if (const auto it = line.value.find("tools"); it != line.value.end() && line.value.value("tool_choice", json()) != "none") {
    if (!it->is_array())
      line.fail("\"tools\" must be a list, found " + shown(*it));
    if (!it->empty())
      variables["tools"] = *it;
  }
  try {
    return with.tok->encode(with.chat->render(messages, flag(line, "add_generation_prompt", true), variables), false);
  } catch (const error& e) {
    line.fail(std::string("\"messages\": ") + e.what());
  }
}

void check_prompt(const json_line& line, const std::vector<std::int32_t>& ids, const completion_reader& with, const std::string& key) {
  if (ids.empty())
    line.fail("\"" + key + "\" gives no token; there is nothing to continue");
  if (std::int64_t(ids.size()) >= with.limits.max_position_embeddings)
    line.fail("\"" + key + "\" gives " + std::to_string(ids.size()) + " tokens, and the model's context has room for " +
              std::to_string(with.limits.max_position_embeddings) + " with one more at least; shorten it");
  for (const auto id : ids)
    if (id < 0 || id >= with.limits.vocab_size)
      line.fail("\"" + key + "\" gives token id " + std::to_string(id) + ", outside the model's vocabulary of " +
                std::to_string(with.limits.vocab_size));
}

// ---- options ----

// Body's spelling of log-probs: a number in completions, a flag and a number in chats. Leaves `generate`'s top_logprobs.
std::optional<std::int64_t> read_logprobs(json_line& line, bool chat) {
  std::optional<std::int64_t> out;
  auto& body = line.value;
  if (chat) {
    if (flag(line, "logprobs"))
      out = 0;
    if (!out && body.contains("top_logprobs") && body["top_logprobs"] != 0)
      line.fail("\"top_logprobs\" needs \"logprobs\": true");
    if (out && body.contains("top_logprobs") && body["top_logprobs"].is_number_integer())
      out = body["top_logprobs"].get<std::int64_t>();
  } else if (const auto it = body.find("logprobs"); it != body.end() && *it != false) {
    if (!it->is_number_integer())
      line.fail("\"logprobs\" must be a number of alternatives, found " + shown(*it));
    out = it->get<std::int64_t>();
    if (*out < 0 || *out > 1000)
      line.fail("\"logprobs\" is " + std::to_string(*out) + "; it must be from 0 to 1000");
    body["top_logprobs"] = *out;
  }
  return out;
}

void read_stream_options(const json_line& line, completion_request& out) {
  out.stream = flag(line, "stream");
  const auto it = line.value.find("stream_options");
  if (it == line.value.end())
    return;
  if (!it->is_object())
    line.fail("\"stream_options\" must be an object, found " + shown(*it));
  if (!out.stream)
    line.fail("\"stream_options\" needs \"stream\": true");
  for (const auto& [key, value] : it->items()) {
    if (key != "include_usage" && key != "include_obfuscation" && key != "continuous_usage_stats")
      line.fail("\"stream_options\": unknown field " + json(key).dump() + "; known is include_usage");
    if (!value.is_boolean())
      line.fail("\"stream_options\": " + key + " must be true or false, found " + shown(value));
    if (key != "include_usage" && value.get<bool>())
      refuse(line, "\"stream_options\": " + key);
    out.include_usage = out.include_usage || value.get<bool>();
  }
}

request_options read_options(json_line& line, bool chat, const completion_reader& with) {
  auto& body = line.value;
  if (body.contains("max_completion_tokens")) {
    if (body.contains("max_tokens"))
      line.fail("\"max_tokens\" and \"max_completion_tokens\" say the same; give one");
    body["max_tokens"] = body["max_completion_tokens"];
  }
  request_options options;
  options.params.max_tokens = chat ? with.limits.max_position_embeddings : 16; // OpenAI's
  if (!body.contains("max_tokens") && body.contains("min_tokens") && body["min_tokens"].is_number_integer())
    options.params.max_tokens = std::max(options.params.max_tokens, body["min_tokens"].get<std::int64_t>());
  read_sampling(line, with.limits, options);
  if (options.n > most_samples_served)
    line.fail("\"n\" is " + std::to_string(options.n) + "; this server takes up to " + std::to_string(most_samples_served));
  const auto& stops = options.params.stop_strings;
  if (stops.size() > most_stops || std::any_of(stops.begin(), stops.end(), [](const auto& s) { return s.size() > longest_stop; }))
    line.fail("\"stop\" may have " + std::to_string(most_stops) + " texts of " + std::to_string(longest_stop) + " bytes each");
  for (const auto id : options.params.stop_ids)
    if (id >= with.limits.vocab_size)
      line.fail("\"stop_token_ids\" has " + std::to_string(id) + " in it; ids are 0 to " + std::to_string(with.limits.vocab_size - 1));
  return options;
}

} // namespace

completion_request read_completion(const std::string& body, bool chat, const completion_reader& with) {
  auto line = parse_body(body, chat ? "/v1/chat/completions" : "/v1/completions");
  check_fields(line, chat);
  check_unsupported(line);
  completion_request out;
  out.chat = chat;
  out.logprobs = read_logprobs(line, chat);
  if (const auto it = line.value.find("model"); it != line.value.end()) {
    if (!it->is_string())
      line.fail("\"model\" must be a text, found " + shown(*it));
    out.model = it->get<std::string>();
  }
  out.return_token_ids = flag(line, "return_token_ids");
  out.return_tokens_as_token_ids = flag(line, "return_tokens_as_token_ids");
  read_stream_options(line, out);
  const auto options = read_options(line, chat, with);
  const auto seed = line.value.find("seed");
  if (seed != line.value.end() && !seed->is_number_unsigned())
    line.fail("\"seed\" must be an integer from 0 to 18446744073709551615, found " + shown(*seed));
  auto prompts = chat ? std::vector<std::vector<std::int32_t>>{read_chat(line, with)} : read_prompts(line, with);
  for (const auto& ids : prompts)
    check_prompt(line, ids, with, chat ? "messages" : "prompt");
  out.seed = seed != line.value.end() ? seed->get<std::uint64_t>() : with.fresh_seed();
  for (auto& ids : prompts) {
    generation_request r;
    r.prompt_ids = std::move(ids);
    r.n = options.n;
    r.params = options.params;
    r.key = {.seed = out.seed, .domain = draw::generate_seeded, .index = std::uint32_t(out.prompts.size())};
    out.prompts.push_back(std::move(r));
  }
  return out;
}

std::string named_field(const std::string& message, const std::string& body) {
  const auto fields = json::parse(body, nullptr, false);
  std::string found;
  std::size_t first = message.npos;
  const auto is_word = [](char c) { return std::isalnum(static_cast<unsigned char>(c)) || c == '_'; };
  if (fields.is_object())
    for (const auto& [key, value] : fields.items())
      for (auto at = key.empty() ? message.npos : message.find(key); at < first; at = message.find(key, at + 1))
        if ((at == 0 || (!is_word(message[at - 1]) && message[at - 1] != '/')) &&
            (at + key.size() == message.size() || !is_word(message[at + key.size()]))) {
          first = at;
          found = key;
        }
  return found;
}

std::function<std::uint64_t()> fresh_seeds(std::optional<std::uint64_t> seed) {
  const std::uint64_t base = seed ? *seed : (std::uint64_t{std::random_device{}()} << 32) | std::random_device{}();
  return [base, next = std::make_shared<std::atomic<std::uint32_t>>(0)] {
    const auto bits = philox4x32({(*next)++, 0, 0, 0}, {std::uint32_t(base), std::uint32_t(base >> 32)});
    return ((std::uint64_t{bits[0]} << 32) | bits[1]) >> 11; // below 2^53: exact in every JSON reader
  };
}

} // namespace troupe
