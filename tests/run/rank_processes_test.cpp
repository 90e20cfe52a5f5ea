// Whole runs in which each rank of a model is a process.
#include "tests/run/tiny_run.hpp"
#include <csignal>
#include <fstream>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

namespace troupe {
namespace {

using namespace std::chrono_literals;
using settings = std::vector<std::string>;

constexpr auto whole_run = 240s; // generous: a loaded machine
constexpr int last_step = 6;

struct rank_processes : ::testing::Test {
  static tiny_world& world() {
    static tiny_world w;
    return w;
  }
  static program start(const std::string& name, const settings& some) {
    std::vector<std::string> arguments = {"train", world().config().string(), "--threads", "1"};
    for (const auto& s : some)
      arguments.insert(arguments.end(), {"--set", s});
    for (const std::string& s : {"run.dir=" + world().run_dir(name).string(), "run.total_steps=" + std::to_string(last_step),
                                 std::string("run.save_freq=2"), std::string("run.test_freq=0")})
      arguments.insert(arguments.end(), {"--set", s});
    return program(arguments, world().run_dir(name + "-output"));
  }
  static settings in_processes(settings some) {
    some.emplace_back("placement.processes=true");
    return some;
  }
  static void run_whole(const std::string& name, const settings& some) {
    auto p = start(name, some);
    ASSERT_EQ(p.wait(whole_run), 0) << p.err() << log_of(name);
  }
  static std::string log_of(const std::string& name) { return file_bytes(world().run_dir(name) / "log.txt"); }
  /// What does not depend on the time, of every step.
  static std::vector<nlohmann::json> results(const std::string& name) {
    std::vector<nlohmann::json> out;
    std::ifstream in(world().run_dir(name) / "metrics.jsonl");
    for (std::string line; std::getline(in, line);) {
      auto step = nlohmann::json::parse(line);
      for (auto it = step.begin(); it != step.end();)
        it = it.key().starts_with("timing_s/") || it.key().starts_with("sync/") || it.key().starts_with("perf/") ? step.erase(it) : ++it;
      out.push_back(std::move(step));
    }
    return out;
  }
  static void expect_same_checkpoints(const std::string& name, const std::string& other) {
    for (int step = 2; step <= last_step; step += 2)
      for (const char* file : {"model.safetensors", "optimizer.safetensors", "config.json"}) {
        const auto at = std::filesystem::path("checkpoints") / ("step-00000" + std::to_string(step)) / file;
        const std::string wanted = file_bytes(world().run_dir(other) / at);
        EXPECT_FALSE(wanted.empty()) << at;
        EXPECT_TRUE(file_bytes(world().run_dir(name) / at) == wanted) << name << ": " << at;
      }
  }
  static void expect_as_threads(const std::string& name, const settings& some, std::size_t learners, std::size_t rollouts) {
    SCOPED_TRACE(name);
    run_whole(name + "-threads", some);
    run_whole(name, in_processes(some));
    EXPECT_EQ(joined(world().run_dir(name), "learner").size(), learners);
    EXPECT_EQ(joined(world().run_dir(name), "rollout").size(), rollouts);
    const auto threads = results(name + "-threads"), processes = results(name);
    EXPECT_EQ(processes, threads);
    for (const auto& step : processes)
      EXPECT_EQ(step.value("exact/logprob_diff_max", 0.0), 0.0) << step;
    expect_same_checkpoints(name, name + "-threads");
  }
};

const settings stages = {"learner.tensor_parallel_size=2", "learner.pipeline_parallel_size=2", "rollout.tensor_parallel_size=2"};

TEST_F(rank_processes, StagesOfTwoRanksGiveWhatThreadsGive) {
  auto some = stages;
  some.insert(some.end(), {"learner.sequence_parallel=true", "model.dtype=bfloat16", "learner.use_kl_loss=true"});
  expect_as_threads("stages", some, 4, 2);
}

TEST_F(rank_processes, ReplicasGiveWhatThreadsGive) {
  expect_as_threads("replicas",
                    {"learner.data_parallel_size=2", "learner.ppo_max_token_len=300", "learner.entropy_coeff=0.01", "rollout.actors=2"}, 2,
                    2);
}

TEST_F(rank_processes, StagesThatTrainNothingSendNothing) {
  expect_as_threads(
      "frozen",
      {"learner.pipeline_parallel_size=3", "model.trainable=[\"model.layers.1.mlp.*\", \"model.norm.weight\"]", "model.dtype=bfloat16"}, 3,
      1);
}

TEST_F(rank_processes, AnyRanksDeathEndsInTheSameWeights) {
  run_whole("undisturbed", stages);
  struct death {
    const char* role;
    std::size_t rank;
    int signal;
  };
  for (const auto& [role, rank, signal] :
       {death{"learner", 3, SIGKILL}, death{"learner", 0, SIGKILL}, death{"rollout", 1, SIGKILL}, death{"learner", 1, SIGSTOP}}) {
    const std::string name = std::string(role) + std::to_string(rank) + '-' + std::to_string(signal);
    SCOPED_TRACE(name);
    const auto dir = world().run_dir(name);
    auto p = start(name, in_processes(stages));
    ASSERT_TRUE(until([&] {
      const auto steps = recorded_steps(dir);
      return !steps.empty() && steps.back() >= 3;
    })) << log_of(name);
    const std::string line = "worker " + std::string(role) + ' ' + std::to_string(rank) + " pid ";
    const std::string log = log_of(name);
    const auto at = log.find(line);
    ASSERT_NE(at, std::string::npos) << log;
    kill(pid_t(std::stol(log.substr(at + line.size()))), signal);
    ASSERT_EQ(p.wait(whole_run), 0) << p.err() << log_of(name);
    const std::size_t n = std::string(role) == "learner" ? 4 : 2;
    EXPECT_EQ(joined(dir, role).size(), 2 * n) << "all of its ranks are replaced: " << log_of(name);
    EXPECT_EQ(results(name), results("undisturbed"));
    expect_same_checkpoints(name, "undisturbed");
  }
}

TEST_F(rank_processes, AFailureOnAnotherRankEndsTheRunWithItsLine) {
  const auto dir = world().dir() / "nan-model";
  std::filesystem::copy(world().dir() / "model", dir, std::filesystem::copy_options::recursive);
  std::string bytes = file_bytes(dir / "model.safetensors");
  bytes.replace(bytes.size() - 4, 4, std::string("\x00\x00\xc0\x7f", 4)); // the head's last element: the last stage's
  std::ofstream(dir / "model.safetensors", std::ios::binary) << bytes;
  auto some = in_processes(stages);
  some.push_back("model.path=" + dir.string());
  auto p = start("nan", some);
  EXPECT_EQ(p.wait(whole_run), 2);
  EXPECT_NE(p.err().find("tensor lm_head.weight holds NaN"), std::string::npos) << p.err();
  EXPECT_EQ(n_lines(p.err()), 1u) << p.err();
}

} // namespace
} // namespace troupe
