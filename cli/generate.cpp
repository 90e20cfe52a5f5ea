#include "cli/command.hpp"
#include "cli/interrupt.hpp"
#include "cli/line_file.hpp"
#include "cli/loading.hpp"
#include "cli/requests.hpp"
#include "cli/requests_sampling.hpp"
#include "core/error.hpp"
#include "model/compute.hpp"
#include "model/config.hpp"
#include "model/kernels/thread_pool.hpp"
#include "model/registry.hpp"
#include "model/tokenizer/chat_template.hpp"
#include "model/tokenizer/tokenizer.hpp"
#include "rollout/generate_all.hpp"
#include <algorithm>
#include <chrono>
#include <cstdio>

namespace troupe {
namespace {

struct generate_options {
  common_options common;
  std::filesystem::path model, input, output;
  std::int64_t max_num_seqs = 256;
  std::string speculative = "off";
  speculative_options drafts{.num_speculative_tokens = 8};
  request_options requests; // that say nothing else
  std::vector<std::string> logit_bias;
};

struct totals {
  std::int64_t requests = 0, samples = 0, prompt_tokens = 0, output_tokens = 0;
  double seconds = 0;
  generator_counts counts;
};

void check_options(generate_options& o, const model_config& cfg) {
  for (const auto& text : o.logit_bias)
    o.requests.params.logit_bias.push_back(parse_logit_bias(text));
  check_sampling(o.requests.params, cfg.vocab_size);
  for (const auto id : o.requests.params.stop_ids)
    if (id < 0 || id >= cfg.vocab_size)
      throw error{errc::bad_usage, "--stop-token-ids " + std::to_string(id) + ": ids are 0 to " + std::to_string(cfg.vocab_size - 1)};
}

std::vector<generation_request> make_requests(const generate_options& o, const std::vector<generate_line>& lines) {
  std::vector<generation_request> requests;
  for (const auto& line : lines) {
    generation_request r;
    r.prompt_ids = line.ids;
    r.n = line.options.n;
    r.params = line.options.params;
    if (line.seed)
      r.key = {.seed = *line.seed, .domain = draw::generate_seeded};
    else
      r.key = {.seed = o.common.seed, .domain = draw::generate, .index = std::uint32_t(requests.size())};
    requests.push_back(std::move(r));
  }
  return requests;
}

generator_options options_for(const generate_options& o, const std::vector<generate_line>& lines, const model_config& cfg,
                              const compute& where) {
  generator_options out;
  std::int64_t samples = 0;
  for (const auto& line : lines) {
    samples += line.options.n;
    const auto longest = std::int64_t(line.ids.size()) + std::min(line.options.params.max_tokens, cfg.max_position_embeddings);
    out.max_sequence = std::max(out.max_sequence, longest);
  }
  out.max_num_seqs = std::min(o.max_num_seqs, samples);
  if (o.speculative != "off")
    out.speculative = o.drafts;
  // No sample ends sooner for it, and the cache need not be larger.
  out.max_sequence = std::min(out.max_sequence, cfg.max_position_embeddings);
  out.eos_token_ids = load_eos_token_ids(o.model, cfg);
  out.parallel_for = [&where](std::int64_t n, const std::function<void(std::int64_t)>& f) { where.pool().each(n, f); };
  return out;
}

// ", \"top_logprobs\": [[[id, logprob], ...], ...]": a list a token; nothing where none was asked for.
std::string alternatives(const generation_output& o) {
  if (o.top.empty())
    return {};
  const std::size_t k = o.top.size() / o.result.output_ids.size();
  std::string out = ", \"top_logprobs\": [";
  for (std::size_t i = 0; i < o.top.size(); ++i) {
    out += i % k == 0 ? (i == 0 ? "[" : "], [") : ", ";
    const auto logprob = json_list(std::vector<float>{o.top[i].logprob});
    out += "[" + std::to_string(o.top[i].id) + ", " + logprob.substr(1);
  }
  return out + "]]";
}

std::string output_line(const generation_output& o, const std::vector<std::int32_t>& input_ids, const tokenizer& tok) {
  const auto text = tok.decode(o.result.output_ids, true).substr(0, o.text_stop);
  return "{\"index\": " + std::to_string(o.id) + ", \"sample\": " + std::to_string(o.sample_index) +
         ", \"input_ids\": " + json_list(input_ids) + ", \"output_ids\": " + json_list(o.result.output_ids) +
         ", \"logprobs\": " + json_list(o.result.logprobs) + alternatives(o) + ", \"text\": " + json_text(text) +
         ", \"finish_reason\": \"" + std::string(name_of(o.result.finish)) +
         "\", \"weights_version\": " + std::to_string(o.result.versions.empty() ? 0 : o.result.versions.back().step) + "}\n";
}

void print_summary(const totals& t, bool speculative) {
  const auto number = [](std::int64_t n) { return std::to_string(n); };
  std::string drafts;
  if (speculative)
    drafts = ", \"drafted_tokens\": " + number(t.counts.drafted) + ", \"accepted_tokens\": " + number(t.counts.accepted) +
             ", \"passes\": " + number(t.counts.passes);
  std::fprintf(stderr,
               "{\"requests\": %lld, \"prompt_tokens\": %lld, \"output_tokens\": %lld, \"seconds\": %.6g, \"tokens_per_second\": %.6g%s}\n",
               static_cast<long long>(t.requests), static_cast<long long>(t.prompt_tokens), static_cast<long long>(t.output_tokens),
               t.seconds, t.seconds > 0 ? double(t.output_tokens) / t.seconds : 0.0, drafts.c_str());
}

int generate(generate_options& o) {
  check_output(o.output);
  const auto cfg = load_model_config(o.model);
  check_options(o, cfg);
  if (cfg.head != head_kind::lm)
    throw error{errc::bad_input, "generate: " + cfg.architecture + " of " + o.model.string() + " gives no logits; a CausalLM is wanted"};
  const auto where = make_compute(o.common);
  const auto tok = tokenizer::load(o.model);
  const auto chat = chat_template::load(o.model);
  const auto lines =
      read_generate_lines(o.input, make_prompt_encoder(*tok, chat.get()), {cfg.vocab_size, cfg.max_position_embeddings}, o.requests);
  model_options options;
  options.compute_type = compute_type(o.common, o.model);
  const auto model = load_model(o.model, options, *where, loading_line().progress());
  generator g(model, tok, options_for(o, lines, cfg, *where));
  line_file out(o.output);
  totals t;
  t.requests = std::int64_t(lines.size());
  for (const auto& line : lines) {
    t.prompt_tokens += std::int64_t(line.ids.size());
    t.samples += line.options.n;
  }
  const auto begin = std::chrono::steady_clock::now();
  const interrupt signals;
  std::int64_t written = 0;
  const auto write = [&](generation_output&& sample) {
    t.output_tokens += std::int64_t(sample.result.output_ids.size());
    out.write(output_line(sample, lines[sample.id].ids, *tok));
    ++written;
  };
  const bool all = generate_all(g, make_requests(o, lines), write, [] { return interrupt::received() != 0; });
  if (!all)
    throw error{errc::cancelled, "stopped by signal " + std::to_string(interrupt::received()) + ": " + o.output.string() +
                                     " holds the first " + std::to_string(written) + " of " + std::to_string(t.samples) +
                                     " samples, whole lines"};
  t.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  t.counts = g.counts();
  out.close();
  print_summary(t, o.speculative != "off");
  return 0;
}

void add_sampling_options(CLI::App& app, generate_options& o) {
  auto& p = o.requests.params;
  app.add_option("--n", o.requests.n, "samples a request")->capture_default_str()->check(CLI::Range(std::int64_t(1), most_samples));
  app.add_option("--max-tokens", p.max_tokens, "most tokens a sample")->capture_default_str();
  app.add_option("--min-tokens", p.min_tokens, "tokens before one may end the sample")->capture_default_str();
  app.add_option("--temperature", p.temperature, "0: greedy")->capture_default_str();
  app.add_option("--top-p", p.top_p, "1: off")->capture_default_str();
  app.add_option("--top-k", p.top_k, "0 or -1: off")->capture_default_str();
  app.add_option("--min-p", p.min_p, "0: off; relative to the most probable")->capture_default_str();
  app.add_option("--repetition-penalty", p.repetition_penalty, "1: off; of tokens in prompt or output")->capture_default_str();
  app.add_option("--presence-penalty", p.presence_penalty, "0: off; of tokens in the output")->capture_default_str();
  app.add_option("--frequency-penalty", p.frequency_penalty, "0: off; the same, times how often")->capture_default_str();
  app.add_option("--logit-bias", o.logit_bias, "ID:BIAS, added to a token's logit; repeats")->expected(1)->take_all();
  app.add_option("--allowed-token-ids", p.allowed_ids, "no other token is drawn; repeats")->expected(1)->take_all();
  app.add_option("--top-logprobs", p.top_logprobs, "so many alternatives a token are written")->capture_default_str();
  app.add_option("--stop", p.stop_strings, "ends a sample at this text; repeats")->expected(1)->take_all();
  app.add_option("--stop-token-ids", p.stop_ids, "ends a sample at this token; repeats")->expected(1)->take_all();
  app.add_flag("--ignore-eos", p.ignore_eos, "the model's end tokens do not end a sample");
}

} // namespace

void add_generate(CLI::App& root, action& chosen) {
  auto o = std::make_shared<generate_options>();
  CLI::App* app = root.add_subcommand("generate", "samples completions of prompts");
  app->add_option("--model", o->model, "model directory")->required();
  app->add_option(
         "--input", o->input,
         "JSONL, one of: {\"prompt\": \"...\"}, {\"messages\": [...]}, {\"input_ids\": [...]}; optional \"seed\" and sampling options")
      ->required();
  app->add_option("--output", o->output, "JSONL, one line a sample, by index then sample")->required();
  add_sampling_options(*app, *o);
  app->add_option("--max-num-seqs", o->max_num_seqs, "sequences that run at once")
      ->capture_default_str()
      ->check(CLI::Range(std::int64_t(1), std::int64_t(1) << 20));
  app->add_option("--speculative", o->speculative, "suffix: drafts tokens from what was generated before; changes no result")
      ->capture_default_str()
      ->check(CLI::IsMember({"off", "suffix"}));
  app->add_option("--num-speculative-tokens", o->drafts.num_speculative_tokens, "most of a sample and pass")
      ->capture_default_str()
      ->check(CLI::Range(1, 256));
  app->add_option("--speculative-disable-by-batch-size", o->drafts.disable_by_batch_size, "no drafts while more sequences run")
      ->capture_default_str()
      ->check(CLI::Range(1, 65536));
  add_common_options(*app, o->common);
  app->callback([o, &chosen] { chosen = [o] { return generate(*o); }; });
}

} // namespace troupe
