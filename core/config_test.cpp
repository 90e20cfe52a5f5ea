#include "core/config.hpp"
#include "core/config_fields.hpp"
#include "core/error.hpp"
#include "core/files.hpp"
#include <cmath>
#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

namespace troupe {
namespace {

// Ten lines; the cases below add theirs from line 11 on.
const std::string smallest = R"([model]
path = "m"
[reward]
function = "last_number"
[data]
train_files = ["a.jsonl"]
max_prompt_length = 128
max_response_length = 16
train_batch_size = 16

)";

struct refusal {
  errc code;
  std::string text;
};

refusal refused(std::string_view text, const std::vector<std::string>& overrides = {}) {
  try {
    parse_config(text, "f.toml", overrides);
  } catch (const error& e) {
    return {e.code(), e.what()};
  }
  return {errc{}, "accepted"};
}

TEST(config, what_is_left_out_has_the_documented_defaults) {
  const config c = parse_config(smallest, "dir/quick.start.toml");
  EXPECT_EQ(c.run.name, "quick.start");
  EXPECT_EQ(c.run_dir(), "runs/quick.start");
  EXPECT_EQ(c.run.total_steps, 25);
  EXPECT_EQ(c.run.total_epochs, 0);
  EXPECT_EQ(c.run.seed, 1u);
  EXPECT_EQ(c.model.dtype, compute_dtype::bfloat16);
  EXPECT_EQ(c.model.trainable, std::vector<std::string>{"*"});
  EXPECT_EQ(c.rollout.n, 8);
  EXPECT_EQ(c.validation.temperature, 0.0);
  EXPECT_EQ(c.learner.ppo_mini_batch_size, 16);
  EXPECT_EQ(c.learner.optim.lr, 1e-5);
  EXPECT_EQ(c.learner.optim.betas, (std::array<double, 2>{0.9, 0.999}));
  EXPECT_EQ(c.placement.local_workers, "all");
}

TEST(config, values_are_read_into_their_members) {
  const config c = parse_config(smallest + R"(val_files = ["b", "c"]
[run]
seed = 9223372036854775807
total_epochs = 3
[rollout]
temperature = 1
stop = ["\n", "###"]
[rollout.logit_bias]
42 = -1
7 = 0.5
[algorithm]
kl_ctrl = { type = "fixed", kl_coef = 0.001 }
[learner]
optim.betas = [0, 0.5]
loss_agg_mode = "seq-mean-token-sum-norm"
[placement]
local_workers = 3
)",
                                "f.toml");
  EXPECT_EQ(c.data.val_files, (std::vector<std::string>{"b", "c"}));
  EXPECT_EQ(c.run.seed, 9223372036854775807u);
  EXPECT_EQ(c.run.total_epochs, 3);
  EXPECT_EQ(c.run.total_steps, 0) << "epochs alone replace the steps";
  EXPECT_EQ(c.rollout.temperature, 1.0) << "an integer is a number";
  EXPECT_EQ(c.rollout.stop, (std::vector<std::string>{"\n", "###"})) << "control characters are text here";
  EXPECT_EQ(c.rollout.logit_bias, (std::map<std::int64_t, double>{{7, 0.5}, {42, -1.0}}));
  EXPECT_EQ(c.learner.optim.betas, (std::array<double, 2>{0, 0.5}));
  EXPECT_EQ(c.learner.loss_agg_mode, "seq-mean-token-sum-norm");
  EXPECT_EQ(c.placement.local_workers, "3");
}

TEST(config, overrides_take_toml_values_and_bare_words) {
  const config c = parse_config(smallest, "f.toml",
                                {"rollout.temperature=0.5", "model.path=models/a-b.c", "model.trainable=[\"a.*\", 'b']", "run.name=\"7\"",
                                 "algorithm.kl_ctrl={type=\"fixed\"}", "learner.optim.lr=3e-6", "rollout.n=4", "rollout.n=5",
                                 "rollout.logit_bias={5=1.5}", "rollout.logit_bias.6=-2", "placement.local_workers=2",
                                 "run.val_before_train=false", "model.dtype=float32", "run.dir=a=b"});
  EXPECT_EQ(c.rollout.temperature, 0.5);
  EXPECT_EQ(c.model.path, "models/a-b.c");
  EXPECT_EQ(c.model.trainable, (std::vector<std::string>{"a.*", "b"}));
  EXPECT_EQ(c.run.name, "7");
  EXPECT_EQ(c.learner.optim.lr, 3e-6);
  EXPECT_EQ(c.rollout.n, 5) << "the last one counts";
  EXPECT_EQ(c.rollout.logit_bias, (std::map<std::int64_t, double>{{5, 1.5}, {6, -2.0}}));
  EXPECT_EQ(c.placement.local_workers, "2");
  EXPECT_FALSE(c.run.val_before_train);
  EXPECT_EQ(c.model.dtype, compute_dtype::float32);
  EXPECT_EQ(c.run.dir, "a=b");
}

TEST(config, bad_files_are_refused_with_place_and_reason) {
  struct bad_file {
    std::string lines; // from line 11 on, in [data]
    std::string message;
  };
  const bad_file table[] = {
      // unknown keys
      {"[run]\nsed = 1", "f.toml:12:1: unknown key run.sed; nearest known key: run.seed"},
      {"[rollout]\ntemprature = 1\n[run]\nsed = 3", "f.toml:12:1: unknown key rollout.temprature; nearest known key: rollout.temperature"},
      {"[learner]\nlr = 3", "f.toml:12:1: unknown key learner.lr; nearest known key: learner.optim.lr"},
      {"[rewards]", "f.toml:11:2: unknown key rewards; nearest known key: reward"},
      // types
      {"[run]\nseed = 1.5", "f.toml:12:8: run.seed wants an integer, got the number 1.5"},
      {"[run]\nresume = true", "f.toml:12:10: run.resume wants a string, got true"},
      {"shuffle = 1", "f.toml:11:11: data.shuffle wants true or false, got the integer 1"},
      {"shuffle = 2020-01-01", "f.toml:11:11: data.shuffle wants true or false, got a date or time"},
      {"val_files = \"x\"", "f.toml:11:13: data.val_files wants a list of strings, got the string 'x'"},
      {"val_files = [1]", "f.toml:11:13: data.val_files wants a list of strings, got a list"},
      {"[learner]\noptim.betas = [0.9]", "f.toml:12:15: learner.optim.betas wants a list of two numbers, got a list"},
      {"[[run]]\nseed = 1", "f.toml:11:1: run is a table, got a list"},
      // ranges
      {"[run]\nseed = -1", "f.toml:12:8: run.seed = -1 is out of range: 0 <= value"},
      {"[rollout]\ntop_p = 0", "f.toml:12:9: rollout.top_p = 0.0 is out of range: 0 < value <= 1"},
      {"[rollout]\nstop_token_ids = [7, -1]", "f.toml:12:18: rollout.stop_token_ids = [7, -1] is out of range: 0 <= value <= 16777216"},
      {"[rollout]\nstop_token_ids = ['a']", "f.toml:12:18: rollout.stop_token_ids wants a list of integers, got a list"},
      {"[rollout]\nlogit_bias = [1]",
       "f.toml:12:14: rollout.logit_bias wants a table of numbers by token id, such as { 42 = -1.5 }, got a list"},
      {"[rollout]\nlogit_bias = { a = 1 }",
       "f.toml:12:14: rollout.logit_bias wants a table of numbers by token id, such as { 42 = -1.5 }, got a table"},
      {"[rollout.logit_bias]\n07 = 1",
       "f.toml:11:1: rollout.logit_bias wants a table of numbers by token id, such as { 42 = -1.5 }, got a table"},
      {"[rollout]\nlogit_bias = { 3 = 1, 7 = 101 }",
       "f.toml:12:14: rollout.logit_bias = { 3 = 1.0, 7 = 101.0 } is out of range: -100 <= value <= 100"},
      {"[rollout]\nlogit_bias = { -1 = 1 }", "f.toml:12:14: rollout.logit_bias = { -1 = 1.0 } has a token id below 0"},
      {"[rollout]\nstop = 'x'", "f.toml:12:8: rollout.stop wants a list of strings, got the string 'x'"},
      {"[rollout]\nstop = ['x', '']", "f.toml:12:8: rollout.stop = [\"x\", \"\"] has an item that is empty"},
      {"[rollout]\nserve = true", "f.toml:12:9: rollout.serve wants a string, got true"},
      {"[rollout]\nserve = '127.0.0.1'", "f.toml:12:9: rollout.serve = \"127.0.0.1\" is not HOST:PORT with a port from 0 to 65535"},
      {"[rollout]\nserve = ':1'", "f.toml:12:9: rollout.serve = \":1\" is not HOST:PORT with a port from 0 to 65535"},
      {"[rollout]\nserve = '127.0.0.1:1'\n[run]\ntask = 'sft'",
       "f.toml:12:9: rollout.serve belongs to run.task = \"rl\", and run.task is \"sft\"; leave it out"},
      {"[rollout]\ninflight_cache = 'drop'",
       "f.toml:12:18: rollout.inflight_cache = \"drop\" is not one of recompute | keep; nearest: keep"},
      {"[rollout]\nrepetition_penalty = 0", "f.toml:12:22: rollout.repetition_penalty = 0.0 is out of range: 0 < value <= 100"},
      {"[rollout]\ntop_p = nan", "f.toml:12:9: rollout.top_p = nan is out of range: 0 < value <= 1"},
      {"[learner]\nentropy_coeff = inf", "f.toml:12:17: learner.entropy_coeff = inf is out of range: finite numbers"},
      {"[learner]\noptim.betas = [1, 0.9]", "f.toml:12:15: learner.optim.betas = [1.0, 0.9] is out of range: 0 <= value < 1"},
      {"[run]\nmode = \"asinc\"", "f.toml:12:8: run.mode = \"asinc\" is not one of sync | one_step_off | async; nearest: async"},
      {"prompt_key = \"\"", "f.toml:11:14: data.prompt_key = \"\" is empty"},
      {"prompt_key = \"a\\nb\"", "f.toml:11:14: data.prompt_key = \"a\\u000Ab\" holds a control character"},
      {"val_files = [\"\"]", "f.toml:11:13: data.val_files = [\"\"] has an item that is empty"},
      // syntax
      {"answer_key = \"a\"\nanswer_key = \"b\"",
       "f.toml:12:14: not TOML: Error while parsing key-value pair: cannot redefine existing string 'answer_key'"},
      {"x = ", "f.toml:11:5: not TOML: Error while parsing key-value pair: encountered end-of-file"},
      {"\n[ .a ]\nx = 1", "f.toml:12: not TOML: no key or value begins like this"},
      // relations
      {"[run]\ntotal_steps = 3\ntotal_epochs = 2", "f.toml:13:16: run.total_steps and run.total_epochs are both given; keep one"},
      {"[learner]\nppo_mini_batch_size = 5",
       "f.toml:12:23: learner.ppo_mini_batch_size = 5 does not divide data.train_batch_size = 16; both count prompts"},
      {"[distill]\ntop_k = 5", "f.toml:12:9: distill.top_k belongs to run.task = \"distill\", and run.task is \"rl\"; leave it out"},
      {"[run]\ntask = 'sft'\n[learner]\nuse_kl_loss = true",
       "f.toml:14:15: learner.use_kl_loss belongs to run.task = \"rl\", and run.task is \"sft\"; leave it out"},
      {"[learner]\nppo_max_token_len = 100", "f.toml:12:21: learner.ppo_max_token_len = 100 is less than one sample: "
                                             "data.max_prompt_length + data.max_response_length = 144"},
      {"[reference]\npath = 'x'",
       "f.toml:12:8: reference.path is given, but nothing asks for a KL; set learner.use_kl_loss = true or leave it out"},
      {"[run]\nname = 'a/b'", "f.toml:12:8: run.name = \"a/b\" must name a directory, without a slash; give run.name"},
      {"[placement]\nlisten = 'nix'", "f.toml:12:10: placement.listen = \"nix\" is not HOST:PORT with a port from 0 to 65535"},
      {"[placement]\nlisten = '127.0.0.1:65536'",
       "f.toml:12:10: placement.listen = \"127.0.0.1:65536\" is not HOST:PORT with a port from 0 to 65535"},
      {"[placement]\nlocal_workers = -1", "f.toml:12:17: placement.local_workers = \"-1\" is neither \"all\" nor a number from 0 to 99999"},
      {"[placement]\nprocesses = true\n[weightsync]\nchannel = 'shared'",
       "f.toml:14:11: weightsync.channel = \"shared\" needs placement.processes = false; use \"auto\" or \"zmq\""},
      // other systems' keys
      {"num_generations = 4", "f.toml:11:1: unknown key data.num_generations, TRL's; here it is rollout.n"},
      {"[actor_rollout_ref.actor]\nclip_ratio = 3", "f.toml:12:1: unknown key actor_rollout_ref.actor.clip_ratio, verl's; here it is "
                                                    "learner.clip_ratio_low and learner.clip_ratio_high"},
      {"[actor_rollout_ref.actor.optim]\nlr = 3",
       "f.toml:12:1: unknown key actor_rollout_ref.actor.optim.lr, verl's; here it is learner.optim.lr"},
      {"[trainer]\nsave_freq = 3", "f.toml:12:1: unknown key trainer.save_freq, verl's; here it is run.save_freq"},
      {"[trainer]\nlogger = 3", "f.toml:12:1: unknown key trainer.logger, verl's, which has no counterpart here; leave it out"},
  };
  for (const auto& row : table) {
    const refusal got = refused(smallest + row.lines);
    EXPECT_EQ(got.text, row.message);
    EXPECT_EQ(got.code, errc::bad_config) << row.lines;
  }
}

TEST(config, what_this_version_cannot_do_is_said) {
  struct unsupported {
    std::string lines, message;
  };
  const unsupported table[] = {
      {"[run]\nmode = \"async\"", "f.toml:12:8: run.mode = \"async\" is not in this version, which can do \"sync\""},
      {"[run]\ntask = 'dpo'", "f.toml:12:8: run.task = \"dpo\" is not in this version, which can do \"rl\", \"sft\", \"distill\""},
      {"[critic]\nlr = 1e-5\nwarmup = 1", "f.toml:13:10: critic.warmup = 1 is not in this version, which can do 0 only: a critic belongs "
                                          "to algorithm.adv_estimator = \"gae\", "
                                          "which this version lacks"},
      {"[rollout]\ninflight_cache = 'keep'",
       "f.toml:12:18: rollout.inflight_cache = \"keep\" is about samples under way at an update: this version has none but those of "
       "rollout.serve; give that or leave this out"},
      {"[algorithm.filter_groups]\nenable = true", "f.toml:12:1: algorithm.filter_groups.enable is not in this version: groups without "
                                                   "spread stay in the batch and contribute nothing"},
      {"[placement]\nlisten = '0.0.0.0:1'",
       "f.toml:12:10: placement.listen = \"0.0.0.0:1\" is not in this version, which has no certificates and listens on 127.0.0.1 only"},
  };
  for (const auto& row : table) {
    const refusal got = refused(smallest + row.lines);
    EXPECT_EQ(got.text, row.message);
    EXPECT_EQ(got.code, errc::unsupported) << row.lines;
  }
}

TEST(config, a_required_key_that_is_missing_is_named) {
  for (const char* key :
       {"model.path", "data.train_files", "data.max_prompt_length", "data.max_response_length", "data.train_batch_size"}) {
    std::string text;
    const std::string last = std::string(key).substr(std::string(key).find('.') + 1);
    for (std::size_t begin = 0; begin < smallest.size();) {
      const std::size_t end = smallest.find('\n', begin) + 1;
      if (smallest.compare(begin, last.size(), last) != 0)
        text += smallest.substr(begin, end - begin);
      begin = end;
    }
    EXPECT_EQ(refused(text).text, "f.toml: " + std::string(key) + " is required: " + find_field(key)->meaning);
  }
  EXPECT_EQ(refused("[model]\npath='m'\n[data]\ntrain_files=['a']\nmax_prompt_length=1\nmax_response_length=1\ntrain_batch_size=1").text,
            "f.toml: reward.function is required for run.task = \"rl\": last_number | exact_match");
}

TEST(config, bad_overrides_are_refused_with_their_text) {
  const std::pair<std::string, std::string> table[] = {
      {"rollout.n", "--set rollout.n: write --set key=value"},
      {"=3", "--set =3: write --set key=value"},
      {"rollout.n=x", "--set rollout.n=x: rollout.n wants an integer, got the string 'x'"},
      {"rollout.logit_bias.7=101",
       "--set rollout.logit_bias.7=101: rollout.logit_bias = { 7 = 101.0 } is out of range: -100 <= value <= 100"},
      {"rollout.m=1", "--set rollout.m=1: unknown key rollout.m; nearest known key: rollout.n"},
      {"rollout=3", "--set rollout=3: rollout is a table, got the integer 3"},
      {"run.name=3", "--set run.name=3: run.name wants a string, got the integer 3"},
      {"run.name=a\nb", "--set run.name=a b: a value is one line"},
      {"rollout.n=\"x", "--set rollout.n=\"x: not a TOML value: Error while parsing string: encountered end-of-file"},
      {"learner.ppo_mini_batch_size=3", "--set learner.ppo_mini_batch_size=3: learner.ppo_mini_batch_size = 3 does not divide "
                                        "data.train_batch_size = 16; both count prompts"},
  };
  for (const auto& [text, message] : table)
    EXPECT_EQ(refused(smallest, {text}).text, message);
  EXPECT_EQ(refused(smallest, {"run.name=\xff"}).code, errc::bad_config) << "not UTF-8";
}

TEST(config, no_depth_and_no_size_exhausts_the_parser) {
  std::string deep;
  for (int i = 0; i < 100000; ++i)
    deep += "a.";
  EXPECT_EQ(refused(smallest + deep + "a = 1").text, "f.toml:11: more than 64 dots in a line; no key is that deep");
  EXPECT_EQ(refused(smallest, {deep + "a=1"}).code, errc::bad_config);
  EXPECT_EQ(refused(smallest, {"run.name={" + deep + "a=1}"}).code, errc::bad_config);
  EXPECT_EQ(refused(smallest + "x = " + std::string(100000, '[')).code, errc::bad_config);
  EXPECT_EQ(refused(std::string(2 << 20, '#')).code, errc::bad_config);
}

TEST(config, differing_keys_are_listed_in_the_files_order) {
  const config a = parse_config(smallest, "f.toml");
  const config b =
      parse_config(smallest, "f.toml", {"placement.processes=true", "rollout.n=2", "run.seed=2", "learner.optim.betas=[0.9,0.99]"});
  EXPECT_EQ(differing_keys(a, b), (std::vector<std::string>{"run.seed", "rollout.n", "learner.optim.betas", "placement.processes"}));
  EXPECT_TRUE(differing_keys(a, a).empty());
}

/// Some value that the field accepts.
config_value arbitrary_value(const config_field& f) {
  const config_value like = f.get(config{});
  if (f.any_text)
    return std::vector<std::string>{"\n\"\\", "\x7f\t", "é"};
  if (!f.choices.empty() && f.can.empty())
    return std::string(*rc::gen::elementOf(f.choices));
  if (std::holds_alternative<bool>(like))
    return *rc::gen::arbitrary<bool>();
  const double low = std::isfinite(f.min) ? f.min : -1e6, high = std::isfinite(f.max) ? f.max : low + 1e6;
  const auto number = [&] {
    const double part = *rc::gen::inRange(1, 1000) / 1000.0 + *rc::gen::inRange(0, 1000) * 1e-9;
    return low + (high - low) * part * 0.999;
  };
  if (std::holds_alternative<std::int64_t>(like))
    return *rc::gen::inRange(std::int64_t(low), std::int64_t(high) + 1);
  if (std::holds_alternative<double>(like))
    return number();
  if (std::holds_alternative<std::array<double, 2>>(like))
    return std::array<double, 2>{number(), number()};
  if (std::holds_alternative<std::vector<std::int64_t>>(like))
    return *rc::gen::container<std::vector<std::int64_t>>(rc::gen::inRange(std::int64_t(low), std::int64_t(high) + 1));
  if (std::holds_alternative<std::map<std::int64_t, double>>(like))
    return std::map<std::int64_t, double>{{0, number()}, {*rc::gen::inRange(1, 100), number()}};
  const auto text = [] { return *rc::gen::nonEmpty(rc::gen::container<std::string>(rc::gen::inRange<char>(' ', '~'))); };
  if (std::holds_alternative<std::string>(like))
    return text();
  return std::vector<std::string>{text(), text()};
}

RC_GTEST_PROP(config_property, what_is_written_reads_back_the_same, ()) {
  config c = parse_config(smallest, "f.toml");
  for (const auto& f : config_fields())
    if (f.can.empty() && *rc::gen::inRange(0, 3) == 0)
      f.set(c, arbitrary_value(f));
  // Keys bound by relations.
  c.run.name = "x";
  c.run.total_steps = c.run.total_epochs > 0 ? 0 : 7;
  c.learner.ppo_mini_batch_size = c.data.train_batch_size;
  c.learner.ppo_max_token_len = 1 << 30;
  c.reference.path = c.learner.use_kl_loss ? c.reference.path : "";
  c.distill = {};
  if (c.placement.processes && c.weightsync.channel == "shared")
    c.weightsync.channel = "auto";
  c.placement.local_workers = "all";
  c.placement.listen = "127.0.0.1:5";
  c.rollout.serve = c.run.task == run_task::rl ? "localhost:0" : "";
  c.rollout.inflight_cache = c.rollout.serve.empty() ? "recompute" : c.rollout.inflight_cache;
  const config read = parse_config(to_toml(c), "other.toml");
  RC_ASSERT(differing_keys(c, read) == std::vector<std::string>{});
}

TEST(config, a_mutated_file_is_read_or_refused_in_one_line) {
  const std::string seed_text = to_toml(parse_config(smallest, "f.toml"));
  std::uint64_t state = 1;
  const auto next = [&](std::size_t below) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return std::size_t(state >> 33) % below;
  };
  const std::string_view pieces[] = {
      "[",      "]",  "\"", "'", "=", ".", "#", "\n", "{", "}", ",", "\\u0000", "\xff", "inf", "-", "1e999", "99999999999999999999",
      "\"\"\"", "[[", "\r"};
  int refusals = 0;
  for (int round = 0; round < 3000; ++round) {
    std::string text = seed_text;
    for (std::size_t edits = 1 + next(4); edits > 0 && !text.empty(); --edits) {
      const std::size_t at = next(text.size());
      switch (next(4)) {
      case 0:
        text.erase(at, 1 + next(20));
        break;
      case 1:
        text.insert(at, pieces[next(std::size(pieces))]);
        break;
      case 2:
        text[at] = char(next(256));
        break;
      default:
        text.resize(at + 1);
      }
    }
    const refusal got = refused(text);
    refusals += got.code != errc{};
    EXPECT_EQ(got.text.find_first_of("\n\r"), std::string::npos) << got.text;
  }
  EXPECT_GT(refusals, 1000);
}

TEST(config, the_manual_has_every_key_with_default_and_range) {
  const std::string manual = read_file(std::filesystem::path(TROUPE_SOURCE_DIR) / "docs" / "configuration.md");
  for (const auto& f : config_fields()) {
    std::string range = range_of(f);
    for (std::size_t at = 0; (at = range.find('|', at)) != std::string::npos; at += 2)
      range.insert(at, "\\");
    const bool none = f.required || f.key == "run.name" || f.key == "run.dir" || f.key == "run.total_epochs" ||
                      f.key == "reward.function" || f.key == "learner.ppo_mini_batch_size";
    std::string row = "| `" + f.key + "` | " +
                      (f.required ? "required"
                       : none     ? ""
                                  : "`" + to_toml(f.get(config{})) + "`") +
                      " | " + range + " | " + f.meaning;
    if (!f.can.empty()) {
      row += "; this version: ";
      for (std::size_t i = 0; i < f.can.size(); ++i)
        row += (i ? ", `" : "`") + f.can[i] + "`";
    }
    row += " |\n";
    EXPECT_NE(manual.find(row), std::string::npos) << "docs/configuration.md lacks\n" << row;
  }
}

} // namespace
} // namespace troupe
