#include "core/zmq_util.hpp"
#include "experience/channel.hpp"
#include "experience/test_util.hpp"
#include <condition_variable>
#include <csignal>
#include <map>
#include <mutex>
#include <sys/wait.h>
#include <thread>

namespace troupe {
namespace {

using namespace std::chrono_literals;

/// Collects what arrives; can be told to block.
class inbox {
public:
  std::function<void(std::string)> sink() {
    return [this](std::string bytes) {
      std::unique_lock lock(mutex_);
      open_.wait(lock, [this] { return !closed_; });
      messages_.push_back(std::move(bytes));
      open_.notify_all();
    };
  }
  void close(bool closed) {
    const std::lock_guard lock(mutex_);
    closed_ = closed;
    open_.notify_all();
  }
  std::vector<std::string> wait_for(std::size_t n) {
    std::unique_lock lock(mutex_);
    EXPECT_TRUE(open_.wait_for(lock, 20s, [&] { return messages_.size() >= n; }));
    return messages_;
  }

private:
  std::mutex mutex_;
  std::condition_variable open_;
  bool closed_ = false;
  std::vector<std::string> messages_;
};

TEST(channel, messages_arrive_once_and_in_order) {
  inbox in;
  const auto receiver = listen_experience("127.0.0.1", "secret", 3, in.sink());
  const auto sender = connect_experience(receiver->endpoint(), "secret");
  std::vector<std::string> sent = {"", std::string("\0x", 2), std::string(5 << 20, 'a')};
  for (int i = 0; i < 300; ++i)
    sent.push_back(std::to_string(i));
  for (const std::string& bytes : sent)
    sender->send(bytes, 10s);
  sender->flush(10s);
  EXPECT_EQ(in.wait_for(sent.size()), sent);
}

TEST(channel, several_senders) {
  inbox in;
  const auto receiver = listen_experience("127.0.0.1", "secret", 2, in.sink());
  std::vector<std::thread> threads;
  for (char name : {'a', 'b', 'c'})
    threads.emplace_back([&, name] {
      const auto sender = connect_experience(receiver->endpoint(), "secret");
      for (int i = 0; i < 100; ++i)
        sender->send(name + std::to_string(i), 10s);
      sender->flush(10s);
    });
  for (std::thread& t : threads)
    t.join();
  std::map<char, int> next;
  for (const std::string& bytes : in.wait_for(300))
    EXPECT_EQ(bytes.substr(1), std::to_string(next[bytes[0]]++));
  EXPECT_EQ(next, (std::map<char, int>{{'a', 100}, {'b', 100}, {'c', 100}}));
}

TEST(channel, a_sender_has_no_more_than_its_credits_on_the_way) {
  inbox in;
  const auto receiver = listen_experience("127.0.0.1", "secret", 2, in.sink());
  const auto sender = connect_experience(receiver->endpoint(), "secret");
  in.close(true);
  sender->send("0", 10s);
  sender->send("1", 10s);
  expect_error(errc::timeout, {receiver->endpoint(), "100 ms", "a credit"}, [&] { sender->send("2", 100ms); });
  expect_error(errc::timeout, {receiver->endpoint(), "receipt"}, [&] { sender->flush(50ms); });
  in.close(false);
  sender->send("3", 10s); // "2" was refused, not queued
  sender->flush(10s);
  EXPECT_EQ(in.wait_for(3), (std::vector<std::string>{"0", "1", "3"}));
}

TEST(channel, strangers_are_dropped) {
  inbox in;
  const auto receiver = listen_experience("127.0.0.1", "secret", 2, in.sink());
  for (const char* wrong : {"", "secre", "secret1", "Secret"})
    expect_error(errc::timeout, {receiver->endpoint(), "secret"},
                 [&] { connect_experience(receiver->endpoint(), wrong)->send("x", 150ms); });
  zmq::context_t context(1);
  zmq::socket_t stranger(context, zmq::socket_type::dealer);
  stranger.set(zmq::sockopt::linger, 100);
  stranger.connect(receiver->endpoint());
  const std::vector<std::vector<std::string>> odd = {{"x"},
                                                     {"secret"},
                                                     {"secret", "short", ""},
                                                     {"secret", std::string(24, '\0')},
                                                     {"secret", std::string(24, '\0'), "x", "y"},
                                                     {"", "", "", "", "", ""}};
  for (const auto& frames : odd)
    for (std::size_t i = 0; i < frames.size(); ++i)
      send_frame(stranger, frames[i], i + 1 < frames.size());
  const auto sender = connect_experience(receiver->endpoint(), "secret");
  sender->send("fine", 10s);
  sender->flush(10s);
  EXPECT_EQ(in.wait_for(1), (std::vector<std::string>{"fine"}));
}

TEST(channel, nobody_listens) {
  std::string endpoint;
  {
    inbox in;
    endpoint = listen_experience("127.0.0.1", "secret", 1, in.sink())->endpoint();
  }
  const auto sender = connect_experience(endpoint, "secret");
  expect_error(errc::timeout, {endpoint}, [&] { sender->send("x", 100ms); });
  sender->flush(100ms); // nothing is on the way
}

TEST(channel, what_is_asked_must_make_sense) {
  inbox in;
  expect_error(errc::bad_input, {"credit"}, [&] { listen_experience("127.0.0.1", "s", 0, in.sink()); });
  expect_error(errc::io, {"192.0.2.1"}, [&] { listen_experience("192.0.2.1", "s", 1, in.sink()); });
  for (const char* endpoint : {"", "here", "tcp://", "tcp://127.0.0.1", "tcp://127.0.0.1:99999", "http://127.0.0.1:1"})
    expect_error(errc::bad_input, {"cannot connect"}, [&] { connect_experience(endpoint, "s"); });
}

/// A child process that runs `f` and never returns; killed at the end at the latest.
class child {
public:
  template <class F>
  explicit child(F f) : pid_(fork()) {
    if (pid_ == 0) {
      f();
      _exit(0);
    }
  }
  ~child() { kill(); }
  void kill() {
    if (pid_ > 0) {
      ::kill(pid_, SIGKILL);
      waitpid(pid_, nullptr, 0);
    }
    pid_ = -1;
  }

private:
  pid_t pid_;
};

TEST(channel, a_killed_receiver_does_not_hang_its_sender) {
  int to_parent[2];
  ASSERT_EQ(pipe(to_parent), 0);
  child receiver([&] {
    const auto listening = listen_experience("127.0.0.1", "secret", 2, [](const std::string&) {});
    const std::string endpoint = listening->endpoint();
    if (write(to_parent[1], endpoint.data(), endpoint.size()) > 0)
      pause();
  });
  char endpoint[64] = {};
  ASSERT_GT(read(to_parent[0], endpoint, sizeof endpoint - 1), 0);
  const auto sender = connect_experience(endpoint, "secret");
  sender->send("x", 10s);
  sender->flush(10s);
  receiver.kill();
  const auto send_all = [&] {
    for (int i = 0; i < 3; ++i)
      sender->send(std::string(1 << 20, 'x'), 200ms);
  };
  expect_error(errc::timeout, {endpoint}, send_all);
  close(to_parent[0]);
  close(to_parent[1]);
}

TEST(channel, a_killed_sender_does_not_disturb_the_others) {
  inbox in;
  int to_child[2];
  ASSERT_EQ(pipe(to_child), 0);
  // Forked before a socket exists here: the child makes its own.
  child dying([&] {
    char endpoint[64] = {};
    if (read(to_child[0], endpoint, sizeof endpoint - 1) <= 0)
      return;
    const auto sender = connect_experience(endpoint, "secret");
    for (;;)
      sender->send(std::string(100000, 'x'), 10s);
  });
  const auto receiver = listen_experience("127.0.0.1", "secret", 2, in.sink());
  const std::string endpoint = receiver->endpoint();
  ASSERT_GT(write(to_child[1], endpoint.data(), endpoint.size()), 0);
  in.wait_for(3);
  dying.kill();
  const auto sender = connect_experience(endpoint, "secret");
  sender->send("alive", 10s);
  sender->flush(10s);
  for (const std::string& bytes : in.wait_for(4))
    EXPECT_TRUE(bytes == "alive" || bytes == std::string(100000, 'x')); // never half a message
  close(to_child[0]);
  close(to_child[1]);
}

} // namespace
} // namespace troupe
