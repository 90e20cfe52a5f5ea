#include "actors/run_data.hpp"
#include "core/error.hpp"
#include "core/random.hpp"
#include "rollout/stop_matcher.hpp"

namespace troupe {
namespace {

std::map<std::uint64_t, std::size_t> by_source(const std::vector<prompt_row>& rows) {
  std::map<std::uint64_t, std::size_t> out;
  for (std::size_t i = 0; i < rows.size(); ++i)
    out[rows[i].source] = i;
  return out;
}

} // namespace

run_data::run_data(const config& cfg, std::vector<prompt_row> train, std::vector<prompt_row> validation)
    : train_(std::move(train)), validation_(std::move(validation)), train_rows_(by_source(train_)),
      validation_rows_(by_source(validation_)),
      sampler_(train_.size(), std::uint64_t(cfg.data.train_batch_size), cfg.run.seed, cfg.data.shuffle) {}

const prompt_row& run_data::row(const group_key& key) const {
  if (key.validation)
    return validation_.at(key.index);
  if (cached_step_ != key.step) {
    cached_rows_ = sampler_.rows(key.step);
    cached_step_ = key.step;
  }
  return train_.at(cached_rows_.at(key.index));
}

const prompt_row& run_data::row_of_source(bool validation, std::uint64_t source) const {
  const auto& rows = validation ? validation_rows_ : train_rows_;
  const auto it = rows.find(source);
  if (it == rows.end())
    throw error(errc::bad_input, "a rollout sent a group of row " + std::to_string(source) + ", which is not in the run's data");
  return (validation ? validation_ : train_)[it->second];
}

std::int64_t samples_of(const config& cfg, bool validation) { return validation ? cfg.validation.n : cfg.rollout.n; }

generation_request make_request(const config& cfg, const std::vector<std::int32_t>& end_tokens, const group_key& key,
                                const std::vector<std::int32_t>& prompt_ids) {
  generation_request r;
  r.id = std::uint64_t{key.validation} << 63 | std::uint64_t{key.step} << 32 | key.index;
  r.prompt_ids = prompt_ids;
  r.n = samples_of(cfg, key.validation);
  r.key = draw_key{cfg.run.seed, key.validation ? draw::validation : draw::train, key.step, key.index};
  r.params.max_tokens = cfg.data.max_response_length;
  if (!cfg.rollout.ignore_eos)
    r.params.stop_ids = end_tokens;
  r.params.stop_ids.insert(r.params.stop_ids.end(), cfg.rollout.stop_token_ids.begin(), cfg.rollout.stop_token_ids.end());
  r.params.ignore_eos = true; // `end_tokens` is the whole list, generation_config.json's included
  r.params.stop_strings = cfg.rollout.stop;
  r.params.repetition_penalty = cfg.rollout.repetition_penalty;
  for (const auto& [id, bias] : cfg.rollout.logit_bias)
    r.params.logit_bias.emplace_back(std::int32_t(id), float(bias));
  if (key.validation) {
    r.params.temperature = cfg.validation.temperature;
    r.params.top_p = cfg.validation.top_p;
    r.params.top_k = cfg.validation.top_k;
    r.params.min_p = cfg.validation.min_p;
    r.logprob_temperature = cfg.validation.temperature > 0 ? float(cfg.validation.temperature) : 1.0f;
  } else {
    r.params.temperature = cfg.rollout.temperature;
    r.params.top_p = cfg.rollout.top_p;
    r.params.top_k = cfg.rollout.top_k;
    r.params.min_p = cfg.rollout.min_p;
    r.logprob_temperature = float(cfg.rollout.temperature);
  }
  return r;
}

std::string response_text(const config& cfg, const tokenizer& tok, const std::vector<std::int32_t>& output_ids) {
  std::string text = tok.decode(output_ids, true);
  stop_matcher stops(cfg.rollout.stop);
  if (stops.add(text))
    text.resize(stops.position());
  return text;
}

} // namespace troupe
