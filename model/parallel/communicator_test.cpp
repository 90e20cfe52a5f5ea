#include "core/error.hpp"
#include "core/zmq_util.hpp"
#include "model/kernels/thread_pool.hpp"
#include "model/parallel/communicator.hpp"
#include "model/parallel/reduce.hpp"
#include "model/parallel/test_support.hpp"
#include <array>
#include <atomic>
#include <bit>
#include <random>

namespace troupe {
namespace {

using kernels::bf16;
using groups = std::vector<std::shared_ptr<communicator>>;

enum class transport { threads, zmq };

// A world of n ranks and one group of them all, over either transport.
struct test_world {
  test_world(transport kind, int n, communicator_deadline deadline = std::chrono::seconds(20)) {
    if (kind == transport::threads) {
      threads = std::make_unique<thread_world>(deadline);
      ranks = threads->group("test", n);
      return;
    }
    std::vector<std::string> endpoints;
    std::vector<int> all;
    for (int r = 0; r < n; ++r) {
      worlds.push_back(std::make_unique<zmq_world>(r, n, "secret", deadline));
      endpoints.push_back(worlds.back()->endpoint());
      all.push_back(r);
    }
    for (auto& w : worlds) {
      w->connect(endpoints);
      ranks.push_back(w->group("test", all));
    }
  }
  std::unique_ptr<thread_world> threads;
  std::vector<std::unique_ptr<zmq_world>> worlds;
  groups ranks;
};

class Communicator : public testing::TestWithParam<transport> {
protected:
  void SetUp() override {
#ifdef __SANITIZE_THREAD__
    if (GetParam() == transport::zmq)
      GTEST_SKIP() << "libzmq is not instrumented";
#endif
  }
};

std::vector<std::int32_t> pattern(int from, int to, std::size_t n) {
  std::vector<std::int32_t> v(n);
  for (std::size_t i = 0; i < n; ++i)
    v[i] = std::int32_t(1000003 * from + 7919 * to) + std::int32_t(i);
  return v;
}

TEST_P(Communicator, MovesTheRightBytes) {
  for (const int n : {1, 2, 3, 4})
    for (const std::size_t count : {std::size_t{0}, std::size_t{1}, std::size_t{33}, std::size_t{70001}}) {
      test_world world(GetParam(), n);
      expect_no_errors(run_ranks(n, [&](int r) {
        communicator& c = *world.ranks[std::size_t(r)];
        ASSERT_EQ(c.rank(), r);
        ASSERT_EQ(c.size(), n);
        std::vector<std::int32_t> all(count * std::size_t(n)), expected, out;
        c.all_gather(pattern(r, 0, count).data(), all.data(), count * 4, "a gather");
        for (int i = 0; i < n; ++i)
          for (auto v : pattern(i, 0, count))
            expected.push_back(v);
        EXPECT_EQ(all, expected);
        expected.clear();
        for (int i = 0; i < n; ++i) {
          for (auto v : pattern(r, i, count))
            out.push_back(v);
          for (auto v : pattern(i, r, count))
            expected.push_back(v);
        }
        c.all_to_all(out.data(), all.data(), count * 4, "an exchange");
        EXPECT_EQ(all, expected);
        for (int root = 0; root < n; ++root) {
          auto data = pattern(r, root, count);
          c.broadcast(data.data(), count * 4, root, "a broadcast");
          EXPECT_EQ(data, pattern(root, root, count));
        }
        c.barrier("the middle");
        // A chain, two messages each, in order.
        if (r + 1 < n)
          for (int m : {0, 1})
            c.send(pattern(r, m, count).data(), count * 4, r + 1, "a message");
        if (r > 0)
          for (int m : {0, 1}) {
            std::vector<std::int32_t> got(count);
            c.recv(got.data(), count * 4, r - 1, "a message");
            EXPECT_EQ(got, pattern(r - 1, m, count));
          }
      }));
    }
}

TEST_P(Communicator, DifferentSizesAreAnErrorThatNamesBoth) {
  test_world world(GetParam(), 2);
  const auto results = run_ranks(2, [&](int r) {
    std::vector<char> mine(std::size_t(8 + r)), all(40);
    world.ranks[std::size_t(r)]->all_gather(mine.data(), all.data(), mine.size(), "the widths");
  });
  for (const auto& result : results) {
    EXPECT_NE(result.text.find("the widths, 8 bytes"), std::string::npos) << result.text;
    EXPECT_NE(result.text.find("the widths, 9 bytes"), std::string::npos) << result.text;
  }
}

TEST_P(Communicator, DifferentCallsAreAnErrorThatNamesBoth) {
  test_world world(GetParam(), 2);
  const auto results = run_ranks(2, [&](int r) {
    char data[16] = {};
    if (r == 0)
      world.ranks[0]->barrier("the barrier");
    else
      world.ranks[1]->broadcast(data, 4, 0, "the data");
  });
  EXPECT_NE(results[1].text.find("barrier (the barrier"), std::string::npos) << results[1].text;
  EXPECT_NE(results[1].text.find("broadcast (the data"), std::string::npos) << results[1].text;
}

TEST_P(Communicator, AReceiverOfAnotherSizeIsTold) {
  test_world world(GetParam(), 2);
  const auto results = run_ranks(2, [&](int r) {
    char data[16] = {};
    if (r == 0)
      world.ranks[0]->send(data, 16, 1, "rows");
    else
      world.ranks[1]->recv(data, 12, 0, "rows");
  });
  EXPECT_EQ(results[1].code, errc::bad_shape);
  EXPECT_NE(results[1].text.find("16 bytes"), std::string::npos) << results[1].text;
  EXPECT_NE(results[1].text.find("12 bytes"), std::string::npos) << results[1].text;
}

TEST_P(Communicator, ARankThatDoesNotComeIsNamedAfterTheDeadline) {
  test_world world(GetParam(), 3, std::chrono::milliseconds(200));
  const auto results = run_ranks(3, [&](int r) {
    if (r != 1)
      world.ranks[std::size_t(r)]->barrier("step 7");
  });
  for (const int r : {0, 2}) {
    EXPECT_TRUE(results[std::size_t(r)].code == errc::timeout || results[std::size_t(r)].code == errc::peer_lost);
    EXPECT_NE(results[std::size_t(r)].text.find("step 7"), std::string::npos);
    EXPECT_NE(results[std::size_t(r)].text.find("for rank 1"), std::string::npos) << results[std::size_t(r)].text;
  }
}

TEST_P(Communicator, AMessageThatDoesNotComeIsNamedAfterTheDeadline) {
  test_world world(GetParam(), 2, std::chrono::milliseconds(200));
  const auto results = run_ranks(2, [&](int r) {
    char data[4];
    if (r == 1)
      world.ranks[1]->recv(data, 4, 0, "stage input");
  });
  EXPECT_EQ(results[1].code, errc::timeout);
  EXPECT_NE(results[1].text.find("recv (stage input"), std::string::npos) << results[1].text;
}

TEST_P(Communicator, AbortWakesEveryoneWithTheReason) {
  test_world world(GetParam(), 3, std::chrono::minutes(2));
  const auto start = std::chrono::steady_clock::now();
  const auto results = run_ranks(3, [&](int r) {
    if (r == 2) {
      std::this_thread::sleep_for(std::chrono::milliseconds(100));
      world.ranks[2]->abort("the user stopped it");
    } else {
      world.ranks[std::size_t(r)]->barrier("nothing");
    }
  });
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(60));
  for (const int r : {0, 1}) {
    EXPECT_EQ(results[std::size_t(r)].text, "the user stopped it");
    EXPECT_EQ(results[std::size_t(r)].code, errc::peer_lost);
  }
  // And it stays so.
  EXPECT_THROW(world.ranks[0]->barrier("later"), error);
  EXPECT_THROW(world.ranks[2]->barrier("later"), error);
}

TEST_P(Communicator, ACheckHearsOfAnAbortAndTakesNoMessageAway) {
  test_world world(GetParam(), 2);
  expect_no_errors(run_ranks(2, [&](int r) {
    communicator& c = *world.ranks[std::size_t(r)];
    const std::int32_t mine = 7 + r;
    std::int32_t theirs = 0;
    c.send(&mine, sizeof mine, 1 - r, "a message");
    for (int i = 0; i < 100; ++i)
      c.check();
    c.recv(&theirs, sizeof theirs, 1 - r, "a message");
    EXPECT_EQ(theirs, 8 - r);
  }));
  world.ranks[1]->abort("the user stopped it");
  const auto hears = [&](int r) {
    try {
      world.ranks[std::size_t(r)]->check();
    } catch (const error& e) {
      return std::string(e.what()) == "the user stopped it" && e.code() == errc::peer_lost;
    }
    return false;
  };
  EXPECT_TRUE(hears(1));
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(60);
  while (!hears(0) && std::chrono::steady_clock::now() < end)
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  EXPECT_TRUE(hears(0));
}

TEST_P(Communicator, RanksOutsideTheGroupAreRefused) {
  test_world world(GetParam(), 2);
  char data[4] = {};
  EXPECT_THROW(world.ranks[0]->send(data, 4, 0, "x"), error);
  EXPECT_THROW(world.ranks[0]->send(data, 4, 2, "x"), error);
  EXPECT_THROW(world.ranks[0]->recv(data, 4, -1, "x"), error);
  EXPECT_THROW(world.ranks[0]->broadcast(data, 4, 5, "x"), error);
}

INSTANTIATE_TEST_SUITE_P(Transports, Communicator, testing::Values(transport::threads, transport::zmq),
                         [](const auto& info) { return info.param == transport::threads ? "threads" : "zmq"; });

// ---- sums ----

TEST(Reduce, SumsAreInRankOrderAndRoundedOnce) {
  std::mt19937 rng(5);
  std::normal_distribution<float> normal(0, 100);
  for (const int n : {2, 3, 4})
    for (const std::int64_t count : {1, 7, 1025, 40000}) {
      std::vector<std::vector<float>> f(static_cast<std::size_t>(n));
      std::vector<std::vector<bf16>> b(static_cast<std::size_t>(n));
      std::vector<float> sum(static_cast<std::size_t>(count)), sum_of_b(static_cast<std::size_t>(count));
      for (int r = 0; r < n; ++r)
        for (std::size_t i = 0; i < std::size_t(count); ++i) {
          f[std::size_t(r)].push_back(normal(rng));
          b[std::size_t(r)].push_back(kernels::narrow(f[std::size_t(r)][i]));
          sum[i] = r == 0 ? f[0][i] : sum[i] + f[std::size_t(r)][i];
          sum_of_b[i] = r == 0 ? kernels::widen(b[0][i]) : sum_of_b[i] + kernels::widen(b[std::size_t(r)][i]);
        }
      test_world world(transport::threads, n);
      expect_no_errors(run_ranks(n, [&](int r) {
        thread_pool pool(r % 2 + 1);
        auto mine = f[std::size_t(r)];
        all_reduce(*world.ranks[std::size_t(r)], pool, mine.data(), count, "f32");
        EXPECT_EQ(0, std::memcmp(mine.data(), sum.data(), sum.size() * 4));
        auto half = b[std::size_t(r)];
        all_reduce(*world.ranks[std::size_t(r)], pool, half.data(), count, "bf16");
        for (std::size_t i = 0; i < half.size(); ++i)
          ASSERT_EQ(half[i], kernels::narrow(sum_of_b[i]));
        // Scattered: the same bits, a slice a rank.
        const std::int64_t slice = count / n;
        std::vector<float> parts(f[std::size_t(r)].begin(), f[std::size_t(r)].begin() + slice * n), own(static_cast<std::size_t>(slice));
        reduce_scatter(*world.ranks[std::size_t(r)], pool, parts.data(), slice, own.data(), "scatter");
        EXPECT_EQ(std::vector<float>(sum.begin() + r * slice, sum.begin() + (r + 1) * slice), own);
      }));
    }
}

// ---- processes ----

#ifndef __SANITIZE_THREAD__

const std::string worker = TROUPE_PARALLEL_WORKER;

TEST(Processes, ExchangeAndAddUpLikeThreads) {
  auto workers = start_workers(worker, 3, {"sums"});
  std::array<std::string, 3> lines;
  for (std::size_t r = 0; r < 3; ++r)
    lines[r] = workers[r].line();
  std::vector<float> sum;
  for (int r = 0; r < 3; ++r)
    for (int i = 0; i < 50000; ++i) {
      const float x = 1.f / float(1 + r * 50000 + i);
      r == 0 ? sum.push_back(x) : void(sum[std::size_t(i)] += x);
    }
  std::uint64_t digest = 0;
  for (const float v : sum)
    digest = digest * 1099511628211ull + std::bit_cast<std::uint32_t>(v);
  for (std::size_t r = 0; r < 3; ++r) {
    EXPECT_EQ(lines[r], std::to_string(digest));
    EXPECT_EQ(workers[r].wait(), 0);
  }
}

TEST(Processes, AKilledPeerIsNamedAfterTheDeadline) {
  auto workers = start_workers(worker, 3, {"wait", "2000"});
  for (auto& w : workers)
    ASSERT_EQ(w.line(), "ready");
  workers[1].signal(SIGKILL);
  for (const std::size_t r : {0u, 2u})
    workers[r].write("go\n");
  for (const std::size_t r : {0u, 2u}) {
    const std::string text = workers[r].line();
    EXPECT_NE(text.find("for rank 1"), std::string::npos) << text;
    EXPECT_NE(text.find("after the kill"), std::string::npos) << text;
    EXPECT_EQ(workers[r].wait(), 3);
  }
}

TEST(Processes, AStoppedPeerIsNamedAfterTheDeadline) {
  auto workers = start_workers(worker, 2, {"wait", "2000"});
  for (auto& w : workers)
    ASSERT_EQ(w.line(), "ready");
  workers[1].signal(SIGSTOP);
  workers[0].write("go\n");
  EXPECT_NE(workers[0].line().find("for rank 1"), std::string::npos);
  EXPECT_EQ(workers[0].wait(), 3);
}

TEST(Processes, StrangersAreRefusedAndCounted) {
  zmq_world world(0, 2, "secret", std::chrono::milliseconds(300));
  world.connect({world.endpoint(), "tcp://127.0.0.1:9"});
  const auto group = world.group("test", {0, 1});
  zmq::context_t context;
  zmq::socket_t stranger(context, zmq::socket_type::push);
  stranger.set(zmq::sockopt::linger, 0);
  connect_to(stranger, world.endpoint());
  for (const char* secret : {"", "Secret", "secret "}) {
    send_frame(stranger, std::string_view(secret), true);
    send_frame(stranger, std::string_view("header"), true);
    send_frame(stranger, std::string_view("bytes"), false);
  }
  try {
    char data[4];
    group->recv(data, 4, 1, "rows");
    FAIL();
  } catch (const error& e) {
    EXPECT_EQ(e.code(), errc::timeout);
    EXPECT_NE(std::string(e.what()).find("3 messages without the run's secret were refused"), std::string::npos) << e.what();
  }
}

TEST(Processes, AMessageThatIsNoneOfTheWorldIsRefused) {
  const std::vector<std::string> headers = {"short", std::string(40, 'x')};
  for (const auto& header : headers) {
    zmq_world world(0, 2, "secret", std::chrono::seconds(20));
    world.connect({world.endpoint(), "tcp://127.0.0.1:9"});
    const auto group = world.group("test", {0, 1});
    zmq::context_t context;
    zmq::socket_t peer(context, zmq::socket_type::push);
    peer.set(zmq::sockopt::linger, 0);
    connect_to(peer, world.endpoint());
    send_frame(peer, std::string_view("secret"), true);
    send_frame(peer, header, true);
    send_frame(peer, std::string_view("bytes"), false);
    char data[4];
    try {
      group->recv(data, 4, 1, "rows");
      FAIL();
    } catch (const error& e) {
      EXPECT_EQ(e.code(), errc::bad_input) << e.what();
    }
  }
  zmq_world world(0, 2, "secret");
  EXPECT_THROW(world.connect({"tcp://127.0.0.1:9"}), error);
  EXPECT_THROW(world.connect({world.endpoint(), "nowhere"}), error);
  EXPECT_THROW(world.group("test", {1}), error);
}

#endif

} // namespace
} // namespace troupe
