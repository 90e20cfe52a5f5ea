// Whole runs of `sft` and `distill` by the real program.
#include "core/files.hpp"
#include "tests/run/tiny_run.hpp"
#include <csignal>
#include <filesystem>
#include <fstream>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>
#include <numeric>

namespace troupe {
namespace {

using namespace std::chrono_literals;
using nlohmann::json;
constexpr auto whole_run = 240s; // generous: a loaded machine

struct sft_run : ::testing::Test {
  static const tiny_world& world() {
    static tiny_world w;
    static const bool made = [] {
      json chat = {{"messages", {{{"role", "user"}, {"content", "count"}}, {{"role", "assistant"}, {"content", "one two"}}}}};
      std::string train = chat.dump() + "\n", val = chat.dump() + "\n";
      for (int i = 0; i < 40; ++i)
        (i < 33 ? train : val) += json{{"prompt", "say " + std::to_string(i)}, {"response", "I say " + std::to_string(i)}}.dump() + '\n';
      write_file(w.dir() / "sft-train.jsonl", train);
      write_file(w.dir() / "sft-val.jsonl", val);
      write_file(
          w.dir() / "model" / "chat_template.jinja",
          "{% for m in messages %}{{ m.role }}:{{ m.content }}<end256>{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}");
      return true;
    }();
    EXPECT_TRUE(made);
    return w;
  }
  static std::vector<std::string> arguments(const std::string& name, const std::vector<std::string>& settings,
                                            const std::string& command = "train") {
    const auto list = [](const char* file) { return "[\"" + (world().dir() / file).string() + "\"]"; };
    std::vector<std::string> out = {command, world().config().string()};
    if (command != "check")
      out.insert(out.end(), {"--threads", "1"});
    std::vector<std::string> all = {"run.task=sft", "run.dir=" + world().run_dir(name).string(),
                                    "data.train_files=" + list("sft-train.jsonl"), "data.val_files=" + list("sft-val.jsonl")};
    all.insert(all.end(), settings.begin(), settings.end());
    for (const auto& s : all)
      out.insert(out.end(), {"--set", s});
    return out;
  }
  static program start(const std::string& name, const std::vector<std::string>& settings = {}, const std::string& command = "train") {
    return program(arguments(name, settings, command), world().run_dir(name + "-output"));
  }
  static std::vector<json> metrics(const std::string& name) {
    std::vector<json> out;
    std::ifstream in(world().run_dir(name) / "metrics.jsonl");
    for (std::string line; std::getline(in, line) && !in.eof();)
      out.push_back(json::parse(line));
    return out;
  }
  static std::vector<std::string> distill() { return {"run.task=distill", "distill.teacher=" + (world().dir() / "model").string()}; }
  static bool reaches(const std::string& name, int step) {
    return until([&] {
      const auto steps = recorded_steps(world().run_dir(name));
      return !steps.empty() && steps.back() >= step;
    });
  }
};

TEST_F(sft_run, LossFallsAndTheRunIsWhole) {
  for (const char* name : {"one", "same"}) {
    auto p = start(name);
    ASSERT_EQ(p.wait(whole_run), 0) << p.err();
    EXPECT_EQ(p.err(), "");
  }
  EXPECT_TRUE(final_weights(world().run_dir("one")) == final_weights(world().run_dir("same")));
  const auto lines = metrics("one");
  ASSERT_EQ(lines.size(), std::size_t(tiny_steps + 1));
  EXPECT_LT(lines.back().at("val/loss").get<double>(), 0.7 * lines.front().at("val/loss").get<double>());
  EXPECT_LT(lines.back().at("train/loss").get<double>(), 0.7 * lines[1].at("train/loss").get<double>());
  for (const char* key : {"actor/grad_norm", "actor/lr", "timing_s/step", "timing_s/update_actor", "perf/throughput"})
    EXPECT_TRUE(lines.back().contains(key)) << key;
  for (const auto& line : lines)
    for (const auto& [key, value] : line.items())
      EXPECT_TRUE(key.rfind("critic/", 0) != 0 && key.rfind("sync/", 0) != 0 && key.rfind("response_length/", 0) != 0) << key;
  EXPECT_EQ(lines[8].contains("val/loss"), true);
  EXPECT_EQ(lines[9].contains("val/loss"), false);
  for (const char* file : {"config.toml", "log.txt", "report.html", "checkpoints/step-000005/model.safetensors"})
    EXPECT_TRUE(std::filesystem::exists(world().run_dir("one") / file)) << file;
  EXPECT_FALSE(std::filesystem::exists(world().run_dir("one") / "rollouts"));
  EXPECT_EQ(file_bytes(world().run_dir("one") / "log.txt").find("worker rollout"), std::string::npos);
  auto eval = start("eval", {}, "eval");
  ASSERT_EQ(eval.wait(whole_run), 0) << eval.err();
  EXPECT_EQ(json::parse(eval.out()).at("val/loss"), lines.front().at("val/loss"));
  auto check = start("check", {}, "check");
  ASSERT_EQ(check.wait(whole_run), 0) << check.err();
  EXPECT_NE(check.out().find("tokens learnt an epoch"), std::string::npos) << check.out();
}

/// A run that is killed or stopped and started again ends with the weights of one that was not.
TEST_F(sft_run, KilledAndInterruptedRunsEndWithTheSameBits) {
  const std::vector<std::string> settings = {"model.dtype=bfloat16", "model.trainable=[\"model.layers.1.*\", \"lm_head.weight\"]"};
  auto undisturbed = start("undisturbed", settings);
  ASSERT_EQ(undisturbed.wait(whole_run), 0) << undisturbed.err();
  for (const int signal : {SIGKILL, SIGINT, SIGTERM}) {
    const std::string name = "disturbed" + std::to_string(signal);
    auto p = start(name, settings);
    ASSERT_TRUE(reaches(name, 7)) << p.err();
    p.signal(signal);
    const int status = p.wait(whole_run);
    ASSERT_EQ(status, signal == SIGKILL ? 128 + SIGKILL : 1) << p.err();
    if (signal != SIGKILL) {
      EXPECT_NE(p.err().find("stopped after step"), std::string::npos) << p.err();
    }
    auto again = start(name, settings);
    ASSERT_EQ(again.wait(whole_run), 0) << again.err();
    EXPECT_NE(again.out().find("going on after step"), std::string::npos) << again.out();
    EXPECT_TRUE(final_weights(world().run_dir(name)) == final_weights(world().run_dir("undisturbed"))) << signal;
    std::vector<int> steps(tiny_steps + 1);
    std::iota(steps.begin(), steps.end(), 0);
    EXPECT_EQ(recorded_steps(world().run_dir(name)), steps);
  }
}

/// A model trained away from its teacher comes back to it.
TEST_F(sft_run, DistillationGoesBackToTheTeacher) {
  auto away = start("away", {"learner.optim.lr=1e-3"});
  ASSERT_EQ(away.wait(whole_run), 0) << away.err();
  const std::string model = (world().run_dir("away") / "checkpoints/step-000024").string();
  for (const char* k : {"0", "5"}) {
    const std::string name = std::string("back") + k;
    auto settings = distill();
    settings.insert(settings.end(), {"model.path=" + model, std::string("distill.top_k=") + k});
    auto p = start(name, settings);
    ASSERT_EQ(p.wait(whole_run), 0) << p.err();
    const auto lines = metrics(name);
    EXPECT_LT(lines.back().at("val/loss").get<double>(), 0.6 * lines.front().at("val/loss").get<double>()) << k;
    EXPECT_TRUE(lines.back().contains("timing_s/ref"));
  }
}

TEST_F(sft_run, RanksOfOneProcessGiveNearlyTheSameLoss) {
  std::vector<double> losses;
  for (const auto& layout : std::vector<std::vector<std::string>>{
           {}, {"learner.tensor_parallel_size=2"}, {"learner.pipeline_parallel_size=2", "learner.data_parallel_size=2"}}) {
    const std::string name = "ranks" + std::to_string(losses.size());
    auto settings = layout;
    settings.insert(settings.end(), {"run.total_steps=3", "model.dtype=float32"});
    auto p = start(name, settings);
    ASSERT_EQ(p.wait(whole_run), 0) << p.err();
    losses.push_back(metrics(name).back().at("train/loss").get<double>());
    EXPECT_NEAR(losses.back(), losses.front(), 1e-4);
  }
}

TEST_F(sft_run, BadInputIsOneLine) {
  write_file(world().dir() / "bad.jsonl", "{\"prompt\": \"a\", \"response\": \"b\"}\n{\"prompt\": \"a\", \"response\": \"\"}\n");
  const std::string bad = "data.train_files=[\"" + (world().dir() / "bad.jsonl").string() + "\"]";
  const std::string other = TROUPE_SOURCE_DIR "/tests/reference/sft/teacher";
  const std::vector<std::pair<std::vector<std::string>, std::string>> cases = {
      {{bad}, "bad.jsonl:2: \"response\" is empty"},
      {{"data.max_response_length=1"}, "data.max_prompt_length + data.max_response_length is 17"},
      {{"data.response_key=none"}, "no key \"none\""},
      {{"run.task=distill"}, "distill.teacher is required"},
      {{"run.task=distill", "distill.teacher=/none"}, "distill.teacher = \"/none\" is not a directory"},
      {{"run.task=distill", "distill.teacher=" + other}, "distill.teacher: its vocabulary has 64 tokens, the model's has 272"},
      {{"distill.top_k=3"}, "distill.top_k belongs to run.task = \"distill\""},
      {{"learner.use_kl_loss=true"}, "learner.use_kl_loss"},
      {{"run.task=dpo"}, "run.task"},
      {{"data.train_batch_size=100", "learner.ppo_mini_batch_size=100"}, "data.train_batch_size"},
  };
  int i = 0;
  for (const auto& [settings, text] : cases)
    for (const char* command : {"train", "check"}) {
      const std::string name = "refused" + std::to_string(i++);
      auto p = start(name, settings, command);
      EXPECT_EQ(p.wait(whole_run), 2) << text << p.out();
      EXPECT_NE(p.err().find(text), std::string::npos) << p.err();
      EXPECT_EQ(p.err().find('\n'), p.err().size() - 1) << p.err();
      EXPECT_FALSE(std::filesystem::exists(world().run_dir(name)));
    }
}

} // namespace
} // namespace troupe
