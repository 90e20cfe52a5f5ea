#pragma once
#include <array>
#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

namespace troupe {

// One struct a table of the file (interface: docs/configuration.md). A field's default is the file's default.
// Ranges and choices stand beside the reader's entry for the field, in config.cpp.

enum class numerics_mode : std::uint8_t { exact, fast };
enum class run_mode : std::uint8_t { sync, one_step_off, async };
enum class run_task : std::uint8_t { rl, sft, reward, dpo, distill };
enum class compute_dtype : std::uint8_t { float32, bfloat16 };

struct run_section {
  std::string name; // default: the file's name without its ending
  run_task task = run_task::rl;
  std::uint64_t seed = 1;
  run_mode mode = run_mode::sync;
  std::int64_t max_staleness = 1; // versions; async only
  numerics_mode numerics = numerics_mode::exact;
  std::int64_t total_steps = 25; // 0: total_epochs counts
  std::int64_t total_epochs = 0; // 0: not given
  std::int64_t save_freq = 25;   // steps; 0: only the last
  std::int64_t test_freq = 5;    // steps; 0: never
  bool val_before_train = true;
  std::string resume = "auto"; // auto | never | DIR
  std::string dir;             // default: runs/<name>, filled in by the reader
};

struct model_section {
  std::string path;
  compute_dtype dtype = compute_dtype::bfloat16; // of the compute; masters are float32
  std::vector<std::string> trainable = {"*"};    // globs over tensor names
};

struct data_section {
  std::vector<std::string> train_files, val_files;
  std::string prompt_key = "prompt";
  std::string chat_template = "auto"; // auto | always | never
  std::string answer_key = "answer";
  std::string messages_key = "messages";
  std::string response_key = "response";
  std::int64_t max_prompt_length = 0; // tokens; required
  std::int64_t max_response_length = 0;
  std::int64_t train_batch_size = 0; // prompts a step; required
  bool shuffle = true;               // by (seed, epoch)
  bool filter_overlong_prompts = false;
  std::string truncation = "error"; // error | left | right
};

struct speculative_section {
  std::string method = "off"; // off | suffix
  std::int64_t num_speculative_tokens = 8;
  std::int64_t disable_by_batch_size = 16; // sequences
};

struct rollout_section {
  std::int64_t actors = 1;
  std::int64_t n = 8; // samples a prompt
  double temperature = 1.0;
  double top_p = 1.0;
  std::int64_t top_k = -1; // -1 or 0: off
  double min_p = 0.0;
  double repetition_penalty = 1.0;           // 1: off
  std::map<std::int64_t, double> logit_bias; // by token id: added to its logit
  std::vector<std::string> stop;             // texts that end a sample
  std::vector<std::int64_t> stop_token_ids;  // end tokens besides the model's
  bool ignore_eos = false;
  std::int64_t max_num_seqs = 256;
  std::string inflight_cache = "recompute"; // recompute | keep
  std::string serve;                        // HOST:PORT; "": nobody else is answered
  std::int64_t tensor_parallel_size = 1;
  speculative_section speculative;
};

struct validation_section {
  std::int64_t n = 1;
  double temperature = 0.0; // 0: greedy
  double top_p = 1.0;
  std::int64_t top_k = -1; // -1 or 0: off
  double min_p = 0.0;
};

struct reward_section {
  std::string function; // last_number | exact_match
  double timeout_s = 30;
  std::string on_error = "fail"; // fail | drop (the group)
};

struct kl_ctrl_section {
  std::string type = "fixed";
  double kl_coef = 0.001, target_kl = 0.1;
  std::int64_t horizon = 10000;
};

struct algorithm_section {
  std::string adv_estimator = "grpo";
  bool norm_adv_by_std_in_grpo = true; // false: Dr. GRPO
  double gamma = 1.0, lam = 1.0;
  bool use_kl_in_reward = false;
  kl_ctrl_section kl_ctrl;
};

struct optim_section {
  std::string name = "adamw";
  double lr = 1e-5;
  double weight_decay = 0.0;
  std::array<double, 2> betas = {0.9, 0.999};
  std::int64_t lr_warmup_steps = 0;           // lr * min(1, t / warmup), t = 1 at the first update
  std::string lr_scheduler_type = "constant"; // constant | linear | cosine
  double min_lr_ratio = 0.0;
};

struct learner_section {
  std::string policy_loss = "vanilla";
  std::int64_t ppo_mini_batch_size = 0; // prompts an update; default: data.train_batch_size, filled in by the reader
  std::int64_t ppo_max_token_len = 16384;
  std::int64_t ppo_epochs = 1;
  double clip_ratio_low = 0.2, clip_ratio_high = 0.2, clip_ratio_c = 3.0;
  std::string loss_agg_mode = "token-mean";
  double entropy_coeff = 0.0;
  bool use_kl_loss = false;
  double kl_loss_coef = 0.001;
  std::string kl_loss_type = "low_var_kl";
  double grad_clip = 1.0; // 0: off
  std::int64_t tensor_parallel_size = 1;
  bool sequence_parallel = false;
  std::int64_t pipeline_parallel_size = 1, data_parallel_size = 1;
  double loss_scale_factor = 0; // 0: data.max_response_length
  optim_section optim;
};

struct critic_section {
  std::string path;
  double lr = 1e-5, cliprange_value = 0.5;
  std::int64_t ppo_epochs = 1, warmup = 0;
};
struct reference_section {
  std::string path;
}; // default: model.path as it was at step 0
struct distill_section {
  std::string teacher;
  std::int64_t top_k = 64;
};
struct weightsync_section {
  std::string channel = "auto";
}; // auto | shared | zmq | nccl

struct placement_section {
  bool processes = false;            // true: one process a rank
  std::string local_workers = "all"; // "all" or a number, kept as text
  std::string listen = "127.0.0.1:0";
};

struct config {
  run_section run;
  model_section model;
  data_section data;
  rollout_section rollout;
  validation_section validation;
  reward_section reward;
  algorithm_section algorithm;
  learner_section learner;
  critic_section critic;
  reference_section reference;
  distill_section distill;
  weightsync_section weightsync;
  placement_section placement;

  std::filesystem::path run_dir() const {
    return run.dir.empty() ? std::filesystem::path("runs") / run.name : std::filesystem::path(run.dir);
  }
};

/// Reads and validates a file with `key=value` overrides (TOML values; a bare word is a string).
/// Throws errc::bad_config: file, line, column, key, what is allowed, and the nearest known key.
config load_config(const std::filesystem::path& file, const std::vector<std::string>& overrides = {});

/// The same from text; `name` stands in messages. For a configuration that came over the wire.
config parse_config(std::string_view text, const std::string& name, const std::vector<std::string>& overrides = {});

/// The resolved configuration as TOML, every key written out; parse_config gives the same struct back.
std::string to_toml(const config& cfg);

/// Dotted keys whose values differ, in the file's order.
std::vector<std::string> differing_keys(const config& a, const config& b);

} // namespace troupe
