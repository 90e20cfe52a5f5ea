// Whole runs whose weights go over NCCL: learner and rollouts are processes with a GPU, or with parts of one.
#include "model/parallel/device_test_support.hpp"
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

struct nccl_run : ::testing::Test {
  static tiny_world& world() {
    static tiny_world w;
    return w;
  }
  void SetUp() override {
    if (const std::string why = prepare_device_ranks(3); !why.empty())
      GTEST_SKIP() << why;
  }
  static program start(const std::string& name, const settings& some) {
    std::vector<std::string> arguments = {"train", world().config().string(), "--threads", "1", "--device", "cuda"};
    for (const auto& s : some)
      arguments.insert(arguments.end(), {"--set", s});
    for (const std::string& s : {"run.dir=" + world().run_dir(name).string(), "run.total_steps=" + std::to_string(last_step),
                                 std::string("run.save_freq=2"), std::string("run.test_freq=0"), std::string("model.dtype=bfloat16")})
      arguments.insert(arguments.end(), {"--set", s});
    return program(arguments, world().run_dir(name + "-output"));
  }
  static settings over(const std::string& channel, int rollouts) {
    return {"placement.processes=true", "weightsync.channel=\"" + channel + '"', "rollout.actors=" + std::to_string(rollouts)};
  }
  static std::string log_of(const std::string& name) { return file_bytes(world().run_dir(name) / "log.txt"); }
  static std::vector<nlohmann::json> steps(const std::string& name) {
    std::vector<nlohmann::json> out;
    std::ifstream in(world().run_dir(name) / "metrics.jsonl");
    for (std::string line; std::getline(in, line);)
      out.push_back(nlohmann::json::parse(line));
    return out;
  }
  /// The weights of the run in one process, where nothing is sent.
  static const std::string& wanted() {
    static const std::string weights = [] {
      auto p = start("one-process", {});
      EXPECT_EQ(p.wait(whole_run), 0) << p.err();
      return final_weights(world().run_dir("one-process"));
    }();
    return weights;
  }
  static void expect_whole(const std::string& name) {
    ASSERT_FALSE(wanted().empty());
    EXPECT_TRUE(final_weights(world().run_dir(name)) == wanted()) << name << ": other weights than the one-process run";
    for (const auto& step : steps(name))
      EXPECT_EQ(step.value("exact/logprob_diff_max", 0.0), 0.0) << step;
  }
};

TEST_F(nccl_run, EndsInTheWeightsOfOneProcess) {
  for (const auto& [channel, rollouts] : {std::pair{"nccl", 1}, std::pair{"auto", 2}, std::pair{"zmq", 1}}) {
    const std::string name = channel + std::to_string(rollouts);
    SCOPED_TRACE(name);
    auto p = start(name, over(channel, rollouts));
    ASSERT_EQ(p.wait(whole_run), 0) << p.err() << log_of(name);
    expect_whole(name);
    EXPECT_GT(steps(name).at(1).value("sync/bytes", 0.0), 0.0);
  }
}

TEST_F(nccl_run, AnyProcessMayDie) {
  for (const char* role : {"rollout", "learner"}) {
    const std::string name = std::string("killed-") + role;
    SCOPED_TRACE(name);
    auto p = start(name, over("nccl", 2));
    ASSERT_TRUE(until([&] {
      const auto done = recorded_steps(world().run_dir(name));
      return !done.empty() && done.back() >= 2;
    })) << log_of(name);
    const auto pids = joined(world().run_dir(name), role);
    ASSERT_FALSE(pids.empty());
    kill(pids.back(), SIGKILL);
    ASSERT_EQ(p.wait(whole_run), 0) << p.err() << log_of(name);
    EXPECT_GT(joined(world().run_dir(name), role).size(), pids.size()) << "another one takes its place";
    expect_whole(name);
  }
}

} // namespace
} // namespace troupe
