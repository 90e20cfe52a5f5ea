#pragma once
#include "cli/serve_requests.hpp"
#include "cli/text_stream.hpp"
#include "rollout/request_desk.hpp"
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace troupe {

/// What stands in every answer.
struct answer_head {
  std::string id, model, fingerprint;
  std::int64_t created = 0; // seconds since 1970
  bool versioned = false;   // the weights are a run's: the fingerprint names their version, and each choice has its `weights_version`
};

/// OpenAI's answer to a request, whole or in chunks, from the events of its generation_stream. One thread.
class completion_answer {
public:
  using json = nlohmann::ordered_json;
  completion_answer(const completion_request& request, answer_head head, std::shared_ptr<const tokenizer> tok);
  ~completion_answer();
  /// Whole: every generation_output, then the answer.
  void add(generation_output&& ended);
  json whole() const;
  /// In chunks: those that an event gives, in its order; then, when include_usage is asked for, the last.
  std::vector<json> chunks(const generation_event& event);
  json usage_chunk() const;

private:
  struct sample_stream; // what a sample's chunks need of those before
  std::size_t choice_of(std::uint64_t prompt, std::int64_t sample) const;
  std::string spelled(std::int32_t id) const;
  json chat_token(const token_logprob& token) const;
  json logprobs(const std::vector<std::int32_t>& ids, const std::vector<float>& logprobs, const std::vector<token_logprob>& top,
                std::size_t& text_offset) const;
  json chunk(const json& choice, std::size_t index, const std::vector<std::int32_t>* ids) const;
  json frame(const char* object) const;
  void saw(const weights_version& version);
  json usage() const;
  sample_stream& stream_of(std::size_t index, std::vector<json>& first);
  const completion_request& request_;
  answer_head head_;
  std::shared_ptr<const tokenizer> tok_;
  std::map<std::size_t, json> choices_; // by index
  std::map<std::size_t, std::unique_ptr<sample_stream>> streams_;
  std::int64_t output_tokens_ = 0;
  std::optional<weights_version> newest_; // of the tokens so far, where they are versioned
};

/// OpenAI's error object.
nlohmann::ordered_json error_object(const std::string& message, const std::string& type, const std::string& param = "",
                                    const std::string& code = "");

} // namespace troupe
