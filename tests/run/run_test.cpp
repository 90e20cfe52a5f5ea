#include "core/files.hpp"
#include "tests/run/run_fixture.hpp"
#include <csignal>
#include <fstream>
#include <nlohmann/json.hpp>

namespace troupe {
namespace {

/// Of exact/logprob_diff_max, over the steps that have it; -1 when none has.
double largest_difference(const std::filesystem::path& run_dir) {
  double out = -1;
  std::ifstream in(run_dir / "metrics.jsonl");
  for (std::string line; std::getline(in, line);)
    out = std::max(out, nlohmann::json::parse(line).value("exact/logprob_diff_max", -1.0));
  return out;
}

TEST_F(run_files, OneProcessRunLearnsAndIsRepeatable) {
  const auto dir = world().run_dir("reference");
  ASSERT_FALSE(wanted().empty());
  expect_whole("reference");
  EXPECT_NE(wanted(), file_bytes(dir / "checkpoints/step-000005/model.safetensors"));
  for (const char* file : {"config.toml", "log.txt", "report.html", "rollouts/step-000012.jsonl"})
    EXPECT_TRUE(std::filesystem::exists(dir / file)) << file;
  const std::string metrics = file_bytes(dir / "metrics.jsonl");
  for (const char* name : {"critic/rewards/mean", "val/accuracy", "val/pass@4", "sync/version", "timing_s/step", "perf/throughput",
                           "response_length/clip_ratio"})
    EXPECT_NE(metrics.find(name), std::string::npos) << name;
  EXPECT_EQ(largest_difference(dir), 0.0);
  auto again = start("again");
  EXPECT_EQ(again.wait(whole_run), 0) << again.err();
  EXPECT_EQ(again.err(), "");
  expect_whole("again");
}

/// The prompt of a step's first rollout; the tiny tokenizer's ids are bytes.
std::string first_prompt(const std::filesystem::path& run_dir, int step) {
  std::ifstream in(run_dir / ("rollouts/step-00000" + std::to_string(step) + ".jsonl"));
  std::string line, text;
  std::getline(in, line);
  const auto rollout = nlohmann::json::parse(line);
  for (const auto& id : rollout["input_ids"])
    text += char(id.get<int>());
  return text;
}

TEST_F(run_files, TheDateOfTheTemplateIsTheFirstStartsAlsoAfterAResume) {
  const auto model = world().dir() / "dated-model", dir = world().run_dir("dated"), kept = dir / "template_time.txt";
  std::filesystem::copy(world().dir() / "model", model);
  write_file(model / "chat_template.jinja", "{{ strftime_now('%s') }}");
  const std::vector<std::string> settings = {"model.path=" + model.string(), "data.chat_template=always", "run.val_before_train=false"};
  const auto train = [&](const char* steps) {
    auto all = settings;
    all.push_back(std::string("run.total_steps=") + steps);
    auto p = start("dated", all);
    const int code = p.wait(whole_run);
    EXPECT_EQ(p.err(), "") << code;
    return code;
  };
  ASSERT_EQ(train("1"), 0);
  EXPECT_EQ(first_prompt(dir, 1) + "\n", file_bytes(kept));
  write_file(kept, "1000000000\n"); // as if it had begun then
  ASSERT_EQ(train("2"), 0);
  EXPECT_EQ(first_prompt(dir, 2), "1000000000");
  EXPECT_EQ(file_bytes(kept), "1000000000\n");
  write_file(kept, "yesterday\n");
  auto all = settings;
  all.push_back("run.total_steps=3");
  auto p = start("dated", all);
  EXPECT_EQ(p.wait(whole_run), 2);
  EXPECT_NE(p.err().find("template_time.txt: must be one number"), std::string::npos) << p.err();
}

TEST_F(run_files, FinishedRunIsLeftAlone) {
  wanted();
  const auto metrics = file_bytes(world().run_dir("reference") / "metrics.jsonl");
  auto p = start("reference");
  EXPECT_EQ(p.wait(whole_run), 0) << p.err();
  EXPECT_NE(p.out().find("has reached its last step"), std::string::npos);
  EXPECT_EQ(file_bytes(world().run_dir("reference") / "metrics.jsonl"), metrics);
}

TEST_F(run_files, EvalGivesTheNumbersOfStepZero) {
  wanted();
  program p({"eval", world().config().string(), "--threads", "1"}, world().run_dir("eval-output"));
  ASSERT_EQ(p.wait(whole_run), 0) << p.err();
  const std::string first = [] {
    std::ifstream in(world().run_dir("reference") / "metrics.jsonl");
    std::string line;
    std::getline(in, line);
    return line;
  }();
  const auto value = [](const std::string& text) {
    const auto at = text.find("\"val/accuracy\":");
    return at == std::string::npos ? -1.0 : std::stod(text.substr(at + 15));
  };
  EXPECT_GE(value(first), 0);
  EXPECT_EQ(value(p.out()), value(first));
}

TEST_F(run_files, UsedDirectoryAndOtherValuesAreRefused) {
  wanted();
  auto never = start("reference", {"run.resume=never"});
  EXPECT_EQ(never.wait(whole_run), 2);
  EXPECT_NE(never.err().find("run.resume"), std::string::npos) << never.err();
  auto other = start("reference", {"run.seed=6"});
  EXPECT_EQ(other.wait(whole_run), 2);
  EXPECT_NE(other.err().find("run.seed"), std::string::npos) << other.err();
}

TEST_F(run_files, PlacementThatCannotBeIsRefused) {
  const std::vector<std::pair<std::vector<std::string>, std::string>> cases = {
      {{"placement.processes=true", "weightsync.channel=shared"}, "weightsync.channel"},
      {{"weightsync.channel=zmq"}, "weightsync.channel"},
      {{"placement.processes=true", "placement.listen=\"0.0.0.0:0\""}, "no certificates"},
      {{"placement.processes=true", "placement.listen=\"127.0.0.1:99999\""}, "placement.listen"},
  };
  int i = 0;
  for (const auto& [settings, text] : cases) {
    const std::string name = "refused" + std::to_string(i++);
    auto p = start(name, settings);
    EXPECT_EQ(p.wait(whole_run), 2) << text;
    EXPECT_NE(p.err().find(text), std::string::npos) << p.err();
    EXPECT_EQ(p.err().find('\n'), p.err().size() - 1) << p.err();
    EXPECT_FALSE(std::filesystem::exists(world().run_dir(name)));
  }
}

TEST_F(run_files, TwoTrainsNeverShareADirectory) {
  auto first = start("shared");
  ASSERT_TRUE(reaches("shared", 0));
  auto second = start("shared");
  EXPECT_EQ(second.wait(whole_run), 2);
  EXPECT_NE(second.err().find("in use"), std::string::npos) << second.err();
}

TEST_F(run_files, ProcessesMakeTheSameBits) {
  for (const int rollouts : {1, 2}) {
    const std::string name = "processes" + std::to_string(rollouts);
    auto p = start(name, processes(rollouts));
    ASSERT_EQ(p.wait(whole_run), 0) << p.err() << file_bytes(world().run_dir(name) / "log.txt");
    EXPECT_EQ(joined(world().run_dir(name), "rollout").size(), std::size_t(rollouts));
    expect_whole(name);
  }
}

TEST_F(run_files, RolloutsOfOneProcessMakeTheSameBits) {
  const std::string name = "three-rollouts";
  auto p = start(name, {"rollout.actors=3"});
  ASSERT_EQ(p.wait(whole_run), 0) << p.err();
  EXPECT_EQ(joined(world().run_dir(name), "rollout").size(), 3u);
  expect_whole(name);
}

/// A worker of a role meets its fate in the middle of the run; another takes its place.
void disturb(const std::string& name, int rollouts, const std::string& role, int signal) {
  const auto dir = run_files::world().run_dir(name);
  auto p = run_files::start(name, run_files::processes(rollouts));
  ASSERT_TRUE(run_files::reaches(name, 6)) << file_bytes(dir / "log.txt");
  const auto before = joined(dir, role);
  ASSERT_FALSE(before.empty());
  ASSERT_EQ(kill(before.back(), signal), 0);
  ASSERT_EQ(p.wait(whole_run), 0) << p.err() << file_bytes(dir / "log.txt");
  if (rollouts == 1 || role != "rollout") { // one of two may finish the run before the other's replacement joins
    EXPECT_GT(joined(dir, role).size(), before.size());
  }
  EXPECT_FALSE(alive(before.back()));
  run_files::expect_whole(name);
}

TEST_F(run_files, OnlyRolloutKilled) { disturb("rollout-killed", 1, "rollout", SIGKILL); }
TEST_F(run_files, OneOfTwoRolloutsKilled) { disturb("rollout-of-two-killed", 2, "rollout", SIGKILL); }
TEST_F(run_files, RolloutStopped) { disturb("rollout-stopped", 1, "rollout", SIGSTOP); }
TEST_F(run_files, LearnerKilled) { disturb("learner-killed", 1, "learner", SIGKILL); }

TEST_F(run_files, TrainKilledAndResumed) {
  for (const bool in_processes : {false, true}) {
    const std::string name = in_processes ? "train-killed-processes" : "train-killed";
    const auto dir = world().run_dir(name);
    const auto settings = in_processes ? processes(1) : std::vector<std::string>{};
    auto p = start(name, settings);
    ASSERT_TRUE(reaches(name, 7)) << p.err();
    p.signal(SIGKILL);
    EXPECT_EQ(p.wait(whole_run), 128 + SIGKILL);
    if (in_processes) {
      const pid_t learner = joined(dir, "learner").back(), rollout = joined(dir, "rollout").back();
      EXPECT_TRUE(until([&] { return !alive(learner) && !alive(rollout); }, 20s));
    }
    auto again = start(name, settings);
    ASSERT_EQ(again.wait(whole_run), 0) << again.err();
    EXPECT_NE(again.out().find("going on after step"), std::string::npos) << again.out();
    expect_whole(name);
  }
}

TEST_F(run_files, InterruptedRunSavesAndGoesOn) {
  for (const int signal : {SIGINT, SIGTERM}) {
    const std::string name = "interrupted" + std::to_string(signal);
    auto p = start(name);
    ASSERT_TRUE(reaches(name, 6)) << p.err();
    p.signal(signal);
    EXPECT_EQ(p.wait(whole_run), 1);
    EXPECT_NE(p.err().find("stopped after step"), std::string::npos) << p.err();
    const int last = recorded_steps(world().run_dir(name)).back();
    char checkpoint[64];
    std::snprintf(checkpoint, sizeof checkpoint, "checkpoints/step-%06d", last);
    EXPECT_TRUE(std::filesystem::exists(world().run_dir(name) / checkpoint));
    auto again = start(name);
    ASSERT_EQ(again.wait(whole_run), 0) << again.err();
    expect_whole(name);
  }
}

TEST_F(run_files, DamagedCheckpointIsPassedOver) {
  const std::string name = "damaged";
  const auto dir = world().run_dir(name);
  auto p = start(name);
  ASSERT_TRUE(reaches(name, 12));
  p.signal(SIGKILL);
  p.wait(whole_run);
  const auto file = dir / "checkpoints/step-000010/model.safetensors";
  ASSERT_TRUE(std::filesystem::exists(file));
  {
    std::fstream f(file, std::ios::in | std::ios::out | std::ios::binary);
    f.seekp(-5, std::ios::end);
    f.put(char(0x5A));
  }
  auto again = start(name);
  ASSERT_EQ(again.wait(whole_run), 0) << again.err();
  EXPECT_NE(file_bytes(dir / "log.txt").find("step-000010"), std::string::npos);
  expect_whole(name);
}

TEST_F(run_files, EarlierCheckpointIsGoneOnFrom) {
  wanted();
  const std::string name = "earlier";
  auto p = start(name);
  ASSERT_EQ(p.wait(whole_run), 0) << p.err();
  auto arguments_ = arguments(name, {});
  const auto checkpoint = world().run_dir(name) / "checkpoints/step-000010";
  arguments_.insert(arguments_.end(), {"--resume", checkpoint.string()});
  program again(arguments_, world().run_dir(name + "-output"));
  ASSERT_EQ(again.wait(whole_run), 0) << again.err();
  EXPECT_NE(again.out().find("going on after step 10"), std::string::npos) << again.out();
  expect_whole(name);
}

TEST_F(run_files, WorkerOfNoRunIsRefused) {
  program p({"worker", "--join", "127.0.0.1:9"}, world().run_dir("worker-output"));
  EXPECT_EQ(p.wait(whole_run), 2);
  EXPECT_NE(p.err().find("port 9"), std::string::npos) << p.err();
}

} // namespace
} // namespace troupe
