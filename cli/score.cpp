#include "cli/command.hpp"
#include "cli/interrupt.hpp"
#include "cli/line_file.hpp"
#include "cli/loading.hpp"
#include "cli/requests.hpp"
#include "core/error.hpp"
#include "model/batch.hpp"
#include "model/compute.hpp"
#include "model/config.hpp"
#include "model/registry.hpp"

namespace troupe {
namespace {

constexpr std::int64_t batch_tokens = 8192; // rows of one pass, a longer sequence aside; no result depends on it

struct score_options {
  common_options common;
  std::filesystem::path model, input, output;
  bool value = false;
};

// Scores lines begin .. -> the line after the last one scored; one pass. values: a value head's, else log-probabilities.
std::size_t score_some(causal_lm& model, const std::vector<score_line>& lines, std::size_t begin, bool values, line_file& out) {
  batch_builder builder;
  std::size_t end = begin;
  while (end < lines.size() && (end == begin || builder.n_tokens() + std::int64_t(lines[end].ids.size()) <= batch_tokens)) {
    builder.add_sequence(lines[end].ids, lines[end].from);
    ++end;
  }
  std::vector<float> results;
  if (builder.n_tokens() > 0)
    results = values ? model.outputs(builder.take(), nullptr) : model.score(builder.take(), 1.0f, false, nullptr).logprobs;
  const std::string key = values ? ", \"values\": " : ", \"logprobs\": ";
  auto next = results.begin();
  for (std::size_t i = begin; i < end; ++i) {
    const auto count = std::ptrdiff_t(lines[i].ids.size()) - lines[i].from;
    out.write("{\"index\": " + std::to_string(i) + key + json_list(std::vector<float>(next, next + count)) + "}\n");
    next += count;
  }
  return end;
}

int score(const score_options& o) {
  check_output(o.output);
  const auto cfg = load_model_config(o.model);
  if (o.value && cfg.head != head_kind::value)
    throw error{errc::bad_input, "--value: " + cfg.architecture + " of " + o.model.string() + " has no value head; leave it out"};
  if (!o.value && cfg.head != head_kind::lm)
    throw error{errc::bad_input, "score: " + cfg.architecture + " of " + o.model.string() + " gives no log-probabilities" +
                                     (cfg.head == head_kind::value ? "; --value writes its values" : "")};
  const auto where = make_compute(o.common);
  const auto lines = read_score_lines(o.input, {cfg.vocab_size, cfg.max_position_embeddings});
  model_options options;
  options.compute_type = compute_type(o.common, o.model);
  const auto model = load_model(o.model, options, *where, loading_line().progress());
  line_file out(o.output);
  const interrupt signals;
  for (std::size_t next = 0; next < lines.size();) {
    if (interrupt::received() != 0)
      throw error{errc::cancelled, "stopped by signal " + std::to_string(interrupt::received()) + ": " + o.output.string() +
                                       " holds the first " + std::to_string(next) + " of " + std::to_string(lines.size()) + " lines"};
    next = score_some(*model, lines, next, o.value, out);
  }
  out.close();
  return 0;
}

} // namespace

void add_score(CLI::App& root, action& chosen) {
  auto o = std::make_shared<score_options>();
  CLI::App* app = root.add_subcommand("score", "log-probabilities of given tokens, through the learner's forward pass");
  app->add_option("--model", o->model, "model directory")->required();
  app->add_option("--input", o->input, "JSONL: {\"input_ids\": [...], \"from\": 12}; from: the first position scored, default 1")
      ->required();
  app->add_option("--output", o->output, "JSONL: {\"index\": 0, \"logprobs\": [...]}, with --value \"values\"")->required();
  app->add_flag("--value", o->value, "of a value model: its values for the same tokens, each at the position before");
  add_common_options(*app, o->common);
  app->callback([o, &chosen] { chosen = [o] { return score(*o); }; });
}

} // namespace troupe
