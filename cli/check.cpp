#include "actors/run.hpp"
#include "cli/command.hpp"
#include "cli/layer_map.hpp"
#include "cli/memory.hpp"
#include "cli/validate.hpp"
#include "model/layout.hpp"
#include "model/parallel/communicator.hpp"
#include "model/parallel/stages.hpp"
#include <algorithm>
#include <cstdio>

namespace troupe {
namespace {

struct check_options {
  std::filesystem::path file;
  std::vector<std::string> overrides;
};

void print_row(const char* name, std::int64_t value, const std::string& meaning) {
  std::printf("  %-28s %12lld  %s\n", name, static_cast<long long>(value), meaning.c_str());
}

struct lengths {
  std::int64_t shortest = 0, longest = 0;
  double mean = 0;
};

template <class Row>
lengths lengths_of(const std::vector<Row>& rows) {
  lengths l{rows.empty() ? 0 : std::int64_t(rows[0].ids.size()), 0, 0};
  for (const auto& row : rows) {
    const auto n = std::int64_t(row.ids.size());
    l.shortest = std::min(l.shortest, n);
    l.longest = std::max(l.longest, n);
    l.mean += double(n) / double(rows.size());
  }
  return l;
}

template <class Row>
void print_rows(const char* name, const std::vector<Row>& rows, const char* what = "prompts") {
  const lengths l = lengths_of(rows);
  std::printf("  %-12s %zu rows, %s of %lld to %lld tokens, mean %.1f\n", name, rows.size(), what, static_cast<long long>(l.shortest),
              static_cast<long long>(l.longest), l.mean);
}

void print_arithmetic(const validated_run& run) {
  const config& c = run.cfg;
  const std::int64_t batch = c.data.train_batch_size, mini = c.learner.ppo_mini_batch_size;
  const std::int64_t samples = batch * c.rollout.n, updates = batch / mini * c.learner.ppo_epochs;
  const std::int64_t tokens = mini * (c.data.max_prompt_length + c.rollout.n * c.data.max_response_length);
  const std::int64_t micro = (tokens + c.learner.ppo_max_token_len - 1) / c.learner.ppo_max_token_len;
  const std::int64_t epoch = std::int64_t(run.train_rows.size()) / batch;
  std::printf("a step\n");
  print_row("prompts", batch, "data.train_batch_size");
  print_row("samples", samples, "prompts x rollout.n = " + std::to_string(c.rollout.n));
  print_row("response tokens, at most", samples * c.data.max_response_length, "samples x data.max_response_length");
  print_row("updates", updates, "prompts / learner.ppo_mini_batch_size x learner.ppo_epochs");
  std::printf("an update\n");
  print_row("prompts", mini, "learner.ppo_mini_batch_size");
  print_row("samples", mini * c.rollout.n, "prompts x rollout.n");
  print_row("tokens, at most", tokens, "prompts x (max_prompt_length + rollout.n x max_response_length): a prompt is packed once");
  print_row("micro-batches, at most about", micro, "tokens / learner.ppo_max_token_len; no influence on the result but rounding");
  std::printf("the run\n");
  print_row("steps an epoch", epoch, "rows / prompts a step, rounded down");
  print_row("steps", run.total_steps, c.run.total_epochs > 0 ? "run.total_epochs x steps an epoch" : "run.total_steps");
  print_row("updates", run.total_steps * updates, "");
  print_row("samples", run.total_steps * samples, "");
  print_row("validation samples", std::int64_t(run.val_rows.size()) * c.validation.n, "each time: rows x validation.n");
}

void print_supervised(const validated_run& run) {
  const config& c = run.cfg;
  const std::int64_t batch = c.data.train_batch_size, mini = c.learner.ppo_mini_batch_size, updates = batch / mini * c.learner.ppo_epochs;
  print_rows("train", run.sft_train, "conversations");
  print_rows("validation", run.sft_val, "conversations");
  std::size_t learnt = 0;
  for (const auto& row : run.sft_train)
    learnt += row.targets.size();
  print_row("tokens learnt an epoch", std::int64_t(learnt), "of the train rows");
  if (run.teacher)
    std::printf("teacher\n  %s: %s, %lld layers; %s\n", c.distill.teacher.c_str(), run.teacher->architecture.c_str(),
                static_cast<long long>(run.teacher->n_layers),
                c.distill.top_k == 0 ? "all its logits" : ("its top " + std::to_string(c.distill.top_k) + " logits").c_str());
  std::printf("a step\n");
  print_row("rows", batch, "data.train_batch_size");
  print_row("updates", updates, "rows / learner.ppo_mini_batch_size x learner.ppo_epochs");
  print_row("tokens, at most", batch * (c.data.max_prompt_length + c.data.max_response_length),
            "rows x (max_prompt_length + max_response_length)");
  std::printf("the run\n");
  print_row("steps an epoch", std::int64_t(run.sft_train.size()) / batch, "rows / rows a step, rounded down");
  print_row("steps", run.total_steps, c.run.total_epochs > 0 ? "run.total_epochs x steps an epoch" : "run.total_steps");
  print_row("updates", run.total_steps * updates, "");
}

void print_memory(const validated_run& run) {
  std::printf("memory, at most about\n");
  for (const auto& rank : estimate_memory(run.cfg, run.model, run.n_trainable, run.teacher)) {
    std::printf("  %-34s %12s\n", rank.rank.c_str(), spelled_bytes(rank.total()).c_str());
    for (const auto& part : rank.parts)
      if (part.bytes > 0)
        std::printf("    %-32s %12s\n", part.name.c_str(), spelled_bytes(part.bytes).c_str());
  }
  std::printf("  %-34s %12s\n", "this machine", spelled_bytes(machine_memory()).c_str());
}

std::uint64_t bytes_a_rank(const block_spec& block, std::int64_t tp, std::uint64_t element) {
  std::uint64_t bytes = 0;
  for (const auto& tensor : block.tensors) {
    std::uint64_t part = element;
    for (const auto size : shard_shape(tensor, 0, tp))
      part *= std::uint64_t(size);
    bytes += part;
  }
  return bytes;
}

// Which learner rank holds which blocks.
void print_layout(const validated_run& run) {
  const config& c = run.cfg;
  const mesh shape{int(c.learner.pipeline_parallel_size), int(c.learner.data_parallel_size), int(c.learner.tensor_parallel_size)};
  std::printf("layout\n  learner %d rank%s (tensor %d x pipeline %d x data %d%s), ", shape.size(), shape.size() == 1 ? "" : "s", shape.tp,
              shape.pp, shape.dp, c.learner.sequence_parallel ? ", sequence parallel" : "");
  if (c.run.task == run_task::rl)
    std::printf("%lld rollout%s of tensor %lld, ", static_cast<long long>(c.rollout.actors), c.rollout.actors == 1 ? "" : "s",
                static_cast<long long>(c.rollout.tensor_parallel_size));
  std::printf("%s\n", c.placement.processes ? "each rank a process" : "all in one process, ranks as threads");
  const auto blocks = layout_of(run.model);
  const auto cuts = stage_cuts(blocks, shape.pp);
  for (int p = 0; p < shape.pp; ++p) {
    std::uint64_t bytes = 0;
    for (std::size_t b = cuts[std::size_t(p)]; b < cuts[std::size_t(p) + 1]; ++b)
      bytes += bytes_a_rank(blocks[b], shape.tp, c.model.dtype == compute_dtype::bfloat16 ? 2 : 4);
    const int first = shape.rank_of(p, 0, 0), last = shape.rank_of(p, shape.dp - 1, shape.tp - 1);
    const std::string who = first == last ? "rank " + std::to_string(first) + ": weights "
                                          : "ranks " + std::to_string(first) + " to " + std::to_string(last) + ": weights ";
    std::printf("  %s%s%s\n", who.c_str(), spelled_bytes(bytes).c_str(), first == last ? "" : " a rank");
    for (const auto& line : layer_map(run.model, blocks, cuts[std::size_t(p)], cuts[std::size_t(p) + 1]))
      std::printf("    %s\n", line.c_str());
  }
}

int check(const check_options& options) {
  const config cfg = load_config(options.file, options.overrides);
  const bool used = check_run_directory(cfg);
  check_placement(cfg);
  const validated_run run = validate_run(cfg);
  std::printf("model\n  %s: %s, %lld layers, %.1f M parameters, %.1f M trained, compute in %s\n", cfg.model.path.c_str(),
              run.model.architecture.c_str(), static_cast<long long>(run.model.n_layers), double(run.n_parameters) / 1e6,
              double(run.n_trainable) / 1e6, cfg.model.dtype == compute_dtype::bfloat16 ? "bfloat16" : "float32");
  std::printf("data\n");
  if (cfg.run.task == run_task::rl) {
    print_rows("train", run.train_rows);
    print_rows("validation", run.val_rows);
    print_arithmetic(run);
  } else {
    print_supervised(run);
  }
  print_memory(run);
  print_layout(run);
  std::printf("run\n  %s%s\n", cfg.run_dir().c_str(), used ? " (has been started; train goes on with it)" : "");
  for (const auto& warning : run.warnings)
    std::printf("warning: %s\n", warning.c_str());
  std::printf("ok\n");
  return 0;
}

} // namespace

void add_check(CLI::App& root, action& chosen) {
  auto options = std::make_shared<check_options>();
  auto* app = root.add_subcommand("check", "validate a configuration and print what it means, without computing");
  app->add_option("config", options->file, "the configuration, a TOML file")->required();
  app->add_option("--set", options->overrides, "key=value: overrides a key, the value in TOML; a bare word is a string")
      ->allow_extra_args(false);
  app->callback([options, &chosen] { chosen = [options] { return check(*options); }; });
}

} // namespace troupe
