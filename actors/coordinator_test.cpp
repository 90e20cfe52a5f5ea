#include "actors/coordinator.hpp"
#include "actors/weight_sync.hpp"
#include <caf/scheduler/test_coordinator.hpp>
#include <gtest/gtest.h>
#include <set>

namespace troupe {
namespace {

using namespace std::chrono_literals;

/// What the run told its host.
struct recorder : run_host {
  std::vector<std::uint32_t> begun, recorded;
  std::vector<std::string> lines;
  std::vector<std::int64_t> ended_pids;
  bool over = false;
  errc code{};
  std::string text;
  void begin(std::uint32_t step) override { begun.push_back(step); }
  void record(std::uint32_t step, const metric_map&) override { recorded.push_back(step); }
  void progress(std::uint32_t, bool, std::uint32_t, std::uint32_t) override {}
  void log(const std::string& line) override { lines.push_back(line); }
  void end_process(std::int64_t pid) override { ended_pids.push_back(pid); }
  void ended(errc c, const std::string& t) override {
    over = true;
    code = c;
    text = t;
  }
};

/// What the stand-ins saw; outlives them.
struct seen {
  std::vector<generate_group> made; // by any rollout, in order
  std::vector<std::vector<std::uint32_t>> shipped;
  std::vector<restore_learner> restored;
  std::vector<std::uint32_t> trained, saved;
  reward_actor reward;
};

group_scored header(const group_key& key) { return {key, {1, 0}, {2, 4}, 5, key.step, 0, ""}; }

/// Makes every group at once; `mute`: takes groups and never hands one on.
rollout_actor::behavior_type rollout_stub(rollout_actor::pointer, const coordinator_actor& c, const std::shared_ptr<seen>& log, bool mute) {
  return {
      [=](const generate_group& g) {
        log->made.push_back(g);
        if (!mute)
          caf::anon_send(c, header(g.key));
      },
      [](const fetch_weights& f) {
        return weights_fetched{f.version, 10, 0.5};
      },
      [](caf::get_atom) { return rollout_status{}; },
      [](caf::tick_atom) {},
      [](caf::add_atom) {},
  };
}

/// `hang`: takes the training of a step and never answers.
learner_actor::behavior_type learner_stub(learner_actor::pointer self, const std::shared_ptr<seen>& log, bool hang) {
  auto version = std::make_shared<weights_version>();
  return {
      [=](const restore_learner& r) {
        log->restored.push_back(r);
        *version = {r.incarnation, r.target == ~0u ? 0 : r.target};
        return learner_restored{*version, {}};
      },
      [=](const train_step& t) -> caf::result<step_trained> {
        log->trained.push_back(t.step);
        if (hang)
          return self->make_response_promise<step_trained>();
        version->step = t.step;
        return step_trained{*version, {}};
      },
      [=](const save_checkpoint& s) {
        log->saved.push_back(s.step);
        return checkpoint_saved{s.step};
      },
      [](const publish_weights& p) {
        return weights_published{p.version, "here"};
      },
      [](caf::tick_atom) {},
  };
}

reward_actor::behavior_type reward_stub(reward_actor::pointer, const std::shared_ptr<seen>& log) {
  return {
      [=](const ship_batch& s) {
        log->shipped.push_back(s.indices);
        return batch_shipped{s.step, 0, 0};
      },
      [](const step_trained&) {},
      [](caf::tick_atom) {},
  };
}

struct coordinator_test : ::testing::Test {
  struct settings : caf::actor_system_config {
    settings() {
      set("scheduler.policy", caf::atom("testing"));
      add_message_types<caf::id_block::troupe>();
    }
  } cfg;
  caf::actor_system sys{cfg};
  caf::scheduler::test_coordinator& sched = dynamic_cast<caf::scheduler::test_coordinator&>(sys.scheduler());
  caf::scoped_actor self{sys};
  std::shared_ptr<recorder> host = std::make_shared<recorder>();
  std::shared_ptr<seen> log = std::make_shared<seen>();
  run_plan plan;
  coordinator_actor c;
  std::int64_t last_pid = 100;
  std::uint32_t learner_ranks = 1, rollout_ranks = 1;

  coordinator_test() {
    plan.total_steps = 2;
    plan.batch_size = 3;
    plan.max_response_length = 4;
    plan.credits = 3;
    plan.restarts = true;
  }
  ~coordinator_test() override {
    self->send_exit(c, caf::exit_reason::kill);
    sched.run();
  }

  void start() {
    config run;
    run.data.train_batch_size = plan.batch_size;
    run.data.shuffle = false;
    std::vector<prompt_row> rows(5);
    for (std::size_t i = 0; i < rows.size(); ++i)
      rows[i] = {10 + i, {std::int32_t(i)}, "answer"};
    coordinator_setup setup;
    setup.plan = plan;
    setup.data = std::make_shared<run_data>(run, rows, std::vector<prompt_row>{});
    setup.host = host;
    setup.learner_ranks = learner_ranks;
    setup.rollout_ranks = rollout_ranks;
    setup.make_reward = [this](const coordinator_actor&) { return log->reward = sys.spawn(reward_stub, log); };
    setup.make_weight_sync = [this](const coordinator_actor& who) { return sys.spawn(weight_sync, who); };
    c = sys.spawn(coordinator, setup);
    sched.run();
  }
  rollout_actor join_rollout(bool mute = false) {
    auto w = sys.spawn(rollout_stub, c, log, mute);
    self->send(c, worker_info{worker_role::rollout, 0, "host", ++last_pid, ""}, w);
    sched.run();
    return w;
  }
  learner_actor join_learner(bool hang = false) {
    auto w = sys.spawn(learner_stub, log, hang);
    self->send(c, worker_info{worker_role::learner, 0, "host", ++last_pid, "there"}, w);
    sched.run();
    return w;
  }
  template <class Handle>
  void kill(const Handle& w) {
    self->send_exit(w, caf::exit_reason::kill);
    sched.run();
  }
};

TEST_F(coordinator_test, RunsToItsEnd) {
  start();
  join_learner();
  EXPECT_TRUE(log->restored.empty());
  join_rollout();
  EXPECT_TRUE(host->over);
  EXPECT_EQ(host->code, errc{});
  EXPECT_EQ(host->recorded, (std::vector<std::uint32_t>{1, 2}));
  EXPECT_EQ(log->trained, (std::vector<std::uint32_t>{1, 2}));
  EXPECT_EQ(log->saved, (std::vector<std::uint32_t>{2}));
  EXPECT_EQ(log->shipped, (std::vector<std::vector<std::uint32_t>>{{0, 1, 2}, {0, 1, 2}}));
  ASSERT_EQ(log->made.size(), 6u);
  EXPECT_EQ(log->made[1].source, 11u);
  EXPECT_EQ(log->made[1].prompt_ids, (std::vector<std::int32_t>{1}));
  EXPECT_EQ(log->made[3].version, (weights_version{0, 1}));
  EXPECT_EQ(host->lines.at(0), "worker learner 0 pid 101");
  EXPECT_EQ(host->lines.at(1), "worker rollout 0 pid 102");
}

TEST_F(coordinator_test, DeadRolloutsGroupsGoToItsReplacement) {
  start();
  join_learner();
  const auto mute = join_rollout(true);
  EXPECT_EQ(log->made.size(), 3u);
  kill(mute);
  EXPECT_FALSE(host->over);
  EXPECT_EQ(host->ended_pids, (std::vector<std::int64_t>{102}));
  join_rollout();
  EXPECT_TRUE(host->over);
  EXPECT_EQ(host->recorded, (std::vector<std::uint32_t>{1, 2}));
  EXPECT_EQ(log->made.size(), 9u);
}

TEST_F(coordinator_test, SilentRolloutIsEndedAtTheDeadline) {
  start();
  join_learner();
  join_rollout(true);
  sched.advance_time(9min);
  sched.run();
  EXPECT_TRUE(host->ended_pids.empty());
  for (int i = 0; i < 62; ++i) {
    sched.advance_time(1s);
    sched.run();
  }
  EXPECT_EQ(host->ended_pids, (std::vector<std::int64_t>{102}));
  join_rollout();
  EXPECT_TRUE(host->over);
  EXPECT_EQ(host->code, errc{});
}

TEST_F(coordinator_test, LateAndDuplicateAnswersChangeNothing) {
  start();
  join_learner();
  const auto mute = join_rollout(true);
  for (int twice = 0; twice < 2; ++twice) {
    for (std::uint32_t i = 0; i < 2; ++i)
      self->send(c, header({1, i, false}));
  }
  sched.run();
  EXPECT_TRUE(log->shipped.empty());
  kill(mute);
  join_rollout();
  // The late answer of the dead one, after its replacement's.
  self->send(c, header({1, 2, false}));
  sched.run();
  EXPECT_EQ(log->shipped, (std::vector<std::vector<std::uint32_t>>{{0, 1, 2}, {0, 1, 2}}));
  EXPECT_EQ(log->made.size(), 3u + 1u + 3u); // of step 1 only the missing group was made again
}

TEST_F(coordinator_test, DeadLearnerIsRestoredAndTrainsTheSameStep) {
  start();
  const auto first = join_learner(true);
  join_rollout();
  EXPECT_EQ(log->trained, (std::vector<std::uint32_t>{1}));
  kill(first);
  EXPECT_FALSE(host->over);
  join_learner();
  ASSERT_EQ(log->restored.size(), 2u);
  EXPECT_EQ(log->restored[1].incarnation, 1u);
  EXPECT_EQ(log->restored[1].target, 0u);
  EXPECT_TRUE(host->over);
  EXPECT_EQ(log->trained, (std::vector<std::uint32_t>{1, 1, 2}));
  EXPECT_EQ(host->recorded, (std::vector<std::uint32_t>{1, 2}));
}

TEST_F(coordinator_test, SaysThatNobodyJoined) {
  plan.join_deadline = 5s;
  start();
  for (int i = 0; i < 6; ++i) {
    sched.advance_time(1s);
    sched.run();
  }
  EXPECT_EQ(host->code, errc::timeout);
  EXPECT_EQ(host->text, "waited 5 s for the learner and 1 rollout to join");
}

TEST_F(coordinator_test, RolesAreGivenOnceAndAgainAfterAnExit) {
  plan.rollouts = 2;
  start();
  const auto ask = [&](std::int64_t pid) {
    join_request r;
    r.pid = pid;
    std::string got;
    auto handle = self->request(c, caf::infinite, r);
    sched.run();
    handle.receive([&](const join_answer& a) { got = name_of(a.role) + std::string(" ") + std::to_string(a.rank); },
                   [&](const caf::error&) { got = "error"; });
    return got;
  };
  EXPECT_EQ(ask(1), "learner 0");
  EXPECT_EQ(ask(2), "rollout 0");
  EXPECT_EQ(ask(3), "rollout 1");
  self->send(c, worker_exited{2, "was killed"});
  sched.run();
  EXPECT_EQ(ask(4), "rollout 0");
  self->send(c, worker_exited{1, "was killed"});
  sched.run();
  EXPECT_EQ(ask(5), "learner 0");
}

TEST_F(coordinator_test, DoorRefusesStrangersWithBothValues) {
  start();
  const auto d = sys.spawn(door, c, "the secret", numerics_name());
  const auto ask = [&](const join_request& r) {
    std::string got;
    auto handle = self->request(d, caf::infinite, r);
    sched.run();
    handle.receive([&](const join_answer&, const coordinator_actor&) { got = "welcome"; },
                   [&](const caf::error& e) { got = to_exception(e, "").what(); });
    return got;
  };
  const join_request good{protocol_hash(), "the secret", build_name(), numerics_name(), "host", "avx2", 7};
  EXPECT_EQ(ask(good), "welcome");
  auto r = good;
  r.protocol = 12;
  EXPECT_EQ(ask(r), "this worker cannot join: its protocol is 12, the run's is " + std::to_string(protocol_hash()) +
                        "; start the run's own program");
  r = good;
  r.build = "9.9.9";
  EXPECT_EQ(ask(r), "this worker cannot join: its build is 9.9.9, the run's is " + build_name() + "; start the run's own program");
  r = good;
  r.numerics = "other";
  EXPECT_EQ(ask(r), "this worker cannot join: its numerics is other, the run's is " + numerics_name() + "; start the run's own program");
  r = good;
  r.secret = "guess";
  EXPECT_EQ(ask(r), "this worker cannot join: it does not know the run's secret");
  kill(d);
}

// ---- workers that are several processes ----

/// A stand-in for a process that is one rank of several.
struct rank_stub {
  rank_actor handle;
  worker_info info;
  std::shared_ptr<std::vector<std::string>> peers = std::make_shared<std::vector<std::string>>();
};

// A function with an argument: for one without, CAF binds a reference to null.
rank_actor::behavior_type rank_stub_actor(rank_actor::pointer, const std::shared_ptr<std::vector<std::string>>& peers) {
  return {[peers](const rank_peers& p) { *peers = p.endpoints; }};
}

struct rank_groups : coordinator_test {
  rank_groups() {
    learner_ranks = 2;
    rollout_ranks = 2;
  }
  rank_stub join_rank(worker_role role, std::uint32_t rank) {
    rank_stub r;
    r.info = {role, rank, "host", ++last_pid, "", "at " + std::to_string(last_pid)};
    r.handle = sys.spawn(rank_stub_actor, r.peers);
    self->send(c, r.info, r.handle);
    sched.run();
    return r;
  }
  void begin_rollout(const rank_stub& first) {
    self->send(c, first.info, sys.spawn(rollout_stub, c, log, false));
    sched.run();
  }
  void begin_learner(const rank_stub& first, bool hang = false) {
    self->send(c, first.info, sys.spawn(learner_stub, log, hang));
    sched.run();
  }
};

TEST_F(rank_groups, AreToldOfEachOtherAndWorkBehindTheirFirst) {
  start();
  const auto second = join_rank(worker_role::learner, 1);
  EXPECT_TRUE(second.peers->empty());
  const auto first = join_rank(worker_role::learner, 0);
  EXPECT_EQ(*first.peers, (std::vector<std::string>{"at 102", "at 101"}));
  EXPECT_EQ(*second.peers, *first.peers);
  const auto a = join_rank(worker_role::rollout, 0), b = join_rank(worker_role::rollout, 1);
  begin_learner(first);
  EXPECT_TRUE(log->restored.empty());
  begin_rollout(a);
  EXPECT_EQ(log->trained, (std::vector<std::uint32_t>{1, 2}));
  EXPECT_EQ(host->lines, (std::vector<std::string>{"worker learner 1 pid 101", "worker rollout 1 pid 104", "worker learner 0 pid 102",
                                                   "worker rollout 0 pid 103"}));
}

TEST_F(rank_groups, AnyRanksDeathReplacesAllOfThem) {
  start();
  const auto first = join_rank(worker_role::learner, 0), second = join_rank(worker_role::learner, 1);
  begin_learner(first, true);
  const auto a = join_rank(worker_role::rollout, 0), b = join_rank(worker_role::rollout, 1);
  begin_rollout(a);
  EXPECT_EQ(log->trained, (std::vector<std::uint32_t>{1}));
  kill(second.handle);
  EXPECT_EQ(std::set<std::int64_t>(host->ended_pids.begin(), host->ended_pids.end()), (std::set<std::int64_t>{101, 102}));
  for (const std::int64_t pid : {101, 102}) { // their exits are no news
    self->send(c, worker_exited{pid, "was killed"});
    sched.run();
  }
  EXPECT_FALSE(host->over) << host->text;
  begin_learner(first); // what a dead one sent just before counts no more
  EXPECT_EQ(log->restored.size(), 1u);
  const auto again = join_rank(worker_role::learner, 0), other = join_rank(worker_role::learner, 1);
  EXPECT_EQ(*again.peers, (std::vector<std::string>{"at 105", "at 106"}));
  begin_learner(again);
  ASSERT_EQ(log->restored.size(), 2u);
  EXPECT_EQ(log->restored[1].incarnation, 1u);
  EXPECT_EQ(log->trained, (std::vector<std::uint32_t>{1, 1, 2}));
}

TEST_F(rank_groups, ARankThatDiesBeforeTheOthersComeIsReplacedAlone) {
  start();
  const auto first = join_rank(worker_role::learner, 0);
  self->send(c, worker_exited{101, "was killed by signal 9"});
  sched.run();
  EXPECT_EQ(host->lines.back(), "learner 0 on host (pid 101) was killed by signal 9");
  const auto second = join_rank(worker_role::learner, 1), again = join_rank(worker_role::learner, 0);
  EXPECT_EQ(*second.peers, (std::vector<std::string>{"at 103", "at 102"}));
  EXPECT_TRUE(first.peers->empty());
}

TEST_F(rank_groups, SilenceOfAnotherRankIsALossAndACauseIsAnEnd) {
  start();
  const auto first = join_rank(worker_role::rollout, 0), second = join_rank(worker_role::rollout, 1);
  self->send(c, worker_failed{worker_role::rollout, 0, "host", "waited too long", std::uint8_t(errc::timeout)});
  sched.run();
  EXPECT_FALSE(host->over);
  EXPECT_EQ(std::set<std::int64_t>(host->ended_pids.begin(), host->ended_pids.end()), (std::set<std::int64_t>{101, 102}));
  self->send(c, worker_failed{worker_role::rollout, 1, "host", "tensor x holds NaN", std::uint8_t(errc::bad_input)});
  for (int i = 0; i < 7; ++i) {
    sched.advance_time(1s);
    sched.run();
  }
  EXPECT_EQ(host->code, errc::bad_input);
  EXPECT_EQ(host->text, "rollout 1 on host: tensor x holds NaN");
}

TEST_F(coordinator_test, WorkersOwnFailureEndsTheRunWithItsLine) {
  start();
  self->send(c, worker_failed{worker_role::rollout, 1, "host", "out of memory", std::uint8_t(errc::failed)});
  sched.run();
  EXPECT_EQ(host->code, errc::failed);
  EXPECT_EQ(host->text, "rollout 1 on host: out of memory");
}

} // namespace
} // namespace troupe
