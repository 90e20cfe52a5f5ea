#pragma once
#include "cli/requests.hpp"
#include "rollout/generator.hpp"
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

namespace troupe {

class chat_template;
class tokenizer;

/// What a body of /v1/completions or /v1/chat/completions asks for.
struct completion_request {
  bool chat = false;
  std::string model;                       // "": any
  std::vector<generation_request> prompts; // all with the same options; one for a chat
  std::uint64_t seed = 0;                  // the body's, or a fresh one
  std::optional<std::int64_t> logprobs;    // so many alternatives a token are shown; none: no log-probs at all
  bool return_token_ids = false;
  bool return_tokens_as_token_ids = false; // tokens in log-probs are spelled "token_id:ID"
  bool stream = false, include_usage = false;
};

/// What reading a body needs.
struct completion_reader {
  const tokenizer* tok = nullptr;
  const chat_template* chat = nullptr; // null: there is none
  model_limits limits;
  std::int64_t max_prompts = 1;              // of one body
  std::function<std::uint64_t()> fresh_seed; // for a body without one
};

/// Throws errc::bad_input or errc::unsupported naming the field: not JSON, an unknown field, one of a wrong type or out of range,
/// a prompt with no token or no room behind it. Any thread.
completion_request read_completion(const std::string& body, bool chat, const completion_reader& with);

/// Seeds for bodies that have none: a stream that follows from `seed`, or from what the system draws once. Any thread calls it.
std::function<std::uint64_t()> fresh_seeds(std::optional<std::uint64_t> seed);

/// The field of the body that an error names first; "" when none. For OpenAI's `param`.
std::string named_field(const std::string& message, const std::string& body);

} // namespace troupe
