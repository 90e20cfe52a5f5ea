#include "model/parallel/device_test_support.hpp"
#include "model/parallel/test_support.hpp"
#include <csignal>

namespace troupe {
namespace {

class DeviceRanks : public testing::Test {
protected:
  static std::vector<worker_process> start(int n, const std::string& task, int deadline_ms) {
    return start_workers(program_beside("device_worker"), n, {task, std::to_string(deadline_ms)});
  }
  static void expect_lines(std::vector<worker_process>& workers, const std::string& line) {
    for (auto& w : workers)
      ASSERT_EQ(w.line(), line);
  }
  static void expect_mention(const std::string& text, const std::string& part) { EXPECT_NE(text.find(part), std::string::npos) << text; }
};

#define NEEDS_DEVICE_RANKS(n)                                                                                                              \
  if (const std::string why = prepare_device_ranks(n); !why.empty())                                                                       \
  GTEST_SKIP() << why

TEST_F(DeviceRanks, ExchangeBytesAndAddUpToTheThreadsBits) {
  for (const int n : {2, 3}) {
    NEEDS_DEVICE_RANKS(n);
    auto workers = start(n, "primitives", 60000);
    expect_lines(workers, "the same bytes");
    for (auto& w : workers)
      EXPECT_EQ(w.wait(), 0);
  }
}

TEST_F(DeviceRanks, AKilledPeerEndsTheOthersWaitAtTheDeadline) {
  NEEDS_DEVICE_RANKS(3);
  auto workers = start(3, "wait", 4000);
  expect_lines(workers, "ready");
  workers[1].signal(SIGKILL);
  for (const std::size_t r : {0u, 2u})
    workers[r].write("go\n");
  for (const std::size_t r : {0u, 2u}) {
    const std::string text = workers[r].line();
    expect_mention(text, "communicator test: rank");
    expect_mention(text, "waited 4000 ms for what comes after");
    EXPECT_EQ(workers[r].wait(), 3);
  }
}

TEST_F(DeviceRanks, ARankThatNeverJoinsIsWaitedForUntilTheDeadline) {
  NEEDS_DEVICE_RANKS(2);
  auto workers = start(2, "absent", 4000);
  expect_mention(workers[0].line(), "waited 4000 ms for all ranks to join");
  EXPECT_EQ(workers[0].wait(), 3);
  EXPECT_EQ(workers[1].line(), "absent");
}

TEST_F(DeviceRanks, AnAbortEndsTheOthersWaitWithTheReason) {
  NEEDS_DEVICE_RANKS(2);
  auto workers = start(2, "wait", 60000);
  expect_lines(workers, "ready");
  workers[0].write("go\n");
  workers[1].write("abort\n");
  EXPECT_EQ(workers[0].line(), "the user stopped it");
  EXPECT_EQ(workers[0].wait(), 3);
  EXPECT_EQ(workers[1].wait(), 0);
}

} // namespace
} // namespace troupe
