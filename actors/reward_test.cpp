#include "actors/coordinator.hpp"
#include "actors/reward.hpp"
#include "actors/system.hpp"
#include "actors/weight_sync.hpp"
#include "core/files.hpp"
#include "experience/records.hpp"
#include <atomic>
#include <condition_variable>
#include <gtest/gtest.h>
#include <limits>
#include <mutex>
#include <unistd.h>

namespace troupe {
namespace {

namespace fs = std::filesystem;
using namespace std::chrono_literals;

/// What a reward can do to a run.
enum class fault { throws, hangs, nan, infinite };

const std::vector<std::pair<fault, std::string>> faults = {
    {fault::throws, "the judge is ill"},
    {fault::hangs, "no answer within reward.timeout_s = 0.05"},
    {fault::nan, "the reward of sample 1 is not finite"},
    {fault::infinite, "the reward of sample 1 is not finite"},
};

/// 1 for each sample, but the second sample of the answer "bad" meets the fault, the first `times` times.
class faulty_reward final : public reward_function {
public:
  faulty_reward(fault what, int times) : what_(what), left_(times) {}
  ~faulty_reward() override = default;
  double operator()(const reward_input& in) const override {
    if (in.answer != "bad" || in.text != "b" || left_-- <= 0)
      return 1.0;
    switch (what_) {
    case fault::throws:
      throw std::runtime_error("the judge is ill");
    case fault::hangs: {
      std::unique_lock lock(mutex_);
      released_.wait(lock, [this] { return free_; });
      return 1.0;
    }
    case fault::nan:
      return std::numeric_limits<double>::quiet_NaN();
    default:
      return std::numeric_limits<double>::infinity();
    }
  }
  std::string objection(std::string_view) const override { return ""; }
  void release() const {
    const std::lock_guard lock(mutex_);
    free_ = true;
    released_.notify_all();
  }

private:
  fault what_;
  mutable std::atomic<int> left_;
  mutable std::mutex mutex_;
  mutable std::condition_variable released_;
  mutable bool free_ = false;
};

constexpr int always = 1 << 20;

struct reward_test : ::testing::Test {
  fs::path dir = fs::temp_directory_path() / ("troupe-reward-" + std::to_string(getpid()));
  config cfg;
  std::vector<prompt_row> rows = {{0, {0}, "good"}, {1, {1}, "bad"}, {2, {0, 1}, "good"}};
  std::vector<std::shared_ptr<const faulty_reward>> made;

  reward_test() {
    cfg.data.train_batch_size = 3;
    cfg.data.shuffle = false;
    cfg.rollout.n = cfg.validation.n = 2;
    cfg.reward.timeout_s = 0.05;
    fs::create_directories(dir);
  }
  ~reward_test() override {
    for (const auto& f : made)
      f->release();
    fs::remove_all(dir);
  }

  reward_setup setup(fault what, int times, const std::string& on_error) {
    cfg.reward.on_error = on_error;
    made.push_back(std::make_shared<faulty_reward>(what, times));
    reward_setup out;
    out.cfg = cfg;
    out.data = std::make_shared<run_data>(cfg, rows, rows);
    out.tok = tokenizer::parse(R"({"added_tokens": [], "normalizer": null, "pre_tokenizer": null, "post_processor": null,
      "decoder": {"type": "ByteLevel"}, "model": {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": []}})",
                               "tokenizer.json");
    out.function = made.back();
    out.run_dir = dir;
    out.groups = std::make_shared<inbox<trajectory_group>>();
    return out;
  }
  /// The group of row `index`, with the texts "a" and "b".
  trajectory_group group(std::uint32_t step, std::uint32_t index, bool validation = false) const {
    trajectory_group g;
    g.key = {step, index, validation};
    g.source = index;
    g.prompt_ids = rows[index].ids;
    for (const std::int32_t id : {0, 1})
      g.samples.push_back({{id}, {-1.0f}, {weights_version{}}, finish_reason::stop});
    return g;
  }
};

TEST_F(reward_test, FaultThatStaysFailsTheRunOrDropsTheGroup) {
  for (const auto& [what, text] : faults) {
    const std::string line = "reward: step 1, prompt 1 (row 1): ";
    reward_station failing(setup(what, always, "fail"));
    EXPECT_TRUE(failing.accept(group(1, 0)));
    try {
      failing.accept(group(1, 1));
      ADD_FAILURE() << text;
    } catch (const error& e) {
      EXPECT_EQ(e.code(), errc::failed);
      EXPECT_EQ(std::string(e.what()).find(line), 0u) << e.what();
      EXPECT_NE(std::string(e.what()).find(text), std::string::npos) << e.what();
    }
    EXPECT_EQ(failing.n_held(), 1u);

    reward_station dropping(setup(what, always, "drop"));
    const auto dropped = dropping.accept(group(1, 1));
    ASSERT_TRUE(dropped);
    EXPECT_TRUE(dropped->rewards.empty()) << "a dropped group has no reward, not even 0";
    EXPECT_NE(dropped->dropped.find(text), std::string::npos) << dropped->dropped;
    EXPECT_NE(dropped->dropped.find("the group is dropped"), std::string::npos);
    EXPECT_THROW(dropping.ship(1, {1}), error);
    EXPECT_EQ(dropping.accept(group(1, 2))->rewards, (std::vector<double>{1, 1}));
  }
}

TEST_F(reward_test, FaultThatPassesIsHealedByTheSecondTry) {
  for (const auto& [what, text] : faults) {
    for (const char* on_error : {"fail", "drop"}) {
      reward_station station(setup(what, 1, on_error));
      const auto header = station.accept(group(1, 1));
      ASSERT_TRUE(header) << text;
      EXPECT_EQ(header->dropped, "") << text;
      EXPECT_EQ(header->rewards, (std::vector<double>{1, 1})) << text;
    }
  }
}

// ---- the actors of a run around such a reward ----

struct told : run_host {
  std::mutex mutex;
  std::condition_variable changed;
  std::map<std::uint32_t, metric_map> recorded;
  std::vector<std::string> lines;
  bool over = false;
  errc code{};
  std::string text;
  void begin(std::uint32_t) override {}
  void record(std::uint32_t step, const metric_map& metrics) override { recorded[step] = metrics; }
  void progress(std::uint32_t, bool, std::uint32_t, std::uint32_t) override {}
  void log(const std::string& line) override { lines.push_back(line); }
  void end_process(std::int64_t) override {}
  void ended(errc c, const std::string& t) override {
    const std::lock_guard lock(mutex);
    over = true;
    code = c;
    text = t;
    changed.notify_all();
  }
  bool wait() {
    std::unique_lock lock(mutex);
    return changed.wait_for(lock, 60s, [this] { return over; });
  }
};

/// Trains nothing; its steps count. (Of a function without an argument CAF binds a reference to null.)
learner_actor::behavior_type idle_learner(learner_actor::pointer, const std::string& endpoint) {
  return {
      [](const restore_learner& r) {
        return learner_restored{{r.incarnation, 0}, {}};
      },
      [](const train_step& t) {
        return step_trained{{0, t.step}, {}};
      },
      [](const save_checkpoint& s) { return checkpoint_saved{s.step}; },
      [endpoint](const publish_weights& p) {
        return weights_published{p.version, endpoint};
      },
      [](caf::tick_atom) {},
  };
}

rollout_actor::behavior_type ready_rollout(rollout_actor::pointer, const std::function<void(const generate_group&)>& make) {
  return {
      [make](const generate_group& g) { make(g); },
      [](const fetch_weights& f) {
        return weights_fetched{f.version, 0, 0};
      },
      [](caf::get_atom) { return rollout_status{}; },
      [](caf::tick_atom) {},
      [](caf::add_atom) {},
  };
}

struct reward_in_a_run : reward_test {
  std::shared_ptr<told> host = std::make_shared<told>();
  std::vector<std::vector<scored_group>> batches; // that the learner was given

  /// One step of three prompts, validated before and after.
  void run(reward_setup rewarding) {
    system_config settings(false);
    caf::actor_system sys{settings};
    const auto shared = std::make_shared<reward_setup>(std::move(rewarding));
    shared->deliver = [this](const std::string&, std::vector<scored_group> groups) { batches.push_back(std::move(groups)); };
    coordinator_setup setup;
    setup.plan.total_steps = 1;
    setup.plan.test_freq = 1;
    setup.plan.val_before_train = true;
    setup.plan.batch_size = setup.plan.validation_size = 3;
    setup.plan.validation_n = 2;
    setup.plan.max_response_length = 4;
    setup.data = shared->data;
    setup.host = host;
    setup.make_reward = [&](const coordinator_actor& c) { return sys.spawn<caf::detached>(reward, shared, c); };
    setup.make_weight_sync = [&](const coordinator_actor& c) { return sys.spawn(weight_sync, c); };
    const auto c = sys.spawn(coordinator, setup);
    const auto learning = sys.spawn(idle_learner, std::string("here"));
    const auto rolling = sys.spawn(
        ready_rollout, [this, shared](const generate_group& g) { shared->groups->push(group(g.key.step, g.key.index, g.key.validation)); });
    caf::anon_send(c, worker_info{worker_role::learner, 0, "host", 1, ""}, learning);
    caf::anon_send(c, worker_info{worker_role::rollout, 0, "host", 1, ""}, rolling);
    EXPECT_TRUE(host->wait());
    caf::anon_send_exit(c, caf::exit_reason::user_shutdown);
    made.back()->release();
  }
};

struct reward_kinds : reward_in_a_run, ::testing::WithParamInterface<std::size_t> {};
INSTANTIATE_TEST_SUITE_P(Faults, reward_kinds, ::testing::Range<std::size_t>(0, faults.size()));

TEST_P(reward_kinds, FailEndsTheRunWithTheRewardsLine) {
  const auto& [what, text] = faults[GetParam()];
  run(setup(what, always, "fail"));
  EXPECT_EQ(host->code, errc::failed);
  EXPECT_EQ(host->text.find("reward: validation at step 0, prompt 1 (row 1): "), 0u) << host->text;
  EXPECT_NE(host->text.find(text), std::string::npos) << host->text;
  EXPECT_TRUE(host->recorded.empty());
  EXPECT_TRUE(batches.empty());
}

TEST_P(reward_kinds, DropLeavesTheGroupOutAndGoesOn) {
  const auto& [what, text] = faults[GetParam()];
  run(setup(what, always, "drop"));
  EXPECT_EQ(host->code, errc{}) << host->text;
  ASSERT_EQ(batches.size(), 1u);
  ASSERT_EQ(batches[0].size(), 2u);
  EXPECT_EQ(batches[0][0].group.key.index, 0u);
  EXPECT_EQ(batches[0][1].group.key.index, 2u);
  EXPECT_EQ(read_rollouts(dir, 1).size(), 2u);
  // The mean is over what was scored: as 0 the dropped group would make it 2/3.
  EXPECT_EQ(host->recorded.at(0).at("val/accuracy"), 1.0);
  EXPECT_EQ(host->recorded.at(1).at("critic/rewards/mean"), 1.0);
  EXPECT_EQ(host->recorded.at(1).at("critic/rewards/min"), 1.0);
  const auto said = std::count_if(host->lines.begin(), host->lines.end(), [&, &text = text](const std::string& line) {
    return line.find(text) != std::string::npos && line.find("the group is dropped") != std::string::npos;
  });
  EXPECT_EQ(said, 3) << "once in each validation, once in training";
}

TEST_F(reward_in_a_run, StepWithoutAnyGroupFails) {
  for (auto& row : rows)
    row.answer = "bad";
  run(setup(fault::throws, always, "drop"));
  EXPECT_EQ(host->code, errc::failed);
  EXPECT_NE(host->text.find("every group was dropped"), std::string::npos) << host->text;
  EXPECT_NE(host->text.find("the judge is ill"), std::string::npos) << host->text;
  EXPECT_TRUE(host->recorded.empty());
}

TEST(inbox, WakesAlsoForWhatCameBeforeTheActor) {
  inbox<int> box;
  int woken = 0;
  box.on_push([&] { ++woken; });
  EXPECT_EQ(woken, 0);
  box.push(1);
  EXPECT_EQ(woken, 1);
  inbox<int> early;
  early.push(1);
  early.on_push([&] { ++woken; });
  EXPECT_EQ(woken, 2);
  EXPECT_EQ(early.take(), std::vector<int>{1});
}

} // namespace
} // namespace troupe
