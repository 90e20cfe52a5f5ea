#include "actors/protocol.hpp"
#include "actors/system.hpp"
#include "tests/run/run_fixture.hpp"
#include <arpa/inet.h>
#include <caf/io/all.hpp>
#include <csignal>
#include <sys/socket.h>
#include <unistd.h>

namespace troupe {
namespace {

/// A run that is started by one hand and whose workers are by others.
struct joined_runs : run_files {
  static std::vector<std::string> by_hand(int rollouts, int local) {
    auto out = processes(rollouts);
    out.push_back("placement.local_workers=" + std::to_string(local));
    return out;
  }
  /// HOST:PORT as the run's log.txt says it.
  static std::string address(const std::string& name) {
    const std::string words = "workers join with: troupe worker --join ";
    std::string log;
    until([&] { return (log = file_bytes(world().run_dir(name) / "log.txt")).find(words) != std::string::npos; });
    const auto begin = log.find(words) + words.size();
    return log.substr(begin, log.find('\n', begin) - begin);
  }
  static std::unique_ptr<program> worker(const std::string& where, const std::vector<std::string>& environment = {}) {
    static int made = 0;
    surroundings around;
    around.environment = environment;
    return std::make_unique<program>(std::vector<std::string>{"worker", "--join", where, "--threads", "1"},
                                     world().run_dir("worker" + std::to_string(made++)), around);
  }
  static void expect_quiet_end(program& w) {
    EXPECT_EQ(w.wait(whole_run), 0);
    EXPECT_EQ(w.err(), "");
  }
  /// Waits until `n` workers of a role have joined; the last one's pid.
  static pid_t joiner(const std::string& name, const std::string& role, std::size_t n) {
    EXPECT_TRUE(until([&] { return joined(world().run_dir(name), role).size() >= n; })) << file_bytes(world().run_dir(name) / "log.txt");
    const auto all = joined(world().run_dir(name), role);
    return all.empty() ? 0 : all.back();
  }
};

TEST_F(joined_runs, WorkersThatAreStartedByHandMakeTheSameBits) {
  for (const int local : {0, 1}) {
    const std::string name = "by-hand" + std::to_string(local);
    SCOPED_TRACE(name);
    auto p = start(name, by_hand(2, local));
    std::vector<std::unique_ptr<program>> workers;
    for (int i = local; i < 3; ++i)
      workers.push_back(worker(address(name)));
    ASSERT_EQ(p.wait(whole_run), 0) << p.err() << file_bytes(world().run_dir(name) / "log.txt");
    for (const auto& w : workers)
      expect_quiet_end(*w);
    EXPECT_EQ(joined(world().run_dir(name), "learner").size(), 1u);
    EXPECT_EQ(joined(world().run_dir(name), "rollout").size(), 2u);
    expect_whole(name);
  }
}

TEST_F(joined_runs, LaterWorkersTakeTheDeadOnesPlaces) {
  const std::string name = "replaced";
  auto p = start(name, by_hand(1, 0));
  const std::string where = address(name);
  const auto learner = worker(where);
  const pid_t first_learner = joiner(name, "learner", 1);
  const auto rollout = worker(where);
  const pid_t first_rollout = joiner(name, "rollout", 1);
  EXPECT_EQ(first_learner, learner->pid());
  EXPECT_EQ(first_rollout, rollout->pid());
  ASSERT_TRUE(reaches(name, 4));
  kill(first_rollout, SIGKILL);
  const auto second = worker(where);
  EXPECT_EQ(joiner(name, "rollout", 2), second->pid());
  ASSERT_TRUE(reaches(name, 8));
  kill(first_learner, SIGKILL);
  const auto third = worker(where);
  EXPECT_EQ(joiner(name, "learner", 2), third->pid());
  const auto more = worker(where); // one more than the layout asks for
  ASSERT_EQ(p.wait(whole_run), 0) << p.err() << file_bytes(world().run_dir(name) / "log.txt");
  expect_quiet_end(*second);
  expect_quiet_end(*third);
  more->wait(whole_run); // it may have come too late
  expect_whole(name);
}

TEST_F(joined_runs, WorkersOfADeadRunEnd) {
  const std::string name = "abandoned";
  auto p = start(name, by_hand(1, 0));
  const std::string where = address(name);
  const auto first = worker(where), second = worker(where);
  ASSERT_TRUE(reaches(name, 2));
  p.signal(SIGKILL);
  for (program* w : {first.get(), second.get()}) {
    EXPECT_EQ(w->wait(20s), 1);
    EXPECT_NE(w->err().find("the run is gone"), std::string::npos) << w->err();
    EXPECT_EQ(n_lines(w->err()), 1u) << w->err();
  }
  // The secret of the dead run is still there, and nobody listens.
  const auto late = worker(where);
  EXPECT_EQ(late->wait(whole_run), 1);
  EXPECT_NE(late->err().find("--join " + where + ": cannot connect"), std::string::npos) << late->err();
}

TEST_F(joined_runs, SignalEndsTheWaitForWorkers) {
  const std::string name = "lonely";
  auto p = start(name, by_hand(1, 0));
  address(name);
  p.signal(SIGINT);
  EXPECT_EQ(p.wait(whole_run), 1);
  EXPECT_EQ(p.err(), "troupe: stopped before a step began; start it again to go on\n");
}

// ---- versions ----

std::string secret_of(const std::string& where) {
  return file_bytes("/tmp/troupe-" + std::to_string(getuid()) + '/' + where.substr(where.find(':') + 1) + ".secret");
}

std::uint16_t port_of(const std::string& where) { return std::uint16_t(std::stoi(where.substr(where.find(':') + 1))); }

TEST_F(joined_runs, StrangersAreRefusedWithBothValuesAndCostNothing) {
  const std::string name = "strangers";
  auto p = start(name, by_hand(1, 0));
  const std::string where = address(name);
  {
    system_config settings(true);
    caf::actor_system sys{settings};
    caf::scoped_actor self{sys};
    const auto door = sys.middleman().remote_actor<door_actor>("127.0.0.1", port_of(where));
    ASSERT_TRUE(door) << caf::to_string(door.error());
    const join_request good{protocol_hash(), secret_of(where), build_name(), numerics_name(), "host", "avx2", 1};
    const auto refusal = [&](const join_request& request) {
      std::string text = "let in";
      self->request(*door, 30s, request)
          .receive([](const join_answer&, const coordinator_actor&) {},
                   [&](const caf::error& e) {
                     const error what = to_exception(e, "");
                     text = what.what();
                     EXPECT_EQ(exit_code(what.code()), 2);
                   });
      return text;
    };
    auto other = good;
    other.protocol = 12;
    EXPECT_EQ(refusal(other), "this worker cannot join: its protocol is 12, the run's is " + std::to_string(protocol_hash()) +
                                  "; start the run's own program");
    other = good;
    other.build = "0.0.9";
    EXPECT_EQ(refusal(other),
              "this worker cannot join: its build is 0.0.9, the run's is " + build_name() + "; start the run's own program");
    other = good;
    other.numerics = "coarse";
    EXPECT_EQ(refusal(other),
              "this worker cannot join: its numerics is coarse, the run's is " + numerics_name() + "; start the run's own program");
    other = good;
    other.secret = "guess";
    EXPECT_EQ(refusal(other), "this worker cannot join: it does not know the run's secret");
  }
  const auto wrong_secret = worker(where, {"TROUPE_SECRET=guess"});
  EXPECT_EQ(wrong_secret->wait(whole_run), 2);
  EXPECT_EQ(wrong_secret->err(), "troupe: this worker cannot join: it does not know the run's secret\n");
  const auto first = worker(where), second = worker(where);
  ASSERT_EQ(p.wait(whole_run), 0) << p.err();
  expect_quiet_end(*first);
  expect_quiet_end(*second);
  expect_whole(name);
}

// ---- who listens there? ----

/// A socket of this process that listens; `answer`: what it says to who connects. It never hangs up.
class listener {
public:
  listener() {
    fd_ = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockaddr_in at{};
    at.sin_family = AF_INET;
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof at;
    EXPECT_EQ(bind(fd_, reinterpret_cast<sockaddr*>(&at), size), 0);
    EXPECT_EQ(listen(fd_, 8), 0);
    EXPECT_EQ(getsockname(fd_, reinterpret_cast<sockaddr*>(&at), &size), 0);
    port_ = ntohs(at.sin_port);
  }
  ~listener() {
    if (peer_ >= 0)
      close(peer_);
    close(fd_);
  }
  listener(const listener&) = delete;
  listener& operator=(const listener&) = delete;
  std::string address() const { return "127.0.0.1:" + std::to_string(port_); }
  std::uint16_t port() const { return port_; }
  void answer(const std::string& text) {
    peer_ = accept4(fd_, nullptr, nullptr, SOCK_CLOEXEC);
    EXPECT_EQ(send(peer_, text.data(), text.size(), MSG_NOSIGNAL), ssize_t(text.size()));
  }

private:
  int fd_ = -1, peer_ = -1;
  std::uint16_t port_ = 0;
};

TEST_F(joined_runs, AnotherProgramBehindTheAddressIsNamed) {
  for (const std::string& text : {std::string(), std::string("HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")}) {
    listener other;
    const auto w = worker(other.address(), {"TROUPE_SECRET=x"});
    other.answer(text);
    EXPECT_EQ(w->wait(60s), 1) << text;
    EXPECT_NE(w->err().find("--join " + other.address() + ": "), std::string::npos) << w->err();
    EXPECT_EQ(n_lines(w->err()), 1u) << w->err();
  }
}

TEST_F(joined_runs, PortInUseIsRefusedAndLeavesNothing) {
  const listener other;
  auto settings = processes(1);
  settings.push_back("placement.listen=" + other.address());
  auto p = start("port", settings);
  EXPECT_EQ(p.wait(whole_run), 2);
  EXPECT_EQ(p.err(), "troupe: placement.listen: port " + std::to_string(other.port()) +
                         " of 127.0.0.1 cannot be listened on (Address already in use); name another, or 0 for any\n");
  EXPECT_FALSE(std::filesystem::exists(world().run_dir("port")));
}

} // namespace
} // namespace troupe
