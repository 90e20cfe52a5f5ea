#include "actors/parts.hpp"
#include "actors/run_data.hpp"
#include "actors/summary.hpp"
#include "cli/command.hpp"
#include "cli/loading.hpp"
#include "cli/validate.hpp"
#include "core/error.hpp"
#include "experience/reward.hpp"
#include "learner/supervised.hpp"
#include "model/registry.hpp"
#include <nlohmann/json.hpp>

namespace troupe {
namespace {

struct eval_options {
  std::string file, device, isa_name;
  std::vector<std::string> overrides;
  int threads = 0;
};

/// The validation of a run before its first step: the same draws, the same numbers.
metric_map evaluate(const validated_run& run, compute& where) {
  const config& cfg = run.cfg;
  const auto model = load_model(cfg.model.path, {compute_type(cfg), false, {}}, where, loading_line().progress());
  generator making(model, run.tok, make_generator_options(cfg, run.model, run.end_tokens, where));
  const auto reward = make_reward(cfg.reward);
  std::vector<std::vector<double>> rewards(run.val_rows.size(), std::vector<double>(std::size_t(cfg.validation.n)));
  std::map<std::uint64_t, std::size_t> place;
  for (std::size_t i = 0; i < run.val_rows.size(); ++i) {
    auto request = make_request(cfg, run.end_tokens, group_key{0, std::uint32_t(i), true}, run.val_rows[i].ids);
    place[request.id] = i;
    making.add(std::move(request));
  }
  while (!making.idle()) {
    for (const auto& out : making.step()) {
      const std::size_t i = place.at(out.id);
      const std::string text = response_text(cfg, *run.tok, out.result.output_ids);
      rewards[i][std::size_t(out.sample_index)] = (*reward)({text, run.val_rows[i].answer, out.result.finish});
    }
  }
  return validation_metrics(rewards, std::size_t(cfg.validation.n));
}

metric_map evaluate_supervised(const validated_run& run, compute& where) {
  supervised_learner learner(run.cfg, load_policy(run.cfg, false, where, loading_line().progress()),
                             load_teacher(run.cfg, where, loading_line().progress()), 1, where);
  std::vector<const sft_row*> rows;
  for (const auto& row : run.sft_val)
    rows.push_back(&row);
  return {{"val/loss", learner.loss(rows)}};
}

int eval(const eval_options& options) {
  const config cfg = load_config(options.file, options.overrides);
  if (cfg.data.val_files.empty())
    throw error(errc::bad_config, "data.val_files is empty: there is nothing to evaluate on");
  const validated_run run = validate_run(cfg, run_purpose::eval);
  common_options machine;
  machine.device = options.device;
  machine.threads = options.threads;
  machine.isa_name = options.isa_name;
  const auto where = make_compute(machine);
  std::printf("%s\n",
              nlohmann::json(cfg.run.task == run_task::rl ? evaluate(run, *where) : evaluate_supervised(run, *where)).dump().c_str());
  return 0;
}

} // namespace

void add_eval(CLI::App& root, action& chosen) {
  auto options = std::make_shared<eval_options>();
  auto* app = root.add_subcommand("eval", "validate model.path on data.val_files; one JSON object on stdout");
  app->add_option("config", options->file, "the configuration, a TOML file")->required();
  app->add_option("--set", options->overrides, "key=value: overrides a key, the value in TOML; a bare word is a string")
      ->allow_extra_args(false);
  app->add_option("--device", options->device, device_help);
  app->add_option("--threads", options->threads, "threads of the CPU kernels; 0: one a core")->check(CLI::Range(0, 4096));
  app->add_option("--isa", options->isa_name, "scalar | avx2 | avx512 | amx; default: the best there is; the bits are the same");
  app->callback([options, &chosen] { chosen = [options] { return eval(*options); }; });
}

} // namespace troupe
