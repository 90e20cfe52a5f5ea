#pragma once
#include "tests/run/tiny_run.hpp"
#include <gtest/gtest.h>
#include <numeric>

namespace troupe {

using namespace std::chrono_literals;

constexpr auto whole_run = 240s; // generous: a loaded machine

/// Runs of the tiny model. They share one directory and one undisturbed run, whose weights every other run must end with.
struct run_files : ::testing::Test {
  static tiny_world& world() {
    static tiny_world w;
    return w;
  }
  static std::vector<std::string> arguments(const std::string& name, const std::vector<std::string>& settings) {
    std::vector<std::string> out = {
        "train", world().config().string(), "--threads", "1", "--set", "run.dir=" + world().run_dir(name).string()};
    for (const auto& s : settings)
      out.insert(out.end(), {"--set", s});
    return out;
  }
  static program start(const std::string& name, const std::vector<std::string>& settings = {}, const surroundings& around = {}) {
    return program(arguments(name, settings), world().run_dir(name + "-output"), around);
  }
  static std::vector<std::string> processes(int rollouts) {
    return {"placement.processes=true", "rollout.actors=" + std::to_string(rollouts)};
  }
  /// What every run must end with: the weights of the undisturbed one-process run.
  static const std::string& wanted() {
    static const std::string weights = [] {
      auto p = start("reference");
      EXPECT_EQ(p.wait(whole_run), 0) << p.err();
      return final_weights(world().run_dir("reference"));
    }();
    return weights;
  }
  static void expect_whole(const std::string& name) {
    ASSERT_FALSE(wanted().empty());
    EXPECT_TRUE(final_weights(world().run_dir(name)) == wanted()) << name << ": other weights than the one-process run";
    std::vector<int> steps(tiny_steps + 1);
    std::iota(steps.begin(), steps.end(), 0);
    EXPECT_EQ(recorded_steps(world().run_dir(name)), steps);
  }
  static bool reaches(const std::string& name, int step) {
    return until([&] {
      const auto steps = recorded_steps(world().run_dir(name));
      return !steps.empty() && steps.back() >= step;
    });
  }
};

} // namespace troupe
