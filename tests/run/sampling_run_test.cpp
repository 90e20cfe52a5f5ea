// What [rollout] says of sampling, in whole runs.
#include "tests/run/run_fixture.hpp"
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

namespace troupe {
namespace {

using nlohmann::json;

struct sampling_run : run_files {
  static std::vector<json> rows_of(const std::filesystem::path& file) {
    std::vector<json> out;
    std::ifstream in(file);
    for (std::string line; std::getline(in, line);)
      out.push_back(json::parse(line));
    return out;
  }
  static std::vector<json> rollouts(const std::string& name) { return rows_of(world().run_dir(name) / "rollouts/step-000001.jsonl"); }
  static std::string weights(const std::string& name) {
    return file_bytes(world().run_dir(name) / "checkpoints/step-000002/model.safetensors");
  }
  static void train(const std::string& name, std::vector<std::string> settings) {
    settings.emplace_back("run.total_steps=2");
    auto p = start(name, settings);
    ASSERT_EQ(p.wait(whole_run), 0) << p.err() << file_bytes(world().run_dir(name) / "log.txt");
    for (const auto& step : rows_of(world().run_dir(name) / "metrics.jsonl")) {
      EXPECT_EQ(step.value("exact/logprob_diff_max", 0.0), 0.0) << step;
    }
  }
  /// The rows that a command makes of these.
  static std::vector<json> answers(const std::string& command, const std::vector<json>& asked, const std::vector<std::string>& options) {
    const auto at = world().dir() / (command + "-asked.jsonl");
    std::ofstream out(at);
    for (const auto& row : asked)
      out << row << '\n';
    out.close();
    std::vector<std::string> all = {command,
                                    "--threads",
                                    "1",
                                    "--dtype",
                                    "bfloat16",
                                    "--model",
                                    (world().dir() / "model").string(),
                                    "--input",
                                    at.string(),
                                    "--output",
                                    at.string() + ".answers"};
    all.insert(all.end(), options.begin(), options.end());
    program p(all, world().run_dir(command + "-output"));
    EXPECT_EQ(p.wait(whole_run), 0) << p.err();
    return rows_of(at.string() + ".answers");
  }
};

TEST_F(sampling_run, StopAndBiasAreThoseOfGenerate) {
  // So large a bias leaves the draw no choice: rollouts and generate draw alike.
  train("forced", {"rollout.logit_bias={97=100}", "rollout.stop=[\"\\n\", \"aaa\"]"});
  const auto made = rollouts("forced");
  ASSERT_EQ(made.size(), 64u);
  std::vector<json> asked;
  for (const auto& row : made)
    asked.push_back({{"input_ids", row["input_ids"]}});
  const auto want = answers("generate", asked, {"--logit-bias", "97:100", "--stop", "aaa", "--stop", "\n", "--max-tokens", "40"});
  for (std::size_t i = 0; i < made.size(); ++i) {
    EXPECT_EQ(made[i]["output_ids"], json({97, 97, 97}));
    EXPECT_EQ(made[i]["reward"], 1.0) << "the reward is of the text before the stop";
    for (const char* key : {"output_ids", "logprobs", "text", "finish_reason"})
      EXPECT_EQ(made[i][key], want.at(i)[key]) << key;
  }
}

TEST_F(sampling_run, SamplesEndAtAStopAndKeepTheirIds) {
  const std::vector<std::string> settings = {"rollout.logit_bias={97=50, 98=50, 195=50, 169=50}", "rollout.stop=[\"ab\", \"é\"]"};
  train("stopped", settings);
  const auto made = rollouts("stopped");
  std::vector<json> asked;
  std::size_t stopped = 0, across = 0;
  for (const auto& row : made) {
    std::string bytes;
    for (const auto& id : row["output_ids"])
      bytes += char(id.get<int>());
    const auto at = std::min(bytes.find("ab"), bytes.find("é"));
    const bool ended = row["finish_reason"] == "stop";
    stopped += ended;
    across += ended && bytes.ends_with("é");
    EXPECT_EQ(ended, at != bytes.npos) << row;
    if (ended) {
      EXPECT_EQ(at + 2, bytes.size()) << row;
      EXPECT_EQ(row["reward"], at == 0 ? 1.0 : 0.0);
    }
    json ids = row["input_ids"];
    ids.insert(ids.end(), row["output_ids"].begin(), row["output_ids"].end());
    asked.push_back({{"input_ids", ids}, {"from", row["input_ids"].size()}});
  }
  EXPECT_GT(stopped, 50u);
  EXPECT_GT(across, 5u) << "half a character is a token";
  const auto scores = answers("score", asked, {});
  for (std::size_t i = 0; i < made.size(); ++i)
    EXPECT_EQ(made[i]["logprobs"], scores.at(i)["logprobs"]) << "of the softmax without the bias";
  auto in_processes = settings;
  for (const auto& s : processes(2))
    in_processes.push_back(s);
  train("stopped-processes", in_processes);
  EXPECT_EQ(rollouts("stopped-processes"), made);
  ASSERT_FALSE(weights("stopped").empty());
  EXPECT_TRUE(weights("stopped-processes") == weights("stopped"));
}

TEST_F(sampling_run, IdsOutsideTheVocabularyAreRefused) {
  const std::pair<std::string, std::string> cases[] = {
      {"rollout.logit_bias={5=1, 272=1}", "rollout.logit_bias holds 272, and the model's vocabulary has 272 tokens; give ids below that"},
      {"rollout.stop_token_ids=[300]", "rollout.stop_token_ids holds 300, and the model's vocabulary has 272 tokens; give ids below that"},
      {"rollout.logit_bias={5=200}", "rollout.logit_bias = { 5 = 200.0 } is out of range: -100 <= value <= 100"},
      {"rollout.stop=[\"\"]", "rollout.stop = [\"\"] has an item that is empty"},
  };
  for (const auto& [setting, text] : cases) {
    auto p = start("refused-sampling", {setting});
    EXPECT_EQ(p.wait(whole_run), 2) << setting;
    EXPECT_NE(p.err().find(text), std::string::npos) << p.err();
    EXPECT_EQ(n_lines(p.err()), 1u);
    EXPECT_FALSE(std::filesystem::exists(world().run_dir("refused-sampling")));
  }
}

} // namespace
} // namespace troupe
