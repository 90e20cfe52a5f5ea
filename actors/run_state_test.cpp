#include "actors/run_state.hpp"
#include <gtest/gtest.h>

namespace troupe {
namespace {

using namespace std::chrono_literals;

/// A run of two steps of three prompts, driven by hand.
struct run_test : ::testing::Test {
  run_plan plan;
  std::unique_ptr<run_state> run;
  time_point now{};
  std::vector<run_command> last;

  run_test() {
    plan.total_steps = 2;
    plan.batch_size = 3;
    plan.max_response_length = 4;
    plan.credits = 2;
    plan.restarts = true;
    plan.group_deadline = 100s;
    plan.join_deadline = 50s;
  }

  void make() {
    run = std::make_unique<run_state>(plan);
    run->start(now);
  }
  const std::vector<run_command>& commands() { return last = run->take(); }
  template <class C>
  std::vector<C> of(const std::vector<run_command>& all) {
    std::vector<C> out;
    for (const auto& c : all) {
      if (const auto* x = std::get_if<C>(&c))
        out.push_back(*x);
    }
    return out;
  }
  template <class C>
  C one() {
    const auto found = of<C>(commands());
    EXPECT_EQ(found.size(), 1u) << typeid(C).name();
    return found.empty() ? C{} : found[0];
  }
  std::vector<std::pair<worker_id, std::uint32_t>> dispatched() {
    std::vector<std::pair<worker_id, std::uint32_t>> out;
    for (const auto& d : of<command::dispatch>(commands()))
      out.emplace_back(d.worker, d.key.index);
    return out;
  }
  void score(std::uint32_t step, std::uint32_t index, double reward = 1, bool validation = false) {
    run->scored(group_scored{{step, index, validation}, {reward, 0}, {2, 4}, 5, step - 1, 0.5, ""}, now);
  }
  void drop(std::uint32_t step, std::uint32_t index) { run->scored(group_scored{{step, index, false}, {}, {}, 5, 0, 0, "it threw"}, now); }
  void sync_all(weights_version v, std::initializer_list<worker_id> workers) {
    for (const auto w : workers)
      run->rollout_has(w, v, now);
    run->synced(weights_fetched{v, 100, 0.25}, now);
  }
  /// Learner and rollouts are there, nothing to restore, weights synced: step 1 is being generated.
  void reach_first_step(std::initializer_list<worker_id> workers = {1}) {
    plan.rollouts = workers.size();
    make();
    run->learner_joined(now);
    for (const auto w : workers)
      run->rollout_joined(w, now);
    EXPECT_EQ(one<command::restore>().request.incarnation, 0u);
    run->restored(learner_restored{{0, 0}, {}}, now);
    EXPECT_EQ(one<command::sync>().version, (weights_version{0, 0}));
    sync_all({0, 0}, workers);
  }
  void reach_training(std::uint32_t step, std::uint32_t incarnation = 0) {
    for (std::uint32_t i = 0; i < 3; ++i)
      score(step, i);
    EXPECT_EQ(one<command::ship>().indices, (std::vector<std::uint32_t>{0, 1, 2}));
    run->shipped(batch_shipped{step, 0.125, 0.5}, now);
    EXPECT_EQ(one<command::train>().step, step);
    (void)incarnation;
  }
};

TEST_F(run_test, WaitsForTheLearnerAndEveryRollout) {
  plan.rollouts = 2;
  make();
  run->learner_joined(now);
  run->rollout_joined(1, now);
  EXPECT_TRUE(commands().empty());
  run->rollout_joined(2, now);
  EXPECT_EQ(of<command::restore>(commands()).size(), 1u);
}

TEST_F(run_test, SaysWhoDidNotJoin) {
  plan.rollouts = 2;
  make();
  run->rollout_joined(1, now);
  run->tick(now + 49s);
  EXPECT_TRUE(commands().empty());
  run->tick(now + 50s);
  const auto end = one<command::finish>();
  EXPECT_EQ(end.code, errc::timeout);
  EXPECT_EQ(end.text, "waited 50 s for the learner and 1 rollout to join");
}

TEST_F(run_test, GivesGroupsInOrderWithinCredits) {
  reach_first_step({1, 2});
  EXPECT_EQ(dispatched(), (std::vector<std::pair<worker_id, std::uint32_t>>{{1, 0}, {2, 1}, {1, 2}}));
  reach_training(1);
}

TEST_F(run_test, OneRolloutGetsTheNextGroupWhenOneIsDone) {
  reach_first_step();
  EXPECT_EQ(dispatched().size(), 2u);
  score(1, 1);
  EXPECT_EQ(dispatched(), (std::vector<std::pair<worker_id, std::uint32_t>>{{1, 2}}));
}

TEST_F(run_test, WholeRunWithItsMetrics) {
  reach_first_step();
  now += 2s;
  reach_training(1);
  now += 3s;
  run->step_done(step_trained{{0, 1}, {{"actor/pg_loss", -0.5}}}, now);
  EXPECT_EQ(one<command::sync>().version, (weights_version{0, 1}));
  now += 1s;
  sync_all({0, 1}, {1});
  const auto all = commands();
  const auto records = of<command::record>(all);
  ASSERT_EQ(records.size(), 1u);
  EXPECT_EQ(records[0].step, 1u);
  const std::map<std::string, double> wanted = {{"actor/pg_loss", -0.5},
                                                {"critic/advantages/mean", 0.5},
                                                {"critic/rewards/max", 1},
                                                {"critic/rewards/mean", 0.5},
                                                {"critic/rewards/min", 0},
                                                {"critic/score/mean", 0.5},
                                                {"perf/throughput", 48.0 / 6},
                                                {"prompt_length/mean", 5},
                                                {"response_length/clip_ratio", 0.5},
                                                {"response_length/max", 4},
                                                {"response_length/mean", 3},
                                                {"response_length/min", 2},
                                                {"rollout/staleness_max", 0},
                                                {"sync/bytes", 100},
                                                {"sync/seconds", 0.25},
                                                {"sync/version", 1},
                                                {"timing_s/adv", 0.125},
                                                {"timing_s/gen", 2},
                                                {"timing_s/reward", 1.5},
                                                {"timing_s/step", 6},
                                                {"timing_s/update_actor", 3},
                                                {"timing_s/update_weights", 1}};
  EXPECT_EQ(records[0].metrics, wanted);
  EXPECT_EQ(of<command::dispatch>(all).size(), 2u); // step 2 begins; nothing is saved in between
  reach_training(2);
  run->step_done(step_trained{{0, 2}, {}}, now);
  sync_all({0, 2}, {1});
  EXPECT_EQ(one<command::save>().step, 2u);
  run->saved(checkpoint_saved{2}, now);
  const auto end = one<command::finish>();
  EXPECT_EQ(end.code, errc{});
  EXPECT_TRUE(run->finished());
}

TEST_F(run_test, LateDuplicateAndForeignGroupsAreIgnored) {
  reach_first_step();
  score(1, 0);
  commands();
  score(1, 0);          // duplicate
  score(2, 0);          // not this step
  score(1, 0, 1, true); // no validation is under way
  EXPECT_TRUE(commands().empty());
}

TEST_F(run_test, LostRolloutsGroupsGoToAnotherInTheSamePlaces) {
  reach_first_step({1, 2});
  commands();
  run->rollout_lost(1, "rollout 0 is gone", now);
  // 2 has one credit left; groups 0 and 2 were with 1.
  EXPECT_EQ(dispatched(), (std::vector<std::pair<worker_id, std::uint32_t>>{{2, 0}}));
  score(1, 1);
  EXPECT_EQ(dispatched(), (std::vector<std::pair<worker_id, std::uint32_t>>{{2, 2}}));
  score(1, 2);
  score(1, 0);
  EXPECT_EQ(one<command::ship>().indices, (std::vector<std::uint32_t>{0, 1, 2}));
}

TEST_F(run_test, AnswerOfARolloutThatWasGivenUpStillCounts) {
  reach_first_step({1, 2});
  run->rollout_lost(1, "gone", now);
  run->rollout_lost(2, "gone", now);
  commands();
  score(1, 0);
  score(1, 1);
  score(1, 2);
  EXPECT_EQ(of<command::ship>(commands()).size(), 1u);
}

TEST_F(run_test, OverdueRolloutIsEndedAndItsGroupsGoOn) {
  reach_first_step({1, 2});
  commands();
  now += 60s;
  score(1, 1);
  score(1, 0);
  now += 41s;
  run->tick(now); // 1 holds group 2 for 101 s
  const auto all = commands();
  EXPECT_EQ(of<command::end_rollout>(all).size(), 1u);
  const auto again = of<command::dispatch>(all);
  ASSERT_EQ(again.size(), 1u);
  EXPECT_EQ(again[0].worker, 2u);
  EXPECT_EQ(again[0].key.index, 2u);
}

TEST_F(run_test, WithoutRestartsALostRolloutEndsTheRun) {
  plan.restarts = false;
  reach_first_step();
  commands();
  run->rollout_lost(1, "rollout 0 on here is gone", now);
  const auto end = one<command::finish>();
  EXPECT_EQ(end.code, errc::peer_lost);
  EXPECT_EQ(end.text, "rollout 0 on here is gone");
}

TEST_F(run_test, WorkersThatOnlyDieEndTheRun) {
  reach_first_step();
  worker_id id = 1;
  for (int i = 0; i < 6; ++i) {
    run->rollout_lost(id, "it crashed", now);
    EXPECT_FALSE(run->finished());
    run->rollout_joined(++id, now);
  }
  run->rollout_lost(id, "it crashed", now);
  EXPECT_TRUE(run->finished());
}

TEST_F(run_test, NewRolloutGetsGroupsOnceItHoldsTheVersion) {
  reach_first_step();
  EXPECT_EQ(dispatched().size(), 2u);
  run->rollout_joined(2, now);
  EXPECT_TRUE(dispatched().empty());
  run->rollout_has(2, {0, 0}, now);
  EXPECT_EQ(dispatched(), (std::vector<std::pair<worker_id, std::uint32_t>>{{2, 2}}));
}

TEST_F(run_test, LearnerLostInTrainingRedoesAndTrainsTheSameBatch) {
  reach_first_step();
  reach_training(1);
  run->learner_lost("learner 0 is gone", now);
  run->step_done(step_trained{{0, 1}, {}}, now); // a late answer of the dead one
  commands();
  run->learner_joined(now);
  const auto request = one<command::restore>().request;
  EXPECT_EQ(request.incarnation, 1u);
  EXPECT_EQ(request.target, 0u);
  run->restored(learner_restored{{1, 0}, {}}, now);
  EXPECT_EQ(one<command::ship>().indices, (std::vector<std::uint32_t>{0, 1, 2}));
  run->shipped(batch_shipped{1, 0, 0}, now);
  EXPECT_EQ(one<command::train>().step, 1u);
  run->step_done(step_trained{{1, 1}, {}}, now);
  EXPECT_EQ(one<command::sync>().version, (weights_version{1, 1}));
}

TEST_F(run_test, LearnerLostInGenerationIsReadyWhenTheBatchIs) {
  reach_first_step();
  run->learner_lost("gone", now);
  commands();
  score(1, 0);
  score(1, 1);
  score(1, 2);
  EXPECT_TRUE(of<command::ship>(commands()).empty()); // no learner yet
  run->learner_joined(now);
  EXPECT_EQ(one<command::restore>().request.target, 0u);
  run->restored(learner_restored{{1, 0}, {}}, now);
  EXPECT_EQ(one<command::ship>().step, 1u);
}

TEST_F(run_test, RestoredLearnersWeightsAreOfferedDuringGeneration) {
  reach_first_step();
  commands();
  run->learner_lost("gone", now);
  run->learner_joined(now);
  commands();
  run->restored(learner_restored{{1, 0}, {}}, now);
  EXPECT_EQ(one<command::sync>().version, (weights_version{1, 0}));
  score(1, 0);
  EXPECT_TRUE(dispatched().empty()); // 1 holds the older incarnation
  run->rollout_has(1, {1, 0}, now);
  EXPECT_EQ(dispatched().size(), 1u);
}

TEST_F(run_test, LearnerLostInSyncOrSavingDoesTheSameAgain) {
  plan.total_steps = 1;
  reach_first_step();
  reach_training(1);
  run->step_done(step_trained{{0, 1}, {}}, now);
  run->learner_lost("gone", now);
  run->learner_joined(now);
  commands();
  run->restored(learner_restored{{1, 1}, {}}, now);
  EXPECT_EQ(one<command::sync>().version, (weights_version{1, 1}));
  run->synced(weights_fetched{{0, 1}, 0, 0}, now); // of the older incarnation
  EXPECT_TRUE(commands().empty());
  sync_all({1, 1}, {1});
  EXPECT_EQ(one<command::save>().step, 1u);
  run->learner_lost("gone", now);
  run->learner_joined(now);
  EXPECT_EQ(one<command::restore>().request.target, 1u);
  run->restored(learner_restored{{2, 1}, {}}, now);
  EXPECT_EQ(one<command::save>().step, 1u);
  run->saved(checkpoint_saved{1}, now);
  EXPECT_EQ(one<command::finish>().code, errc{});
}

TEST_F(run_test, LearnersOwnErrorEndsTheRunAndSilenceReplacesIt) {
  reach_first_step();
  reach_training(1);
  run->learner_error(error(errc::timeout, "no answer"), now);
  EXPECT_EQ(of<command::end_learner>(commands()).size(), 1u);
  EXPECT_FALSE(run->finished());
  run->learner_joined(now);
  run->restored(learner_restored{{1, 0}, {}}, now);
  commands();
  run->learner_error(error(errc::failed, "loss is not finite"), now);
  const auto end = one<command::finish>();
  EXPECT_EQ(end.code, errc::failed);
  EXPECT_EQ(end.text, "loss is not finite");
}

TEST_F(run_test, DroppedGroupsAreLeftOut) {
  reach_first_step();
  score(1, 0);
  drop(1, 1);
  score(1, 2);
  EXPECT_EQ(one<command::ship>().indices, (std::vector<std::uint32_t>{0, 2}));
}

TEST_F(run_test, AStepWithoutGroupsFails) {
  reach_first_step();
  for (std::uint32_t i = 0; i < 3; ++i)
    drop(1, i);
  EXPECT_EQ(one<command::finish>().text, "step 1: every group was dropped; the last: it threw");
}

TEST_F(run_test, ValidatesBeforeTrainingWhenDueAndAtTheEnd) {
  plan.total_steps = 3;
  plan.test_freq = 2;
  plan.val_before_train = true;
  plan.validation_size = 2;
  reach_first_step();
  auto validate = [&](std::uint32_t step, double reward) {
    const auto all = of<command::dispatch>(commands());
    ASSERT_EQ(all.size(), 2u) << step;
    EXPECT_EQ(all[0].key, (group_key{step, 0, true}));
    for (std::uint32_t i = 0; i < 2; ++i)
      run->scored(group_scored{{step, i, true}, {i == 0 ? reward : 0}, {1}, 5, step, 0, ""}, now);
  };
  validate(0, 1);
  {
    const auto r = one<command::record>();
    EXPECT_EQ(r.step, 0u);
    EXPECT_EQ(r.metrics, (metric_map{{"val/accuracy", 0.5}}));
  }
  for (std::uint32_t step = 1; step <= 3; ++step) {
    reach_training(step);
    run->step_done(step_trained{{0, step}, {}}, now);
    commands();
    sync_all({0, step}, {1});
    if (step >= 2)
      validate(step, 0.5);
    const auto r = one<command::record>();
    EXPECT_EQ(r.step, step);
    EXPECT_EQ(r.metrics.count("val/accuracy"), step >= 2 ? 1u : 0u);
  }
}

TEST_F(run_test, StopEndsAfterTheStepUnderWayAndSaves) {
  reach_first_step();
  run->stop(now);
  EXPECT_FALSE(run->finished());
  reach_training(1);
  run->step_done(step_trained{{0, 1}, {}}, now);
  sync_all({0, 1}, {1});
  EXPECT_EQ(one<command::save>().step, 1u);
  run->saved(checkpoint_saved{1}, now);
  EXPECT_EQ(one<command::finish>().code, errc::cancelled);
}

TEST_F(run_test, StopBeforeTheFirstStepEndsAtOnce) {
  make();
  run->stop(now);
  EXPECT_EQ(one<command::finish>().code, errc::cancelled);
}

TEST_F(run_test, ResumesAfterTheCheckpointsStep) {
  make();
  run->learner_joined(now);
  run->rollout_joined(1, now);
  commands();
  run->restored(learner_restored{{0, 1}, {"checkpoint 2 is damaged"}}, now);
  const auto all = commands();
  EXPECT_EQ(of<command::log>(all).at(0).text, "checkpoint 2 is damaged");
  EXPECT_EQ(of<command::begin>(all).at(0).step, 1u);
  sync_all({0, 1}, {1});
  const auto given = of<command::dispatch>(commands());
  ASSERT_FALSE(given.empty());
  EXPECT_EQ(given[0].key, (group_key{2, 0, false}));
}

// Exact values by hand: the best of k of {0, 0, 1}: k = 1: 1/3; 2: 1 - C(2,2)/C(3,2) = 2/3; 3: 1.
TEST(summary, BestOfK) {
  EXPECT_DOUBLE_EQ(best_of({1, 0, 0}, 1), 1.0 / 3);
  EXPECT_DOUBLE_EQ(best_of({0, 1, 0}, 2), 2.0 / 3);
  EXPECT_DOUBLE_EQ(best_of({0, 0, 1}, 3), 1.0);
  EXPECT_DOUBLE_EQ(best_of({0.25, 0.75}, 1), 0.5);
}

TEST(summary, PassAtPowersOfTwo) {
  const auto m = validation_metrics({{1, 0, 0, 0}, {0, 0, 0, 0}}, 4);
  EXPECT_EQ(m.size(), 3u);
  EXPECT_DOUBLE_EQ(m.at("val/accuracy"), 0.125);
  EXPECT_DOUBLE_EQ(m.at("val/pass@2"), 0.25); // 1 - C(3,2)/C(4,2) = 1/2 of the first, 0 of the second
  EXPECT_DOUBLE_EQ(m.at("val/pass@4"), 0.5);
}

} // namespace
} // namespace troupe
