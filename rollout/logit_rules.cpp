#include "model/causal_lm.hpp"
#include "rollout/sampler.hpp"
#include <algorithm>
#include <cfloat>
#include <limits>

namespace troupe {

namespace {

float finite(float v) { return std::clamp(v, -FLT_MAX, FLT_MAX); }

} // namespace

bool has_penalty(const sampling_params& p) { return p.repetition_penalty != 1 || p.presence_penalty != 0 || p.frequency_penalty != 0; }

void apply_rules(std::span<float> logits, const sampling_params& p, const sampling_history& history) {
  const auto at = [&](std::int32_t id) -> float& { return logits[std::size_t(id)]; };
  for (const auto& [id, bias] : p.logit_bias)
    at(id) = finite(at(id) + bias);
  const auto repeated = [&](float& v) {
    const auto r = float(p.repetition_penalty);
    v = finite(v > 0 ? v / r : v * r);
  };
  if (p.repetition_penalty != 1)
    for (const auto id : history.prompt_ids)
      repeated(at(id));
  if (history.drawn && has_penalty(p))
    for (const auto& [id, count] : *history.drawn) {
      if (p.repetition_penalty != 1 && !std::binary_search(history.prompt_ids.begin(), history.prompt_ids.end(), id))
        repeated(at(id));
      at(id) = finite(at(id) - float(p.frequency_penalty) * float(count) - float(p.presence_penalty));
    }
  if (history.n_drawn < p.min_tokens)
    for (const auto id : history.end_ids)
      if (id >= 0 && std::size_t(id) < logits.size()) // a configuration's end token may lie outside
        at(id) = -std::numeric_limits<float>::infinity();
}

bool has_rules(const sampling_params& p, std::int64_t n_drawn) {
  return !p.logit_bias.empty() || has_penalty(p) || !p.allowed_ids.empty() || n_drawn < p.min_tokens;
}

logit_edits edits_of(const sampling_params& p, const sampling_history& history, std::int64_t vocab_size) {
  logit_edits e;
  e.allowed = p.allowed_ids;
  e.repetition = float(p.repetition_penalty), e.presence = float(p.presence_penalty);
  for (const auto& [id, bias] : p.logit_bias)
    e.added.push_back({id, bias});
  if (p.repetition_penalty != 1)
    e.repeated.assign(history.prompt_ids.begin(), history.prompt_ids.end());
  if (history.drawn && has_penalty(p))
    for (const auto& [id, count] : *history.drawn) {
      if (p.repetition_penalty != 1 && !std::binary_search(history.prompt_ids.begin(), history.prompt_ids.end(), id))
        e.repeated.push_back(id);
      e.penalised.push_back({id, float(p.frequency_penalty) * float(count)});
    }
  if (history.n_drawn < p.min_tokens)
    for (const auto id : history.end_ids)
      if (id >= 0 && id < vocab_size)
        e.masked.push_back(id);
  return e;
}

} // namespace troupe
