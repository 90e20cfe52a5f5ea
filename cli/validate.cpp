#include "cli/validate.hpp"
#include "cli/memory.hpp"
#include "core/error.hpp"
#include "core/files.hpp"
#include "experience/reward.hpp"
#include "model/layout.hpp"
#include "model/parallel/stages.hpp"
#include "model/registry.hpp"
#include "model/weights/tensor_check.hpp"
#include <algorithm>
#include <array>
#include <charconv>
#include <system_error>

namespace fs = std::filesystem;

namespace troupe {
namespace {

model_config check_model_directory(const fs::path& dir, const std::string& key) {
  if (!fs::is_directory(dir))
    throw error(errc::bad_config, key + " = \"" + dir.string() + "\" is not a directory; it must hold a Hugging Face model");
  model_config model = load_model_config(dir);
  const auto known = architectures();
  if (std::find(known.begin(), known.end(), model.architecture) == known.end()) {
    std::string list;
    for (const auto& name : known)
      list += (list.empty() ? "" : ", ") + name;
    throw error(errc::unsupported,
                (dir / "config.json").string() + ": architecture " + model.architecture + " is not in this version, which has " + list);
  }
  if (model.head != head_kind::lm)
    throw error(errc::bad_config, key + ": " + model.architecture + " of " + dir.string() + " gives no logits; a CausalLM is wanted");
  check_tensors(safetensors_reader(dir), model);
  return model;
}

void count_parameters(validated_run& run) {
  std::vector<bool> used(run.cfg.model.trainable.size());
  for (const auto& tensor : tensors_of(run.model)) {
    bool trained = false;
    for (std::size_t i = 0; i < used.size(); ++i)
      if (glob_match(run.cfg.model.trainable[i], tensor.name))
        used[i] = trained = true;
    run.n_parameters += tensor.numel();
    run.n_trainable += trained ? tensor.numel() : 0;
  }
  for (std::size_t i = 0; i < used.size(); ++i)
    if (!used[i])
      throw error(errc::bad_config, "model.trainable: \"" + run.cfg.model.trainable[i] + "\" matches no tensor of " + run.cfg.model.path +
                                        "; names are like model.layers.0.self_attn.q_proj.weight");
}

void check_lengths(const validated_run& run) {
  const std::int64_t longest = run.cfg.data.max_prompt_length + run.cfg.data.max_response_length;
  if (longest > run.model.max_position_embeddings)
    throw error(errc::bad_config,
                "data.max_prompt_length + data.max_response_length = " + std::to_string(longest) +
                    " is more than the model's max_position_embeddings = " + std::to_string(run.model.max_position_embeddings));
}

// Whether the ranks can share the model. `section`: whose keys the message names.
void check_sharding(const model_config& model, const std::string& section, std::int64_t tp, std::int64_t pp) {
  try {
    for (const auto& tensor : tensors_of(model))
      shard_of(tensor, 0, tp);
    stage_cuts(layout_of(model), int(pp));
  } catch (const error& e) {
    throw error(e.code(), section + "." + e.what());
  }
}

void check_layout(validated_run& run) {
  const learner_section& l = run.cfg.learner;
  const std::int64_t rollout_tp = run.cfg.rollout.tensor_parallel_size;
  check_sharding(run.model, "learner", l.tensor_parallel_size, l.pipeline_parallel_size);
  if (run.cfg.run.task == run_task::rl)
    check_sharding(run.model, "rollout", rollout_tp, 1);
  if (l.sequence_parallel && l.tensor_parallel_size == 1)
    throw error(errc::bad_config,
                "learner.sequence_parallel = true splits rows over tensor-parallel ranks, and learner.tensor_parallel_size is 1");
  if (run.cfg.run.task == run_task::rl && rollout_tp != l.tensor_parallel_size)
    run.warnings.push_back("rollout.tensor_parallel_size = " + std::to_string(rollout_tp) + " and learner.tensor_parallel_size = " +
                           std::to_string(l.tensor_parallel_size) + " add in different orders: exactness is then not promised");
}

template <class Row>
void check_ids(const std::vector<Row>& rows, const validated_run& run, const char* key) {
  for (const auto& row : rows)
    for (const auto id : row.ids)
      if (id < 0 || id >= run.model.vocab_size)
        throw error(errc::bad_input, std::string(key) + ": row " + std::to_string(row.source) + " holds token " + std::to_string(id) +
                                         ", and the model's vocabulary has " + std::to_string(run.model.vocab_size) +
                                         "; tokenizer.json and config.json do not belong together");
}

void check_sampled_ids(const validated_run& run) {
  const auto check = [&](const char* key, std::int64_t id) {
    if (id >= run.model.vocab_size)
      throw error(errc::bad_config, std::string(key) + " holds " + std::to_string(id) + ", and the model's vocabulary has " +
                                        std::to_string(run.model.vocab_size) + " tokens; give ids below that");
  };
  for (const auto id : run.cfg.rollout.stop_token_ids)
    check("rollout.stop_token_ids", id);
  for (const auto& [id, bias] : run.cfg.rollout.logit_bias)
    check("rollout.logit_bias", id);
}

void load_rows(validated_run& run, run_purpose purpose) {
  const data_section& data = run.cfg.data;
  const bool train = purpose == run_purpose::train, validates = !data.val_files.empty();
  if (!train && !validates)
    throw error(errc::bad_config, "data.val_files is empty; eval needs the rows to validate on");
  if (run.cfg.run.task == run_task::rl) {
    const auto reward = make_reward(run.cfg.reward);
    const auto load = [&](const auto& files) { return load_prompts(files, data, *run.tok, run.chat.get(), reward.get()); };
    run.train_rows = train ? load(data.train_files) : std::vector<prompt_row>{};
    run.val_rows = validates ? load(data.val_files) : std::vector<prompt_row>{};
  } else {
    const sft_encoder encoder = make_sft_encoder(*run.tok, run.chat.get(), run.end_tokens);
    run.sft_train = train ? load_sft_rows(data.train_files, data, encoder) : std::vector<sft_row>{};
    run.sft_val = validates ? load_sft_rows(data.val_files, data, encoder) : std::vector<sft_row>{};
  }
  check_ids(run.train_rows, run, "data.train_files");
  check_ids(run.val_rows, run, "data.val_files");
  check_ids(run.sft_train, run, "data.train_files");
  check_ids(run.sft_val, run, "data.val_files");
}

void resolve_steps(validated_run& run) {
  const batch_sampler sampler(run.n_train(), std::uint64_t(run.cfg.data.train_batch_size), run.cfg.run.seed, run.cfg.data.shuffle);
  run.total_steps =
      run.cfg.run.total_epochs > 0 ? run.cfg.run.total_epochs * std::int64_t(sampler.steps_per_epoch()) : run.cfg.run.total_steps;
  constexpr std::int64_t limit = 1 << 28;
  if (run.total_steps >= limit)
    throw error(errc::bad_config,
                "run.total_epochs makes " + std::to_string(run.total_steps) + " steps; the limit is " + std::to_string(limit - 1));
}

void check_reference(const validated_run& run) {
  if (!run.cfg.learner.use_kl_loss || run.cfg.reference.path.empty())
    return;
  const model_config reference = check_model_directory(run.cfg.reference.path, "reference.path");
  if (reference.vocab_size != run.model.vocab_size)
    throw error(errc::bad_input, "reference.path: its vocabulary has " + std::to_string(reference.vocab_size) +
                                     " tokens, the model's has " + std::to_string(run.model.vocab_size) + "; they must be one");
}

void check_teacher(validated_run& run) {
  if (run.cfg.run.task != run_task::distill)
    return;
  std::string& path = run.cfg.distill.teacher;
  std::string key = "distill.teacher";
  if (path.empty() && run.model.split && !run.model.split->path_70.empty()) {
    path = run.model.split->path_70;
    key += " (by default the split model's path70b)";
  }
  if (path.empty())
    throw error(errc::bad_config, "distill.teacher is required for run.task = \"distill\": " + run.cfg.model.path +
                                      (run.model.split ? " names no path70b" : " is no split model, whose second model would be it"));
  run.teacher = check_model_directory(path, key);
  if (run.teacher->vocab_size != run.model.vocab_size)
    throw error(errc::bad_config, key + ": its vocabulary has " + std::to_string(run.teacher->vocab_size) + " tokens, the model's has " +
                                      std::to_string(run.model.vocab_size) + "; they must be one");
  const std::int64_t longest = run.cfg.data.max_prompt_length + run.cfg.data.max_response_length;
  if (longest > run.teacher->max_position_embeddings)
    throw error(errc::bad_config,
                key + ": data.max_prompt_length + data.max_response_length = " + std::to_string(longest) +
                    " is more than its max_position_embeddings = " + std::to_string(run.teacher->max_position_embeddings));
}

void add_warnings(validated_run& run) {
  const rollout_section& r = run.cfg.rollout;
  const bool rl = run.cfg.run.task == run_task::rl;
  if (rl && (r.top_p < 1 || r.top_k > 0 || r.min_p > 0))
    run.warnings.push_back("rollout.top_p, top_k or min_p cut the distribution: the policy sampled is then not the one trained");
  if (rl && r.repetition_penalty != 1)
    run.warnings.push_back("rollout.repetition_penalty changes the distribution: the policy sampled is then not the one trained");
  if (rl && !r.logit_bias.empty())
    run.warnings.push_back("rollout.logit_bias changes the distribution: the policy sampled is then not the one trained");
  const bool no_stop = r.stop_token_ids.empty() && r.stop.empty();
  if (rl && r.ignore_eos && no_stop)
    run.warnings.push_back("rollout.ignore_eos: every sample runs to data.max_response_length");
  if (run.end_tokens.empty() && no_stop)
    run.warnings.push_back(rl ? "the model declares no end token: every sample runs to data.max_response_length"
                              : "the model declares no end token: nothing is learnt to end a response that no template ends");
  if (run.cfg.run.test_freq > 0 && run.n_val() == 0)
    run.warnings.push_back("data.val_files is empty: there is no validation");
  if (const auto lacking = memory_shortage(run.cfg, estimate_memory(run.cfg, run.model, run.n_trainable, run.teacher), machine_memory());
      !lacking.empty())
    run.warnings.push_back(lacking);
}

// Keys that a run may be resumed with other values of.
bool may_change(const std::string& key) {
  constexpr std::array<std::string_view, 8> keys = {"run.name",         "run.dir",       "run.resume",    "run.total_steps",
                                                    "run.total_epochs", "run.save_freq", "run.test_freq", "run.val_before_train"};
  return std::find(keys.begin(), keys.end(), key) != keys.end() || key.starts_with("placement.");
}

} // namespace

validated_run validate_run(config cfg, run_purpose purpose) {
  validated_run run;
  run.cfg = std::move(cfg);
  const fs::path dir = run.cfg.model.path;
  run.model = check_model_directory(dir, "model.path");
  run.end_tokens = load_eos_token_ids(dir, run.model);
  count_parameters(run);
  check_lengths(run);
  check_sampled_ids(run);
  check_layout(run);
  check_reference(run);
  check_teacher(run);
  run.tok = tokenizer::load(dir);
  run.template_time = kept_template_time(run.cfg).value_or(std::time(nullptr));
  run.chat = chat_template::load(dir, run.template_time);
  load_rows(run, purpose);
  if (purpose == run_purpose::train)
    resolve_steps(run);
  add_warnings(run);
  return run;
}

static fs::path template_time_file(const config& cfg) { return cfg.run_dir() / "template_time.txt"; }

std::optional<std::time_t> kept_template_time(const config& cfg) {
  const fs::path file = template_time_file(cfg);
  if (!is_there(file))
    return std::nullopt;
  const std::string text = read_file(file);
  std::int64_t seconds = 0;
  const auto end = std::from_chars(text.data(), text.data() + text.size(), seconds);
  if (end.ec != std::errc() || seconds < 0 || std::string_view(end.ptr, std::size_t(text.data() + text.size() - end.ptr)) != "\n")
    throw error(errc::bad_input, file.string() +
                                     ": must be one number, the seconds since 1970 that the run's chat template prints as its date; "
                                     "restore it, or remove it to begin with today's");
  return std::time_t(seconds);
}

void keep_template_time(const config& cfg, std::time_t time) { write_file(template_time_file(cfg), std::to_string(time) + "\n"); }

bool check_run_directory(const config& cfg) {
  const fs::path dir = cfg.run_dir();
  const bool given_checkpoint = cfg.run.resume != "auto" && cfg.run.resume != "never";
  if (given_checkpoint) {
    std::error_code ignored;
    if (!fs::is_directory(cfg.run.resume))
      throw error(errc::bad_config, "run.resume = \"" + cfg.run.resume + "\" is neither auto, never nor a checkpoint's directory");
    if (!fs::equivalent(fs::path(cfg.run.resume) / "..", dir / "checkpoints", ignored))
      throw error(errc::bad_config, "run.resume = \"" + cfg.run.resume + "\" is not in " + (dir / "checkpoints").string() +
                                        "; only a run's own checkpoint can be resumed");
  }
  if (!is_there(dir))
    return false;
  if (!fs::is_directory(dir))
    throw error(errc::bad_config, "run.dir = \"" + dir.string() + "\" is not a directory");
  const fs::path kept = dir / "config.toml";
  if (!is_there(kept)) {
    if (fs::is_empty(dir))
      return false;
    throw error(errc::bad_config,
                "run.dir = \"" + dir.string() + "\" holds files and no config.toml: it is no run's directory; name another");
  }
  if (cfg.run.resume == "never")
    throw error(errc::bad_config, "run.dir = \"" + dir.string() + "\" has been used and run.resume = \"never\"; name another or remove it");
  std::string differing;
  for (const auto& key : differing_keys(load_config(kept), cfg))
    if (!may_change(key))
      differing += (differing.empty() ? "" : ", ") + key;
  if (!differing.empty())
    throw error(errc::bad_config, "the run in " + dir.string() + " was started with other values of " + differing +
                                      "; restore them or name another run.name");
  return true;
}

} // namespace troupe
