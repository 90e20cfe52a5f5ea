#pragma once
#include "core/random.hpp"
#include <cstdint>
#include <span>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

namespace troupe {

struct logit_edits;

/// How one request is sampled. Order: logit bias, penalties, masks (allowed_ids, min_tokens), temperature, then top-k, top-p
/// (renormalised after top-k), min-p.
struct sampling_params {
  double temperature = 1.0; // 0: greedy, ties to the lowest id
  double top_p = 1.0;
  std::int64_t top_k = 0; // 0 or -1: off
  double min_p = 0.0;     // relative to the most probable
  std::int64_t max_tokens = 128;
  std::int64_t min_tokens = 0;                            // before these no token or text ends the sample
  double repetition_penalty = 1.0;                        // of tokens in prompt or output: positive logits / it, others * it
  double presence_penalty = 0.0;                          // off the logit of tokens in the output
  double frequency_penalty = 0.0;                         // the same, times how often
  std::vector<std::pair<std::int32_t, float>> logit_bias; // id, what is added; each id once
  std::vector<std::int32_t> allowed_ids;                  // ascending, each once; empty: all
  std::int64_t top_logprobs = 0;                          // so many most probable alternatives a token are reported
  std::vector<std::int32_t> stop_ids;                     // end tokens, added to the model's unless ignore_eos
  std::vector<std::string> stop_strings;
  bool ignore_eos = false;
};

/// How often each token was drawn.
using token_counts = std::unordered_map<std::int32_t, std::int32_t>;

/// What penalties and min_tokens ask of a sample; empty where params do not use it.
struct sampling_history {
  std::span<const std::int32_t> prompt_ids; // ascending, each once
  const token_counts* drawn = nullptr;
  std::int64_t n_drawn = 0;
  std::span<const std::int32_t> end_ids; // not drawn while n_drawn < params.min_tokens
};

/// Whether params have a penalty, so that sampling_history's tokens count.
bool has_penalty(const sampling_params& params);

/// Changes a row by logit bias, penalties and min_tokens; what may not be drawn becomes -infinity. [vocab] f32. Pure.
/// Source: arXiv:1909.05858 (repetition); OpenAI's API reference (the others).
void apply_rules(std::span<float> logits, const sampling_params& params, const sampling_history& history);

/// Draws one token from a row of untempered logits. [vocab] f32 -> id. key.position: the place in the sequence of the token drawn.
/// Deterministic: its arguments alone. Any thread. Throws errc::failed when a logit is not finite, and when no token is left.
std::int32_t sample_token(std::span<const float> logits, const sampling_params& params, const draw_key& key,
                          const sampling_history& history = {});

/// Where a draw falls: uniform in [0, 1) with 53 random bits, the place in the cumulative distribution.
double draw_place(const draw_key& key);

/// Whether a draw's logits are changed: bias, penalties, allowed ids, min_tokens.
bool has_rules(const sampling_params& params, std::int64_t n_drawn);
/// The changes of apply_rules, and allowed_ids, for a model that makes them; refers to params' allowed_ids.
logit_edits edits_of(const sampling_params& params, const sampling_history& history, std::int64_t vocab_size);

/// The k most probable ids of a row of finite logits, all if there are fewer; equal ones by id. Any thread.
std::vector<std::int32_t> most_probable_ids(std::span<const float> logits, std::int64_t k);

/// Throws errc::bad_usage naming the first field that is out of range; ids: of a vocabulary of that size.
void check_sampling(const sampling_params& params, std::int64_t vocab_size);

} // namespace troupe
