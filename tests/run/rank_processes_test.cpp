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
  static program start(const std::string& name, const settings& some, int steps = last_step) {
    std::vector<std::string> arguments = {"train", world().config().string(), "--threads", "1"};
    for (const auto& s : some)
      arguments.insert(arguments.end(), {"--set", s});
    for (const std::string& s : {"run.dir=" + world().run_dir(name).string(), "run.total_steps=" + std::to_string(steps),
                                 std::string("run.save_freq=2"), std::string("run.test_freq=0")})
      arguments.insert(arguments.end(), {"--set", s});
    return program(arguments, world().run_dir(name + "-output"));
  }
  static settings in_processes(settings some) {
    some.emplace_back("placement.processes=true");
    return some;
  }
  static void run_whole(const std::string& name, const settings& some, int steps = last_step) {
    auto p = start(name, some, steps);
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
  /// The process that is that rank, as soon as `step` is recorded.
  static pid_t rank_at(const std::string& name, const std::string& role, std::size_t rank, int step) {
    EXPECT_TRUE(until([&] {
      const auto steps = recorded_steps(world().run_dir(name));
      return !steps.empty() && steps.back() >= step;
    })) << log_of(name);
    const std::string line = "worker " + role + ' ' + std::to_string(rank) + " pid ", log = log_of(name);
    const auto at = log.find(line);
    EXPECT_NE(at, std::string::npos) << log;
    return at == std::string::npos ? 0 : pid_t(std::stol(log.substr(at + line.size())));
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
    const pid_t victim = rank_at(name, role, rank, 3);
    ASSERT_GT(victim, 0);
    kill(victim, signal);
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

// Ranks that were started by hand are not `train`'s to kill: they end by themselves, each with its line.
TEST_F(rank_processes, RanksThatWereStartedByHandEndWithTheirOthers) {
  auto some = in_processes({"rollout.tensor_parallel_size=2", "learner.tensor_parallel_size=2", "placement.local_workers=2"});
  auto p = start("by-hand", some);
  const std::string words = "workers join with: troupe worker --join ";
  ASSERT_TRUE(until([&] { return joined(world().run_dir("by-hand"), "learner").size() == 2; })) << log_of("by-hand");
  const std::string log = log_of("by-hand");
  const auto at = log.find(words) + words.size();
  const std::string where = log.substr(at, log.find('\n', at) - at);
  const auto worker = [&](int i) {
    return std::make_unique<program>(std::vector<std::string>{"worker", "--join", where, "--threads", "1"},
                                     world().run_dir("hand" + std::to_string(i)));
  };
  const auto first = worker(0), second = worker(1);
  const pid_t victim = rank_at("by-hand", "rollout", 1, 2);
  ASSERT_TRUE(victim == first->pid() || victim == second->pid());
  program& other = victim == first->pid() ? *second : *first;
  kill(victim, SIGKILL);
  EXPECT_EQ(other.wait(whole_run), 1);
  EXPECT_EQ(other.err(), "troupe: another process that shares this worker's model is gone: this worker ends\n");
  const auto third = worker(2), fourth = worker(3);
  ASSERT_EQ(p.wait(whole_run), 0) << p.err() << log_of("by-hand");
  for (program* w : {third.get(), fourth.get()}) {
    EXPECT_EQ(w->wait(whole_run), 0);
    EXPECT_EQ(w->err(), "");
  }
  run_whole("by-hand-threads", {"rollout.tensor_parallel_size=2", "learner.tensor_parallel_size=2"});
  expect_same_checkpoints("by-hand", "by-hand-threads");
}

// ---- sft, distill: `train` is the first rank ----

struct supervised_processes : rank_processes {
  static constexpr int steps = 40;
  static settings rows() {
    const auto file = world().dir() / "rows.jsonl";
    if (!std::filesystem::exists(file)) {
      std::ofstream out(file);
      for (int i = 0; i < 20; ++i)
        out << R"({"prompt": "say )" << i << R"(", "response": "I say )" << i << "\"}\n";
    }
    const std::string list = "[\"" + file.string() + "\"]";
    return {"data.train_files=" + list, "data.val_files=" + list, "model.dtype=bfloat16"};
  }
  static settings tuning() {
    auto some = rows();
    some.insert(some.end(), {"run.task=sft", "learner.tensor_parallel_size=2", "learner.pipeline_parallel_size=2"});
    return some;
  }
  /// Of the undisturbed run over threads.
  static const std::string& wanted() {
    static const std::string files = [] {
      run_whole("sft-threads", tuning(), steps);
      return final_files("sft-threads");
    }();
    return files;
  }
  static std::string final_files(const std::string& name) {
    const auto dir = world().run_dir(name) / "checkpoints" / "step-000040";
    return file_bytes(dir / "model.safetensors") + file_bytes(dir / "optimizer.safetensors");
  }
};

TEST_F(supervised_processes, AreWhatThreadsAreAndOutliveAnyRanksDeath) {
  ASSERT_FALSE(wanted().empty());
  for (const bool death : {false, true}) {
    const std::string name = death ? "sft-death" : "sft";
    SCOPED_TRACE(name);
    auto p = start(name, in_processes(tuning()), steps);
    if (death) {
      const pid_t victim = rank_at(name, "learner", 3, 5);
      ASSERT_GT(victim, 0);
      kill(victim, SIGKILL);
    }
    ASSERT_EQ(p.wait(whole_run), 0) << p.err() << log_of(name);
    EXPECT_EQ(p.err(), "");
    EXPECT_EQ(joined(world().run_dir(name), "learner").size(), death ? 6u : 3u) << log_of(name);
    EXPECT_EQ(results(name), results("sft-threads"));
    EXPECT_TRUE(final_files(name) == wanted());
  }
}

TEST_F(supervised_processes, LearnFromATeacherAsThreadsDo) {
  for (const int top : {0, 4}) {
    auto some = rows();
    const std::string name = "distill" + std::to_string(top);
    some.insert(some.end(), {"run.task=distill", "distill.teacher=" + (world().dir() / "model").string(),
                             "distill.top_k=" + std::to_string(top), "learner.data_parallel_size=2"});
    run_whole(name + "-threads", some);
    run_whole(name, in_processes(some));
    EXPECT_EQ(results(name), results(name + "-threads"));
    expect_same_checkpoints(name, name + "-threads");
  }
}

TEST_F(supervised_processes, EndWithTheSignalAndGoOn) {
  const auto some = in_processes(tuning());
  {
    auto p = start("stopped", some, steps);
    ASSERT_GT(rank_at("stopped", "learner", 1, 3), 0);
    p.signal(SIGINT);
    EXPECT_EQ(p.wait(whole_run), 1);
    EXPECT_NE(p.err().find("stopped after step"), std::string::npos) << p.err();
  }
  run_whole("stopped", some, steps);
  EXPECT_TRUE(final_files("stopped") == wanted());
}

} // namespace
} // namespace troupe
