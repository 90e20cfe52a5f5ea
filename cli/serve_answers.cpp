#include "cli/serve_answers.hpp"
#include "model/tokenizer/tokenizer.hpp"
#include <algorithm>
#include <array>
#include <span>

namespace troupe {
namespace {

using json = nlohmann::ordered_json;

std::size_t characters(const std::string& utf8) {
  return std::size_t(std::count_if(utf8.begin(), utf8.end(), [](char c) { return (c & '\xC0') != '\x80'; }));
}

// A number, or a list with one a token where they differ, as in a run's rollouts.
json version_of(const std::vector<weights_version>& versions) {
  json steps = json::array();
  for (const auto& v : versions)
    steps.push_back(v.step);
  const bool one = std::all_of(versions.begin(), versions.end(), [&](const auto& v) { return v.step == versions.front().step; });
  return one && !versions.empty() ? steps[0] : steps;
}

} // namespace

struct completion_answer::sample_stream {
  text_stream text;
  std::size_t offset = 0; // characters of the tokens so far, for text_offset
};

completion_answer::completion_answer(const completion_request& request, answer_head head, std::shared_ptr<const tokenizer> tok)
    : request_(request), head_(std::move(head)), tok_(std::move(tok)) {}

completion_answer::~completion_answer() = default;

std::size_t completion_answer::choice_of(std::uint64_t prompt, std::int64_t sample) const {
  return std::size_t(prompt) * std::size_t(request_.prompts.front().n) + std::size_t(sample);
}

std::string completion_answer::spelled(std::int32_t id) const {
  if (request_.return_tokens_as_token_ids)
    return "token_id:" + std::to_string(id);
  return tok_->decode(std::array{id}, false);
}

json completion_answer::chat_token(const token_logprob& token) const {
  const auto text = spelled(token.id);
  json bytes = json::array();
  for (const char c : text)
    bytes.push_back(static_cast<unsigned char>(c));
  return {{"token", text}, {"logprob", token.logprob}, {"bytes", std::move(bytes)}};
}

// ids, logprobs: [n]; top: [n, k]. The tokens drawn, in the shape of the endpoint.
json completion_answer::logprobs(const std::vector<std::int32_t>& ids, const std::vector<float>& logprobs,
                                 const std::vector<token_logprob>& top, std::size_t& text_offset) const {
  if (!request_.logprobs)
    return nullptr;
  const std::size_t k = ids.empty() ? 0 : top.size() / ids.size();
  json content = json::array(), tokens = json::array(), values = json::array(), tops = json::array(), offsets = json::array();
  for (std::size_t i = 0; i < ids.size(); ++i) {
    const token_logprob drawn{ids[i], logprobs[i]};
    const auto others = std::span(top).subspan(i * k, k);
    if (request_.chat) {
      auto entry = chat_token(drawn);
      entry["top_logprobs"] = json::array();
      for (const auto& t : others)
        entry["top_logprobs"].push_back(chat_token(t));
      content.push_back(std::move(entry));
      continue;
    }
    json ranked = json::object(); // tokens that are spelled alike: the most probable
    for (const auto& t : others)
      if (const auto text = spelled(t.id); !ranked.contains(text))
        ranked[text] = t.logprob;
    const auto text = spelled(drawn.id);
    if (!ranked.contains(text))
      ranked[text] = drawn.logprob;
    tokens.push_back(text);
    values.push_back(drawn.logprob);
    tops.push_back(std::move(ranked));
    offsets.push_back(text_offset);
    text_offset += characters(tok_->decode(std::array{drawn.id}, true));
  }
  if (request_.chat)
    return {{"content", std::move(content)}};
  return {{"tokens", std::move(tokens)},
          {"token_logprobs", std::move(values)},
          {"top_logprobs", std::move(tops)},
          {"text_offset", std::move(offsets)}};
}

json completion_answer::frame(const char* object) const {
  const std::string version = newest_ ? "-step-" + std::to_string(newest_->step) : "";
  return {{"id", head_.id},       {"object", object},         {"created", head_.created},
          {"model", head_.model}, {"choices", json::array()}, {"system_fingerprint", head_.fingerprint + version},
          {"seed", request_.seed}};
}

void completion_answer::saw(const weights_version& version) {
  if (head_.versioned)
    newest_ = std::max(newest_.value_or(version), version);
}

json completion_answer::usage() const {
  std::int64_t prompt_tokens = 0;
  for (const auto& r : request_.prompts)
    prompt_tokens += std::int64_t(r.prompt_ids.size());
  return {{"prompt_tokens", prompt_tokens}, {"completion_tokens", output_tokens_}, {"total_tokens", prompt_tokens + output_tokens_}};
}

// ---- whole ----

void completion_answer::add(generation_output&& ended) {
  const auto& ids = ended.result.output_ids;
  const auto index = choice_of(ended.id, ended.sample_index);
  output_tokens_ += std::int64_t(ids.size());
  json choice = {{"index", index}};
  auto text = tok_->decode(ids, true).substr(0, ended.text_stop);
  if (request_.chat)
    choice["message"] = {{"role", "assistant"}, {"content", std::move(text)}, {"refusal", nullptr}};
  else
    choice["text"] = std::move(text);
  std::size_t offset = 0;
  choice["logprobs"] = logprobs(ids, ended.result.logprobs, ended.top, offset);
  choice["finish_reason"] = name_of(ended.result.finish);
  if (request_.return_token_ids) {
    choice["token_ids"] = ids;
    if (!request_.chat)
      choice["prompt_token_ids"] = request_.prompts[ended.id].prompt_ids;
  }
  for (const auto& v : ended.result.versions)
    saw(v);
  if (head_.versioned)
    choice["weights_version"] = version_of(ended.result.versions);
  choices_[index] = std::move(choice);
}

json completion_answer::whole() const {
  json out = frame(request_.chat ? "chat.completion" : "text_completion");
  for (const auto& [index, choice] : choices_)
    out["choices"].push_back(choice);
  out["usage"] = usage();
  if (request_.chat && request_.return_token_ids)
    out["prompt_token_ids"] = request_.prompts.front().prompt_ids;
  return out;
}

// ---- in chunks ----

json completion_answer::chunk(const json& choice, std::size_t index, const std::vector<std::int32_t>* ids) const {
  json out = frame(request_.chat ? "chat.completion.chunk" : "text_completion");
  json whole = {{"index", index}};
  whole.update(choice);
  if (ids && request_.return_token_ids)
    whole["token_ids"] = *ids;
  out["choices"].push_back(std::move(whole));
  if (request_.include_usage)
    out["usage"] = nullptr;
  return out;
}

// A chat's sample begins with a chunk that names the role; the prompt's ids come with the first.
completion_answer::sample_stream& completion_answer::stream_of(std::size_t index, std::vector<json>& first) {
  auto& stream = streams_[index];
  if (stream)
    return *stream;
  const auto& r = request_.prompts[index / std::size_t(request_.prompts.front().n)];
  stream.reset(new sample_stream{{tok_, r.params}});
  if (request_.chat) {
    first.push_back(
        chunk({{"delta", {{"role", "assistant"}, {"content", ""}}}, {"logprobs", nullptr}, {"finish_reason", nullptr}}, index, nullptr));
    if (request_.return_token_ids && streams_.size() == 1)
      first.back()["prompt_token_ids"] = r.prompt_ids;
  } else if (request_.return_token_ids) {
    first.push_back(chunk({{"text", ""}, {"logprobs", nullptr}, {"finish_reason", nullptr}}, index, nullptr));
    first.back()["choices"][0]["prompt_token_ids"] = r.prompt_ids;
  }
  return *stream;
}

std::vector<json> completion_answer::chunks(const generation_event& event) {
  std::vector<json> out;
  const auto put = [&](std::size_t index, const std::string& text, json logprobs, json finish, const std::vector<std::int32_t>* ids) {
    json choice = request_.chat ? json{{"delta", text.empty() ? json::object() : json{{"content", text}}}} : json{{"text", text}};
    choice["logprobs"] = std::move(logprobs);
    choice["finish_reason"] = std::move(finish);
    out.push_back(chunk(choice, index, ids));
  };
  if (const auto* drawn = std::get_if<streamed_token>(&event)) {
    const auto index = choice_of(drawn->id, drawn->sample_index);
    saw(drawn->version);
    auto& stream = stream_of(index, out);
    const auto text = stream.text.add(drawn->token.id);
    ++output_tokens_;
    const std::vector<std::int32_t> ids{drawn->token.id};
    if (!text.empty() || request_.logprobs || request_.return_token_ids)
      put(index, text, logprobs(ids, {drawn->token.logprob}, drawn->top, stream.offset), nullptr, &ids);
    if (head_.versioned && !out.empty())
      out.back()["choices"][0]["weights_version"] = drawn->version.step;
  } else {
    const auto& ended = std::get<generation_output>(event);
    const auto index = choice_of(ended.id, ended.sample_index);
    put(index, stream_of(index, out).text.finish(), nullptr, name_of(ended.result.finish), nullptr);
  }
  return out;
}

json completion_answer::usage_chunk() const {
  json out = frame(request_.chat ? "chat.completion.chunk" : "text_completion");
  out["usage"] = usage();
  return out;
}

json error_object(const std::string& message, const std::string& type, const std::string& param, const std::string& code) {
  return {{"error",
           {{"message", message},
            {"type", type},
            {"param", param.empty() ? json() : json(param)},
            {"code", code.empty() ? json() : json(code)}}}};
}

} // namespace troupe
