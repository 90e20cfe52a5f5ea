#include "core/config_fields.hpp"
#include <charconv>
#include <cmath>
#include <cstdio>
#include <type_traits>
#include <utility>

namespace troupe {
namespace {

using names = std::vector<std::string_view>;

constexpr double most_steps = (1 << 28) - 1; // the random numbers' counter has 28 bits for a step
constexpr double most_tokens = 1 << 24;
constexpr double most_count = 1 << 24;

// Kept equal to the learner's tables, which stand above this folder, by the learner's tests.
const std::vector<std::string> advantage_estimators_here = {"\"grpo\"", "\"grpo_passk\"", "\"rloo\"", "\"opo\""};
const std::vector<std::string> policy_losses_here = {"\"vanilla\"", "\"gspo\"", "\"cispo\"", "\"geo_mean\"", "\"reinforce\""};

template <class T>
config_value value_of(const T& member) {
  if constexpr (std::is_same_v<T, std::uint64_t>)
    return std::int64_t(member);
  else
    return member;
}

template <class At>
config_field field(std::string key, At at, std::string meaning) {
  using type = std::remove_cvref_t<decltype(at(std::declval<config&>()))>;
  using stored = std::conditional_t<std::is_same_v<type, std::uint64_t>, std::int64_t, type>;
  config_field f;
  f.key = std::move(key);
  f.meaning = std::move(meaning);
  f.get = [at](const config& c) { return value_of(at(c)); };
  f.set = [at](config& c, const config_value& v) { at(c) = type(std::get<stored>(v)); };
  return f;
}

/// A text, or an enum whose values are numbered like `choices`.
template <class At>
config_field choice(std::string key, At at, names choices, std::string meaning) {
  using type = std::remove_cvref_t<decltype(at(std::declval<config&>()))>;
  if constexpr (std::is_enum_v<type>) {
    config_field f;
    f.key = std::move(key);
    f.meaning = std::move(meaning);
    f.get = [at, choices](const config& c) { return std::string(choices[std::size_t(at(c))]); };
    f.set = [at, choices](config& c, const config_value& v) {
      for (std::size_t i = 0; i < choices.size(); ++i)
        if (choices[i] == std::get<std::string>(v))
          at(c) = type(i);
    };
    f.choices = std::move(choices);
    return f;
  } else {
    config_field f = field(std::move(key), at, std::move(meaning));
    f.choices = std::move(choices);
    return f;
  }
}

config_field between(double min, double max, config_field f) {
  f.min = min;
  f.max = max;
  return f;
}
config_field at_least(double min, config_field f) {
  f.min = min;
  return f;
}
config_field above(double min, config_field f) {
  f.min = min;
  f.above_min = true;
  return f;
}
config_field above_up_to(double min, double max, config_field f) { return above(min, between(min, max, std::move(f))); }
config_field from_below(double min, double max, config_field f) {
  f = between(min, max, std::move(f));
  f.below_max = true;
  return f;
}
config_field required(config_field f) {
  f.required = true;
  return f;
}
config_field optional(config_field f) {
  f.may_be_empty = true;
  return f;
}
config_field any_text(config_field f) {
  f.any_text = true;
  return f;
}
config_field only(std::vector<std::string> can, config_field f) {
  f.can = std::move(can);
  return f;
}
/// Accepted at its default alone, because what it belongs to is not in this version.
config_field later(std::string instead, config_field f) {
  f.can = {to_toml(f.get(config{}))};
  f.instead = std::move(instead);
  return f;
}

// Reads and writes one member of a config, const or not.
#define AT(path)                                                                                                                           \
  [](auto& c) -> auto& { return c.path; }

std::vector<config_field> run_fields() {
  return {
      field("run.name", AT(run.name), "names the run and its directory; default: the file's name without its ending"),
      only({"\"rl\"", "\"sft\"", "\"distill\""},
           choice("run.task", AT(run.task), {"rl", "sft", "reward", "dpo", "distill"}, "what is trained")),
      at_least(0, field("run.seed", AT(run.seed), "every random number of the run follows from it")),
      only({"\"sync\""}, choice("run.mode", AT(run.mode), {"sync", "one_step_off", "async"},
                                "which version of the weights makes a batch: sync: the newest")),
      later(
          "versions count in run.mode = \"async\" alone, which this version lacks",
          between(0, most_steps, field("run.max_staleness", AT(run.max_staleness), "`async` only: how many versions old a sample may be"))),
      only({"\"exact\""}, choice("run.numerics", AT(run.numerics), {"exact", "fast"},
                                 "exact: rollout and learner compute the same log-probabilities, to the last bit")),
      between(1, most_steps, field("run.total_steps", AT(run.total_steps), "steps of the run; not together with `run.total_epochs`")),
      between(1, most_steps, field("run.total_epochs", AT(run.total_epochs), "passes over the data, instead of `run.total_steps`")),
      between(0, most_steps,
              field("run.save_freq", AT(run.save_freq), "steps between checkpoints; the last step is always saved; 0: only that")),
      between(0, most_steps,
              field("run.test_freq", AT(run.test_freq), "steps between validations; 0: never (`run.val_before_train` still counts)")),
      field("run.val_before_train", AT(run.val_before_train), "validate before the first step, as step 0"),
      field("run.resume", AT(run.resume), "auto: go on where the run's directory ends; never; or a checkpoint's directory"),
      optional(field("run.dir", AT(run.dir), "the run's directory; default: `runs/<run.name>`")),
  };
}

std::vector<config_field> model_and_data_fields() {
  return {
      required(field("model.path", AT(model.path), "the model: a Hugging Face directory")),
      choice("model.dtype", AT(model.dtype), {"float32", "bfloat16"}, "of the compute; the master weights are float32"),
      field("model.trainable", AT(model.trainable), "globs over tensor names: which weights are trained"),
      required(field("data.train_files", AT(data.train_files), "JSONL files, one prompt a line")),
      optional(field("data.val_files", AT(data.val_files), "the same, held out")),
      field("data.prompt_key", AT(data.prompt_key), "holds the prompt: a text or a list of messages"),
      choice("data.chat_template", AT(data.chat_template), {"auto", "always", "never"},
             "auto: lists of messages go through the model's chat template; always: a text too, as one user message; never"),
      field("data.answer_key", AT(data.answer_key), "holds the answer that the reward compares with"),
      field("data.messages_key", AT(data.messages_key), "`sft`, `distill`: holds a conversation"),
      field("data.response_key", AT(data.response_key), "`sft`, `distill`: holds the response to the prompt"),
      required(between(1, most_tokens, field("data.max_prompt_length", AT(data.max_prompt_length), "tokens"))),
      required(between(1, most_tokens, field("data.max_response_length", AT(data.max_response_length), "tokens"))),
      required(between(1, most_count,
                       field("data.train_batch_size", AT(data.train_batch_size),
                             "PROMPTS a step, times `rollout.n` samples each; `sft`, `distill`: rows"))),
      field("data.shuffle", AT(data.shuffle), "a new order every epoch, by (seed, epoch)"),
      field("data.filter_overlong_prompts", AT(data.filter_overlong_prompts), "leave out prompts above `data.max_prompt_length`"),
      choice("data.truncation", AT(data.truncation), {"error", "left", "right"}, "what happens to a longer prompt that is not left out"),
  };
}

std::vector<config_field> experience_fields() {
  return {
      between(1, 4096, field("rollout.actors", AT(rollout.actors), "how many actors generate")),
      between(1, 65536, field("rollout.n", AT(rollout.n), "samples a prompt")),
      above_up_to(0, 100,
                  field("rollout.temperature", AT(rollout.temperature),
                        "the policy trained is the one sampled: both sides use logits / temperature")),
      above_up_to(0, 1, field("rollout.top_p", AT(rollout.top_p), "nucleus sampling; 1: off")),
      between(-1, 1 << 30, field("rollout.top_k", AT(rollout.top_k), "the k most probable tokens; -1 or 0: off")),
      between(0, 1, field("rollout.min_p", AT(rollout.min_p), "relative to the most probable token; 0: off")),
      above_up_to(0, 100,
                  field("rollout.repetition_penalty", AT(rollout.repetition_penalty),
                        "of tokens in prompt or response: a positive logit is divided by it, another one multiplied; 1: off")),
      optional(between(-100, 100,
                       field("rollout.logit_bias", AT(rollout.logit_bias), "by token id, `{ 42 = -1.5 }`: added to the token's logit"))),
      any_text(optional(field("rollout.stop", AT(rollout.stop), "texts that end a sample, whose text is then what stands before"))),
      optional(between(0, most_tokens,
                       field("rollout.stop_token_ids", AT(rollout.stop_token_ids), "tokens that end a sample besides the model's own"))),
      field("rollout.ignore_eos", AT(rollout.ignore_eos), "the model's end tokens do not end a sample"),
      between(1, 65536, field("rollout.max_num_seqs", AT(rollout.max_num_seqs), "sequences in flight in one actor")),
      choice("rollout.inflight_cache", AT(rollout.inflight_cache), {"recompute", "keep"},
             "what an update of the weights does to the keys and values of samples under way: recompute: computed again, so that later "
             "tokens are what the new weights say; keep: left as the old ones made them"),
      optional(field("rollout.serve", AT(rollout.serve),
                     "HOST:PORT where others may ask the policy of the run (serve.md); port 0: any free one")),
      between(1, 1024, field("rollout.tensor_parallel_size", AT(rollout.tensor_parallel_size), "ranks that share one rollout")),
      choice(
          "rollout.speculative.method", AT(rollout.speculative.method), {"off", "suffix"},
          "suffix: tokens that followed the same ones in the prompt, the group's responses or the last epoch's run ahead of their draws"),
      between(1, 256,
              field("rollout.speculative.num_speculative_tokens", AT(rollout.speculative.num_speculative_tokens),
                    "so many of a sample and pass at most")),
      between(1, 65536,
              field("rollout.speculative.disable_by_batch_size", AT(rollout.speculative.disable_by_batch_size),
                    "none while more sequences than that are in flight in the actor")),
      between(1, 65536, field("validation.n", AT(validation.n), "samples a prompt")),
      between(0, 100, field("validation.temperature", AT(validation.temperature), "0: greedy")),
      above_up_to(0, 1, field("validation.top_p", AT(validation.top_p), "nucleus sampling; 1: off")),
      between(-1, 1 << 30, field("validation.top_k", AT(validation.top_k), "the k most probable tokens; -1 or 0: off")),
      between(0, 1, field("validation.min_p", AT(validation.min_p), "relative to the most probable token; 0: off")),
      choice("reward.function", AT(reward.function), {"last_number", "exact_match"},
             "last_number: 1 if the response ended by itself and its last number equals the answer, else 0; exact_match: 1 if the "
             "stripped text equals the answer, else 0"),
      above_up_to(0, 86400, field("reward.timeout_s", AT(reward.timeout_s), "seconds for one group's rewards")),
      choice("reward.on_error", AT(reward.on_error), {"fail", "drop"}, "a reward that fails: fail the run, or drop the group"),
  };
}

std::vector<config_field> algorithm_fields() {
  const std::string no_kl = "it counts with algorithm.use_kl_in_reward = true, which this version lacks; use learner.use_kl_loss";
  const std::string no_token_returns = "it counts with the estimators gae and reinforce_plus_plus, which this version lacks";
  return {
      only(advantage_estimators_here,
           choice("algorithm.adv_estimator", AT(algorithm.adv_estimator),
                  {"gae", "grpo", "grpo_passk", "rloo", "reinforce_plus_plus", "reinforce_plus_plus_baseline", "remax", "opo", "gpg"},
                  "how rewards become advantages")),
      field("algorithm.norm_adv_by_std_in_grpo", AT(algorithm.norm_adv_by_std_in_grpo),
            "divide by the group's standard deviation; false: Dr. GRPO"),
      later(no_token_returns, between(0, 1, field("algorithm.gamma", AT(algorithm.gamma), "discount"))),
      later(no_token_returns, between(0, 1, field("algorithm.lam", AT(algorithm.lam), "lambda of `gae`"))),
      only({"false"}, field("algorithm.use_kl_in_reward", AT(algorithm.use_kl_in_reward), "take the KL to the reference off the reward")),
      later(no_kl, choice("algorithm.kl_ctrl.type", AT(algorithm.kl_ctrl.type), {"fixed", "adaptive"}, "how the coefficient moves")),
      later(no_kl, at_least(0, field("algorithm.kl_ctrl.kl_coef", AT(algorithm.kl_ctrl.kl_coef), "coefficient of the KL in the reward"))),
      later(no_kl, above(0, field("algorithm.kl_ctrl.target_kl", AT(algorithm.kl_ctrl.target_kl), "`adaptive`: the KL aimed at"))),
      later(no_kl, at_least(1, field("algorithm.kl_ctrl.horizon", AT(algorithm.kl_ctrl.horizon), "`adaptive`: samples"))),
  };
}

std::vector<config_field> learner_fields() {
  return {
      only(policy_losses_here,
           choice("learner.policy_loss", AT(learner.policy_loss),
                  {"vanilla", "gspo", "cispo", "sapo", "geo_mean", "clip_cov", "kl_cov", "reinforce"}, "the loss of a token")),
      between(1, most_count,
              field("learner.ppo_mini_batch_size", AT(learner.ppo_mini_batch_size),
                    "PROMPTS an update; divides `data.train_batch_size`, which is the default")),
      between(1, 1 << 30, field("learner.ppo_max_token_len", AT(learner.ppo_max_token_len), "tokens a micro-batch and rank")),
      between(1, 1024, field("learner.ppo_epochs", AT(learner.ppo_epochs), "passes over a step's batch")),
      between(0, 1, field("learner.clip_ratio_low", AT(learner.clip_ratio_low), "the ratio is clipped at 1 - low")),
      between(0, 1000, field("learner.clip_ratio_high", AT(learner.clip_ratio_high), "and at 1 + high")),
      above(1, field("learner.clip_ratio_c", AT(learner.clip_ratio_c), "dual clip: bound of the loss for negative advantages")),
      choice("learner.loss_agg_mode", AT(learner.loss_agg_mode),
             {"token-mean", "seq-mean-token-sum", "seq-mean-token-mean", "seq-mean-token-sum-norm"},
             "how the tokens' losses become one, over the whole mini-batch"),
      field("learner.entropy_coeff", AT(learner.entropy_coeff), "weight of the entropy bonus"),
      field("learner.use_kl_loss", AT(learner.use_kl_loss), "add the KL to the reference to the loss"),
      at_least(0, field("learner.kl_loss_coef", AT(learner.kl_loss_coef), "its weight")),
      choice("learner.kl_loss_type", AT(learner.kl_loss_type), {"kl", "k1", "abs", "mse", "k2", "low_var_kl", "k3"},
             "its estimator; `kl` = `k1`, `mse` = `k2`, `low_var_kl` = `k3`"),
      at_least(0, field("learner.grad_clip", AT(learner.grad_clip), "largest norm of the gradient; 0: off")),
      between(1, 1024, field("learner.tensor_parallel_size", AT(learner.tensor_parallel_size), "ranks that share a layer")),
      field("learner.sequence_parallel", AT(learner.sequence_parallel), "split norms and residuals over those ranks too"),
      between(1, 1024, field("learner.pipeline_parallel_size", AT(learner.pipeline_parallel_size), "ranks that share the layers")),
      between(1, 4096, field("learner.data_parallel_size", AT(learner.data_parallel_size), "ranks that share the batch")),
      at_least(0, field("learner.loss_scale_factor", AT(learner.loss_scale_factor),
                        "L of `seq-mean-token-sum-norm`; 0: `data.max_response_length`")),
      choice("learner.optim.name", AT(learner.optim.name), {"adamw"}, "the optimizer; eps 1e-8, decoupled decay"),
      above(0, field("learner.optim.lr", AT(learner.optim.lr), "learning rate")),
      at_least(0, field("learner.optim.weight_decay", AT(learner.optim.weight_decay), "on every trainable tensor")),
      from_below(0, 1, field("learner.optim.betas", AT(learner.optim.betas), "decay of the two moments")),
      between(
          0, most_steps,
          field("learner.optim.lr_warmup_steps", AT(learner.optim.lr_warmup_steps), "lr * min(1, t / warmup), t = 1 at the first update")),
      choice("learner.optim.lr_scheduler_type", AT(learner.optim.lr_scheduler_type), {"constant", "linear", "cosine"},
             "after warm-up, down to min_lr_ratio * lr at the last step"),
      between(0, 1, field("learner.optim.min_lr_ratio", AT(learner.optim.min_lr_ratio), "where the schedule ends")),
  };
}

std::vector<config_field> other_fields() {
  const std::string no_critic = "a critic belongs to algorithm.adv_estimator = \"gae\", which this version lacks";
  return {
      later(no_critic, optional(field("critic.path", AT(critic.path), "the value model; default: `model.path` with a new head"))),
      later(no_critic, above(0, field("critic.lr", AT(critic.lr), "its learning rate"))),
      later(no_critic, above(0, field("critic.cliprange_value", AT(critic.cliprange_value), "clip of the value loss"))),
      later(no_critic, between(1, 1024, field("critic.ppo_epochs", AT(critic.ppo_epochs), "passes over a step's batch"))),
      later(no_critic, between(0, most_steps, field("critic.warmup", AT(critic.warmup), "steps before the policy is trained"))),
      optional(field("reference.path", AT(reference.path), "the KL's reference model; default: `model.path` as it was at step 0")),
      optional(field("distill.teacher", AT(distill.teacher), "`distill`: the teacher's directory; default: a split model's second model")),
      between(0, most_count, field("distill.top_k", AT(distill.top_k), "forward KL over the teacher's top k; 0: all")),
      choice("weightsync.channel", AT(weightsync.channel), {"auto", "shared", "zmq", "nccl"},
             "how weights reach the rollouts; auto: shared in one process, nccl between GPUs, else zmq"),
      field("placement.processes", AT(placement.processes), "false: every actor in this process; true: one process a rank"),
      field("placement.local_workers", AT(placement.local_workers),
            "\"all\", or how many of the processes `train` starts here; it waits for the others to join"),
      field("placement.listen", AT(placement.listen), "HOST:PORT at which workers join; port 0: any free one"),
  };
}

#undef AT

std::string number_text(double value) {
  char text[32];
  const auto end = std::to_chars(text, text + sizeof text, value).ptr;
  std::string out(text, end);
  return out.find_first_of(".en") == std::string::npos ? out + ".0" : out;
}

std::string bound_text(double value) {
  char text[32];
  return std::string(text, value == std::floor(value) && std::abs(value) < 1e15
                               ? std::to_chars(text, text + sizeof text, std::int64_t(value)).ptr
                               : std::to_chars(text, text + sizeof text, value).ptr);
}

std::string basic_string(std::string_view text) {
  std::string out = "\"";
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (byte < 0x20 || byte == 0x7f) {
      char escape[8];
      std::snprintf(escape, sizeof escape, "\\u%04X", byte);
      out += escape;
    } else {
      out += c;
    }
  }
  return out + '"';
}

template <class List, class Text>
std::string bracketed(const List& list, Text text) {
  std::string out = "[";
  for (const auto& item : list)
    out += (out.size() > 1 ? ", " : "") + text(item);
  return out + "]";
}

} // namespace

const std::vector<config_field>& config_fields() {
  static const std::vector<config_field> all = [] {
    std::vector<config_field> out;
    for (auto* part : {run_fields, model_and_data_fields, experience_fields, algorithm_fields, learner_fields, other_fields})
      for (auto& f : part())
        out.push_back(std::move(f));
    return out;
  }();
  return all;
}

const config_field* find_field(std::string_view key) {
  for (const auto& f : config_fields())
    if (f.key == key)
      return &f;
  return nullptr;
}

std::string to_toml(const config_value& value) {
  struct writer {
    std::string operator()(bool v) const { return v ? "true" : "false"; }
    std::string operator()(std::int64_t v) const { return std::to_string(v); }
    std::string operator()(double v) const { return number_text(v); }
    std::string operator()(const std::string& v) const { return basic_string(v); }
    std::string operator()(const std::vector<std::string>& v) const { return bracketed(v, basic_string); }
    std::string operator()(const std::array<double, 2>& v) const { return bracketed(v, number_text); }
    std::string operator()(const std::vector<std::int64_t>& v) const {
      return bracketed(v, [](std::int64_t i) { return std::to_string(i); });
    }
    std::string operator()(const std::map<std::int64_t, double>& v) const {
      std::string out;
      for (const auto& [id, number] : v)
        out += (out.empty() ? " " : ", ") + std::to_string(id) + " = " + number_text(number);
      return "{" + out + (v.empty() ? "}" : " }");
    }
  };
  return std::visit(writer{}, value);
}

std::string range_of(const config_field& field) {
  std::string out;
  for (const auto word : field.choices)
    out += (out.empty() ? "" : " | ") + std::string(word);
  if (!out.empty())
    return out;
  const bool low = std::isfinite(field.min), high = std::isfinite(field.max);
  if (low)
    out += bound_text(field.min) + (field.above_min ? " < " : " <= ");
  if (low || high)
    out += "value";
  if (high)
    out += (field.below_max ? " < " : " <= ") + bound_text(field.max);
  return out;
}

} // namespace troupe
