#include "tests/run/run_fixture.hpp"
#include <algorithm>
#include <csignal>
#include <fstream>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

namespace troupe {
namespace {

namespace fs = std::filesystem;

/// Steps of thousands of samples: a signal finds them under way. Step 0 is recorded at the moment that generation begins.
std::vector<std::string> long_steps(bool in_processes) {
  std::vector<std::string> out = {"data.train_batch_size=32", "learner.ppo_mini_batch_size=32", "rollout.n=64", "rollout.max_num_seqs=64",
                                  "run.total_steps=2"};
  if (in_processes)
    out.emplace_back("placement.processes=true");
  return out;
}

void expect_one_line(const std::string& text, const std::vector<std::string>& parts) {
  EXPECT_EQ(n_lines(text), 1u) << text;
  for (const auto& part : parts)
    EXPECT_NE(text.find(part), std::string::npos) << "no \"" << part << "\" in: " << text;
}

/// What a checkpoint that was not finished must not leave.
void expect_no_leftovers(const fs::path& run_dir) {
  std::error_code absent;
  for (const auto& entry : fs::recursive_directory_iterator(run_dir, absent)) {
    const std::string name = entry.path().filename().string();
    EXPECT_TRUE(name.find(".part") == std::string::npos && name.find(".tmp") == std::string::npos) << entry.path();
  }
}

bool logs(const fs::path& run_dir, const std::string& text) { return file_bytes(run_dir / "log.txt").find(text) != std::string::npos; }

// ---- signals ----

TEST_F(run_files, SecondSignalStopsAtOnce) {
  for (const bool in_processes : {false, true}) {
    for (const bool updating : {false, true}) {
      const std::string name = std::string("twice") + (in_processes ? "-processes" : "") + (updating ? "-update" : "-generation");
      SCOPED_TRACE(name);
      const auto dir = world().run_dir(name);
      auto p = start(name, long_steps(in_processes));
      ASSERT_TRUE(updating ? until([&] { return fs::exists(dir / "rollouts/step-000001.jsonl"); }) : reaches(name, 0)) << p.err();
      p.signal(SIGINT);
      ASSERT_TRUE(until([&] { return logs(dir, "signal 2"); }));
      p.signal(SIGINT);
      EXPECT_EQ(p.wait(whole_run), 1);
      expect_one_line(p.err(), {"stopped at once by a second signal"});
      EXPECT_EQ(recorded_steps(dir), std::vector<int>{0});
      EXPECT_FALSE(fs::exists(dir / "checkpoints/step-000001"));
      for (const char* role : {"learner", "rollout"})
        for (const pid_t pid : joined(dir, role))
          EXPECT_TRUE(!in_processes || !alive(pid)) << role;
    }
  }
}

TEST_F(run_files, FirstSignalLetsTheStepEnd) {
  for (const bool updating : {false, true}) {
    const std::string name = std::string("once") + (updating ? "-update" : "-generation");
    SCOPED_TRACE(name);
    const auto dir = world().run_dir(name);
    auto p = start(name, long_steps(updating));
    ASSERT_TRUE(updating ? until([&] { return fs::exists(dir / "rollouts/step-000001.jsonl"); }) : reaches(name, 0)) << p.err();
    p.signal(SIGINT);
    EXPECT_EQ(p.wait(whole_run), 1);
    expect_one_line(p.err(), {"stopped after step 1"});
    EXPECT_EQ(recorded_steps(dir), (std::vector<int>{0, 1}));
    EXPECT_TRUE(fs::exists(dir / "checkpoints/step-000001"));
    expect_no_leftovers(dir);
  }
}

// ---- a disk that takes no more ----

TEST_F(run_files, CheckpointThatDoesNotFitEndsTheRunAndIsNoCheckpoint) {
  for (const bool in_processes : {false, true}) {
    const std::string name = in_processes ? "limit-processes" : "limit";
    SCOPED_TRACE(name);
    const auto dir = world().run_dir(name);
    const auto settings = in_processes ? processes(1) : std::vector<std::string>{};
    surroundings around;
    around.largest_file = 800'000; // the weights fit, the optimizer's moments do not
    auto p = start(name, settings, around);
    EXPECT_EQ(p.wait(whole_run), 1) << p.err();
    expect_one_line(p.err(), {(dir / "checkpoints").string(), "optimizer.safetensors", "File too large", "ulimit -f", "started again"});
    EXPECT_EQ(recorded_steps(dir).back(), 5);
    EXPECT_TRUE(fs::is_empty(dir / "checkpoints"));
    expect_no_leftovers(dir);
    auto again = start(name, settings);
    ASSERT_EQ(again.wait(whole_run), 0) << again.err();
    expect_whole(name);
  }
}

TEST_F(run_files, DirectoryThatTakesNoFileIsRefusedAtTheStart) {
  surroundings around;
  around.largest_file = 1000; // the message fits, the configuration does not
  auto p = start("no-room", {}, around);
  EXPECT_EQ(p.wait(whole_run), 2);
  expect_one_line(p.err(), {"run.dir", (world().run_dir("no-room") / "config.toml").string(), "ulimit -f", "name another"});
  EXPECT_FALSE(fs::exists(world().run_dir("no-room")));
}

/// A small disk of its own, where this user may have one.
class small_disk {
public:
  explicit small_disk(fs::path at) : at_(std::move(at)) {
    fs::create_directory(at_);
    mounted_ = mount("tmpfs", at_.c_str(), "tmpfs", 0, "size=4m") == 0;
  }
  ~small_disk() {
    if (mounted_)
      umount2(at_.c_str(), MNT_DETACH);
  }
  small_disk(const small_disk&) = delete;
  small_disk& operator=(const small_disk&) = delete;
  bool mounted() const { return mounted_; }
  void grow() const { EXPECT_EQ(mount("tmpfs", at_.c_str(), "tmpfs", MS_REMOUNT, "size=64m"), 0); }

private:
  fs::path at_;
  bool mounted_ = false;
};

TEST_F(run_files, FullDiskEndsTheRunWhichGoesOnWhenThereIsRoom) {
  wanted();
  const small_disk disk(world().run_dir("disk"));
  if (!disk.mounted())
    GTEST_SKIP() << "this user can mount nothing";
  const std::string name = "disk/run";
  const auto dir = world().run_dir(name);
  program p(arguments(name, {}), world().run_dir("disk-output"));
  EXPECT_EQ(p.wait(whole_run), 1) << p.err();
  expect_one_line(p.err(), {dir.string(), "No space left on device", "free some space", "started again"});
  EXPECT_LT(recorded_steps(dir).back(), tiny_steps);
  expect_no_leftovers(dir);
  // Still full: refused before anything is done, nothing lost.
  program early(arguments(name, {}), world().run_dir("disk-output"));
  EXPECT_NE(early.wait(whole_run), 0);
  expect_one_line(early.err(), {dir.string(), "No space left on device"});
  disk.grow();
  program again(arguments(name, {}), world().run_dir("disk-output"));
  ASSERT_EQ(again.wait(whole_run), 0) << again.err();
  EXPECT_NE(again.out().find("going on after step"), std::string::npos) << "checkpoints made before the disk was full are whole";
  expect_whole(name);
}

// ---- a directory that may not be written ----

TEST_F(run_files, ReadOnlyDirectoryIsRefusedAtTheStart) {
  surroundings around;
  around.obeys_permissions = true;
  fs::create_directory(world().run_dir("locked"));
  chmod(world().run_dir("locked").c_str(), 0555);
  for (const char* name : {"locked", "locked/run"}) {
    program p(arguments(name, {}), world().run_dir("locked-output"), around);
    EXPECT_EQ(p.wait(whole_run), 2);
    expect_one_line(p.err(), {"run.dir", world().run_dir(name).string(), "Permission denied", "name another"});
  }
  EXPECT_TRUE(fs::is_empty(world().run_dir("locked")));
}

TEST_F(run_files, DirectoryThatBecomesReadOnlyEndsTheRunWhichGoesOnLater) {
  wanted();
  surroundings around;
  around.obeys_permissions = true;
  for (const char* part : {"checkpoints", "rollouts"}) {
    const std::string name = std::string("closed-") + part;
    SCOPED_TRACE(name);
    const auto dir = world().run_dir(name);
    auto p = start(name, {}, around);
    ASSERT_TRUE(reaches(name, 6)) << p.err();
    chmod((dir / part).c_str(), 0555);
    EXPECT_EQ(p.wait(whole_run), 1) << p.err();
    expect_one_line(p.err(), {(dir / part).string(), "Permission denied", "make it writable", "started again"});
    chmod((dir / part).c_str(), 0777);
    expect_no_leftovers(dir);
    auto again = start(name, {}, around);
    ASSERT_EQ(again.wait(whole_run), 0) << again.err();
    expect_whole(name);
  }
}

// ---- going on ----

TEST_F(run_files, LongerRunIsTheOneOfThatLength) {
  const std::string name = "longer";
  auto p = start(name, {"run.total_steps=12"});
  ASSERT_EQ(p.wait(whole_run), 0) << p.err();
  EXPECT_TRUE(fs::exists(world().run_dir(name) / "checkpoints/step-000012"));
  auto more = arguments(name, {});
  more.insert(more.end(), {"--resume", "auto"});
  program again(more, world().run_dir(name + "-output"));
  ASSERT_EQ(again.wait(whole_run), 0) << again.err();
  EXPECT_NE(again.out().find("going on after step 12"), std::string::npos) << again.out();
  expect_whole(name);
}

TEST_F(run_files, DamagedCheckpointThatIsNamedCostsNoOther) {
  const std::string name = "named";
  const auto checkpoints = world().run_dir(name) / "checkpoints";
  auto p = start(name, {"run.total_steps=10"});
  ASSERT_EQ(p.wait(whole_run), 0) << p.err();
  fs::resize_file(checkpoints / "step-000005/optimizer.safetensors", 1000);
  auto words = arguments(name, {"run.total_steps=10"});
  words.insert(words.end(), {"--resume", (checkpoints / "step-000005").string()});
  program again(words, world().run_dir(name + "-output"));
  EXPECT_EQ(again.wait(whole_run), 2);
  expect_one_line(again.err(), {"step-000005/optimizer.safetensors", "damaged"});
  EXPECT_TRUE(fs::exists(checkpoints / "step-000010"));
}

} // namespace
} // namespace troupe
