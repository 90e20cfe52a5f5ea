// Whole runs in which ranks share the models.
#include "tests/run/tiny_run.hpp"
#include <algorithm>
#include <fstream>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

namespace troupe {
namespace {

using namespace std::chrono_literals;

constexpr auto whole_run = 240s; // generous: a loaded machine

struct parallel_runs : ::testing::Test {
  static tiny_world& world() {
    static tiny_world w;
    return w;
  }
  static program start(const std::string& command, const std::string& name, const std::vector<std::string>& settings) {
    std::vector<std::string> arguments = {command, world().config().string()};
    if (command == "train")
      arguments.insert(arguments.end(), {"--threads", "1"});
    for (const auto& s : settings)
      arguments.insert(arguments.end(), {"--set", s});
    for (const std::string& s :
         {"run.dir=" + world().run_dir(name).string(), std::string("run.total_steps=4"), std::string("run.test_freq=0")})
      arguments.insert(arguments.end(), {"--set", s});
    return program(arguments, world().run_dir(name + "-output"));
  }
  /// exact/logprob_diff_max of every step.
  static std::vector<double> differences(const std::string& name) {
    std::vector<double> out;
    std::ifstream in(world().run_dir(name) / "metrics.jsonl");
    for (std::string line; std::getline(in, line);)
      if (const auto step = nlohmann::json::parse(line); step.contains("exact/logprob_diff_max"))
        out.push_back(step["exact/logprob_diff_max"].get<double>());
    return out;
  }
  static void expect_exact(const std::string& name, const std::vector<std::string>& settings) {
    auto run = start("train", name, settings);
    ASSERT_EQ(run.wait(whole_run), 0) << run.err();
    EXPECT_EQ(differences(name), std::vector<double>(4, 0.0)) << name;
    EXPECT_FALSE(weights(name).empty());
  }
  static std::string weights(const std::string& name) {
    return file_bytes(world().run_dir(name) / "checkpoints/step-000004/model.safetensors");
  }
};

const std::vector<std::string> two_ranks = {"learner.tensor_parallel_size=2", "rollout.tensor_parallel_size=2"};

TEST_F(parallel_runs, TwoRanksAreExactAndTheirWeightsAreTheSameInManyProcesses) {
  expect_exact("tp2", two_ranks);
  auto many = two_ranks;
  many.push_back("placement.processes=true");
  expect_exact("tp2-processes", many);
  EXPECT_TRUE(weights("tp2") == weights("tp2-processes"));
}

TEST_F(parallel_runs, StagesSlicesOfRowsAndReplicasAreExact) {
  auto settings = two_ranks;
  for (const char* s : {"learner.pipeline_parallel_size=2", "learner.data_parallel_size=2", "learner.sequence_parallel=true",
                        "model.dtype=bfloat16", "learner.use_kl_loss=true"})
    settings.emplace_back(s);
  expect_exact("tp2-pp2-dp2-sp", settings);
}

// A model cut in two with a bridge between the halves: a stage may end at the bridge.
TEST_F(parallel_runs, ASplitModelTrainsItsBridgeInAnyLayout) {
  const auto model = world().dir() / "model", split = world().dir() / "split", config = world().dir() / "split.json";
  const auto vocab = nlohmann::json::parse(file_bytes(model / "config.json")).at("vocab_size");
  std::ofstream(config) << nlohmann::json{{"architectures", {"CustomSplitLLamaForCausalLM"}},
                                          {"path8b", model.string()},
                                          {"path70b", model.string()},
                                          {"num_layers_8", 2},
                                          {"num_layers_70", 1},
                                          {"vocab_size", vocab},
                                          {"mlp", true}};
  program convert({"convert", "split", config.string(), split.string()}, world().dir() / "convert");
  ASSERT_EQ(convert.wait(60s), 0) << convert.err();
  const std::string path = "model.path=" + split.string(), bridge = "model.trainable=[\"model.adapter.*\"]";
  expect_exact("split-bridge",
               {path, bridge, two_ranks[0], two_ranks[1], "learner.pipeline_parallel_size=3", "learner.sequence_parallel=true"});
  expect_exact("split-all", {path, two_ranks[0], two_ranks[1], "learner.data_parallel_size=2", "placement.processes=true"});
  EXPECT_NE(weights("split-bridge"), weights("split-all"));
}

TEST_F(parallel_runs, OtherRanksInTheRolloutRunWithAWarning) {
  auto check = start("check", "differ", {"learner.tensor_parallel_size=2"});
  EXPECT_EQ(check.wait(60s), 0) << check.err();
  EXPECT_NE(check.out().find("exactness is then not promised"), std::string::npos) << check.out();
  EXPECT_NE(check.out().find("learner 2 ranks (tensor 2 x pipeline 1 x data 1)"), std::string::npos) << check.out();
  auto run = start("train", "differ", {"learner.tensor_parallel_size=2"});
  ASSERT_EQ(run.wait(whole_run), 0) << run.err();
  const auto all = differences("differ");
  ASSERT_EQ(all.size(), 4U);
  EXPECT_LT(*std::max_element(all.begin(), all.end()), 0.1); // bfloat16's rounding
}

TEST_F(parallel_runs, LayoutsThatCannotBeAreRefusedNamingTheKey) {
  const std::vector<std::pair<std::string, std::string>> table = {
      {"learner.tensor_parallel_size=3", "learner.tensor_parallel_size = 3: tensor model.layers.0.self_attn.q_proj.weight has 4 heads"},
      {"rollout.tensor_parallel_size=8", "rollout.tensor_parallel_size = 8: tensor model.layers.0.self_attn.q_proj.weight has 4 heads"},
      {"learner.pipeline_parallel_size=6", "learner.pipeline_parallel_size = 6: the model has 5 blocks"},
      {"learner.sequence_parallel=true", "learner.sequence_parallel = true"},
  };
  for (const auto& [setting, message] : table) {
    auto check = start("check", "refused", {setting});
    EXPECT_EQ(check.wait(60s), 2) << setting;
    const std::string text = check.err();
    EXPECT_NE(text.find(message), std::string::npos) << text;
    EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), 1) << text;
  }
}

} // namespace
} // namespace troupe
