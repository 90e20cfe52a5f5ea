// What a key that is not ours may have meant: a misspelling, another system's name, or a later version's.
#include "core/config_fields.hpp"
#include <algorithm>
#include <numeric>

namespace troupe {
namespace {

/// Levenshtein distance.
std::size_t distance(std::string_view a, std::string_view b) {
  std::vector<std::size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), std::size_t{0});
  for (std::size_t i = 0; i < a.size(); ++i) {
    std::size_t diagonal = row[0]++;
    for (std::size_t j = 0; j < b.size(); ++j) {
      const std::size_t replaced = diagonal + (a[i] != b[j]);
      diagonal = row[j + 1];
      row[j + 1] = std::min({replaced, row[j] + 1, row[j + 1] + 1});
    }
  }
  return row.back();
}

std::string_view last_part(std::string_view key) { return key.substr(key.rfind('.') + 1); }
std::string_view table_of(std::string_view key) { return key.substr(0, key.size() - last_part(key).size()); }

std::size_t common_prefix(std::string_view a, std::string_view b) {
  return std::size_t(std::mismatch(a.begin(), a.begin() + std::ptrdiff_t(std::min(a.size(), b.size())), b.begin()).first - a.begin());
}

// A misspelling is short: longer keys are compared by their beginning, so that no input makes this slow.
constexpr std::size_t longest_compared = 128;

struct foreign_key {
  std::string_view system, key, here;
};

// A key without a dot is met in any table; one with a dot is a whole path.
constexpr foreign_key foreign_keys[] = {
    {"TRL", "num_generations", "rollout.n"},
    {"TRL", "max_completion_length", "data.max_response_length"},
    {"TRL", "beta", "learner.kl_loss_coef, with learner.use_kl_loss = true"},
    {"TRL", "epsilon", "learner.clip_ratio_low"},
    {"TRL", "epsilon_high", "learner.clip_ratio_high"},
    {"TRL", "delta", "learner.clip_ratio_c"},
    {"TRL", "loss_type", "learner.loss_agg_mode (\"dr_grpo\": \"seq-mean-token-sum-norm\" and algorithm.norm_adv_by_std_in_grpo = false)"},
    {"TRL", "scale_rewards", "algorithm.norm_adv_by_std_in_grpo"},
    {"TRL", "num_iterations", "learner.ppo_epochs"},
    {"TRL", "learning_rate", "learner.optim.lr"},
    {"TRL", "lr_scheduler_type", "learner.optim.lr_scheduler_type"},
    {"TRL", "warmup_steps", "learner.optim.lr_warmup_steps"},
    {"TRL", "max_grad_norm", "learner.grad_clip"},
    {"TRL", "max_steps", "run.total_steps"},
    {"TRL", "num_train_epochs", "run.total_epochs"},
    {"TRL", "save_steps", "run.save_freq"},
    {"TRL", "eval_steps", "run.test_freq"},
    {"TRL", "output_dir", "run.dir"},
    {"TRL", "model_name_or_path", "model.path"},
    {"TRL", "per_device_train_batch_size",
     "learner.ppo_mini_batch_size (PROMPTS an update) and learner.ppo_max_token_len (tokens a micro-batch)"},
    {"TRL", "gradient_accumulation_steps", "not needed: micro-batches follow from learner.ppo_max_token_len"},
    {"TRL", "reward_funcs", "reward.function"},
    {"OpenRLHF", "n_samples_per_prompt", "rollout.n"},
    {"OpenRLHF", "eps_clip", "learner.clip_ratio_low and learner.clip_ratio_high"},
    {"OpenRLHF", "eps_clip_low_high", "learner.clip_ratio_low and learner.clip_ratio_high"},
    {"OpenRLHF", "init_kl_coef", "learner.kl_loss_coef, with learner.use_kl_loss = true"},
    {"OpenRLHF", "rollout_batch_size", "data.train_batch_size (both count prompts)"},
    {"OpenRLHF", "train_batch_size", "learner.ppo_mini_batch_size, which counts PROMPTS: OpenRLHF's samples / rollout.n"},
    {"OpenRLHF", "micro_train_batch_size", "learner.ppo_max_token_len, in tokens"},
    {"OpenRLHF", "lambd", "algorithm.lam"},
    {"OpenRLHF", "advantage_estimator", "algorithm.adv_estimator"},
    {"OpenRLHF", "actor_learning_rate", "learner.optim.lr"},
    {"OpenRLHF", "critic_learning_rate", "critic.lr"},
    {"OpenRLHF", "prompt_max_len", "data.max_prompt_length"},
    {"OpenRLHF", "generate_max_len", "data.max_response_length"},
    {"OpenRLHF", "max_epochs", "learner.ppo_epochs"},
    {"OpenRLHF", "pretrain", "model.path"},
    {"OpenRLHF", "prompt_data", "data.train_files"},
    {"OpenRLHF", "input_key", "data.prompt_key"},
    {"OpenRLHF", "label_key", "data.answer_key"},
    {"OpenRLHF", "remote_rm_url", "reward.url"},
    {"verl", "actor_rollout_ref.actor.clip_ratio", "learner.clip_ratio_low and learner.clip_ratio_high"},
    {"verl", "actor_rollout_ref.actor.policy_loss.loss_mode", "learner.policy_loss"},
    {"verl", "actor_rollout_ref.actor.ppo_max_token_len_per_gpu", "learner.ppo_max_token_len"},
    {"verl", "actor_rollout_ref.actor.ppo_micro_batch_size", "learner.ppo_max_token_len, in tokens"},
    {"verl", "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu", "learner.ppo_max_token_len, in tokens"},
    {"verl", "actor_rollout_ref.actor.use_dynamic_bsz", "not needed: micro-batches are always cut by learner.ppo_max_token_len"},
    {"verl", "actor_rollout_ref.actor.ulysses_sequence_parallel_size", "learner.sequence_parallel"},
    {"verl", "actor_rollout_ref.actor.megatron.tensor_model_parallel_size", "learner.tensor_parallel_size"},
    {"verl", "actor_rollout_ref.actor.megatron.pipeline_model_parallel_size", "learner.pipeline_parallel_size"},
    {"verl", "actor_rollout_ref.rollout.tensor_model_parallel_size", "rollout.tensor_parallel_size"},
    {"verl", "actor_rollout_ref.rollout.response_length", "data.max_response_length"},
    {"verl", "actor_rollout_ref.rollout.prompt_length", "data.max_prompt_length"},
    {"verl", "actor_rollout_ref.rollout.dtype", "model.dtype"},
    {"verl", "actor_rollout_ref.ref.model.path", "reference.path"},
    {"verl", "algorithm.kl_penalty", "learner.kl_loss_type"},
    {"verl", "critic.optim.lr", "critic.lr"},
    {"verl", "critic.model.path", "critic.path"},
    {"verl", "custom_reward_function.path", "reward.python"},
    {"verl", "custom_reward_function.name", "reward.python"},
    {"verl", "reward_model.model.path", "reward.model"},
    {"verl", "reward_model.reward_manager", "reward.function"},
    {"verl", "trainer.total_training_steps", "run.total_steps"},
    {"verl", "trainer.experiment_name", "run.name"},
    {"verl", "trainer.project_name", "run.name"},
    {"verl", "trainer.default_local_dir", "run.dir"},
    {"verl", "trainer.resume_mode", "run.resume"},
    {"verl", "trainer.resume_from_path", "run.resume"},
    {"verl", "trainer.critic_warmup", "critic.warmup"},
    {"verl", "trainer.n_gpus_per_node", "learner.{tensor,pipeline,data}_parallel_size and rollout.actors"},
    {"verl", "trainer.nnodes", "placement.local_workers"},
    {"verl", "data.val_batch_size", "not needed: validation takes all rows of data.val_files"},
    {"verl", "data.reward_fn_key", "reward.function"},
};

struct foreign_table {
  std::string_view there, here;
};

// verl's tables whose keys have the same last name here.
constexpr foreign_table verl_tables[] = {
    {"actor_rollout_ref.rollout.val_kwargs.", "validation."},
    {"actor_rollout_ref.actor.optim.", "learner.optim."},
    {"actor_rollout_ref.actor.", "learner."},
    {"actor_rollout_ref.rollout.", "rollout."},
    {"actor_rollout_ref.model.", "model."},
    {"trainer.", "run."},
};

constexpr std::string_view own_rewards = "rewards here are reward.function = \"last_number\" or \"exact_match\"";
constexpr std::string_view no_filter = "groups without spread stay in the batch and contribute nothing";

constexpr later_key later[] = {
    {"reward.endpoint", own_rewards},
    {"reward.python", own_rewards},
    {"reward.url", own_rewards},
    {"reward.model", own_rewards},
    {"reward.overlong_buffer.*", own_rewards},
    {"reward.retries", "a reward that fails is answered as reward.on_error says"},
    {"algorithm.filter_groups.*", no_filter},
    {"algorithm.rollout_is", "off-policy correction belongs to run.mode = \"async\"; this version does \"sync\""},
    {"algorithm.rollout_is_threshold", "off-policy correction belongs to run.mode = \"async\"; this version does \"sync\""},
    {"algorithm.rollout_rs", "off-policy correction belongs to run.mode = \"async\"; this version does \"sync\""},
    {"algorithm.rollout_rs_threshold", "off-policy correction belongs to run.mode = \"async\"; this version does \"sync\""},
    {"learner.mask_truncated_completions", "every sample's tokens are in the loss"},
    {"learner.tau_pos", "it belongs to learner.policy_loss = \"sapo\", which this version lacks"},
    {"learner.tau_neg", "it belongs to learner.policy_loss = \"sapo\", which this version lacks"},
    {"data.date", "a template that asks for the date gets today's"},
    {"data.system_prompt", "put a system message into the rows, or use the template's default"},
    {"data.mixture_weights", "rows are taken from all train_files alike"},
};

} // namespace

std::span<const later_key> later_keys() { return later; }

std::string_view nearest_word(std::string_view word, std::span<const std::string_view> words) {
  word = word.substr(0, longest_compared);
  return *std::min_element(words.begin(), words.end(),
                           [&](std::string_view a, std::string_view b) { return distance(word, a) < distance(word, b); });
}

std::string nearest_key(std::string_view key) {
  key = key.substr(0, longest_compared);
  std::string best;
  std::size_t best_score = 0, best_prefix = 0;
  const auto consider = [&](std::string_view known) {
    // The right name in the wrong table is as near as one wrong letter.
    const std::size_t moved = distance(last_part(key), last_part(known)) + (table_of(key) != table_of(known));
    const std::size_t score = std::min(distance(key, known), moved), prefix = common_prefix(key, known);
    if (best.empty() || score < best_score || (score == best_score && prefix > best_prefix)) {
      best = known;
      best_score = score;
      best_prefix = prefix;
    }
  };
  for (const auto& f : config_fields()) {
    const std::string_view table = std::string_view(f.key).substr(0, f.key.rfind('.'));
    if (key.find('.') == std::string_view::npos)
      consider(table);
    consider(f.key);
  }
  return best;
}

std::string foreign_key_hint(std::string_view key) {
  const auto hint = [](std::string_view system, std::string_view here) {
    return std::string(system) + "'s; here it is " + std::string(here);
  };
  for (const auto& foreign : foreign_keys)
    if (foreign.key == key)
      return hint(foreign.system, foreign.here);
  for (const auto& table : verl_tables) {
    if (key.substr(0, table.there.size()) != table.there)
      continue;
    const std::string here = std::string(table.here) + std::string(key.substr(table.there.size()));
    return find_field(here) ? hint("verl", here) : "verl's, which has no counterpart here; leave it out";
  }
  for (const auto& foreign : foreign_keys)
    if (foreign.key == last_part(key) && foreign.key.find('.') == std::string_view::npos)
      return hint(foreign.system, foreign.here);
  return "";
}

} // namespace troupe
