#include "model/kernels/cuda/checksum.hpp"
#include "model/parallel/device_test_support.hpp"
#include "model/parallel/test_support.hpp"
#include "weightsync/device.hpp"
#include "weightsync/device_test_support.hpp"
#include "weightsync/manifest.hpp"
#include <csignal>

namespace troupe {
namespace {

constexpr std::uint64_t everything = 2 * (1024 * 1024 + 21 + 33 + 1800000), trainable = everything - 66;

TEST(device_checksum, is_the_hosts_at_every_length_and_place) {
  if (cuda::device_count() == 0)
    GTEST_SKIP() << "no GPU";
  std::mt19937_64 random(3);
  std::vector<std::byte> bytes(5 << 20);
  for (auto& b : bytes)
    b = std::byte(random());
  cuda::device_buffer all(bytes.size());
  all.upload(bytes.data());
  std::vector<device_bytes> ranges;
  std::vector<std::uint64_t> expected;
  const auto add = [&](std::size_t begin, std::size_t n) {
    ranges.push_back({static_cast<std::byte*>(all.data()) + begin, n});
    expected.push_back(weights_checksum(std::span(bytes).subspan(begin, n)));
  };
  for (std::size_t n = 0; n < 70; ++n)
    add(n % 3 * 16, n);
  for (const std::size_t begin : {0, 2, 8, 16, 1026})
    for (const std::size_t n : {4096, 100001, 4 << 20})
      add(begin, n);
  EXPECT_EQ(device_checksums(ranges), expected);
}

/// Processes with a GPU, or a share of one: a source and sinks, each answering line by line.
class NcclChannel : public testing::Test {
protected:
  worker_process start(std::vector<std::string> arguments) {
    arguments.insert(arguments.begin(), std::to_string(started_++ % cuda::device_count()));
    return {program_beside("weights_worker"), arguments};
  }
  worker_process start_source(int window_ms = 3000, int transfer_ms = 60000) {
    worker_process source = start({"source", std::to_string(window_ms), std::to_string(transfer_ms)});
    endpoint_ = source.line();
    EXPECT_TRUE(endpoint_.starts_with("nccl:")) << endpoint_;
    return source;
  }
  worker_process start_sink() { return start({"sink", endpoint_}); }
  static std::string ask(worker_process& w, const std::string& line) {
    w.write(line + "\n");
    return w.line();
  }
  static void publish(worker_process& source, int step) { ASSERT_EQ(ask(source, "publish " + std::to_string(step)), "ok"); }
  /// A later version with other values.
  static void change_and_publish(worker_process& source, int step) {
    ASSERT_EQ(ask(source, "retract"), "ok");
    for (const char* tensor : {"0", "1", "4"})
      ASSERT_EQ(ask(source, std::string("change ") + tensor), "ok");
    publish(source, step);
  }
  static void fetch(worker_process& sink, int step) { sink.write("fetch " + std::to_string(step) + " 120000\n"); }
  /// All sinks fetch, and have what the source has.
  static void expect_fetched(worker_process& source, const std::vector<worker_process*>& sinks, int step, std::uint64_t bytes) {
    for (auto* s : sinks)
      fetch(*s, step);
    const std::string line = std::to_string(bytes) + " " + ask(source, "digest");
    for (auto* s : sinks)
      EXPECT_EQ(s->line(), line) << "version " << step;
  }
  static void expect_mention(const std::string& text, const std::string& part) { EXPECT_NE(text.find(part), std::string::npos) << text; }

  std::string endpoint_;

private:
  int started_ = 0;
};

#define NEEDS_DEVICE_RANKS(n)                                                                                                              \
  if (const std::string why = prepare_device_ranks(n); !why.empty())                                                                       \
  GTEST_SKIP() << why

TEST_F(NcclChannel, EverythingFirstThenTheTrainableTensors) {
  NEEDS_DEVICE_RANKS(2);
  auto source = start_source();
  auto sink = start_sink();
  publish(source, 0);
  expect_fetched(source, {&sink}, 0, everything);
  for (int step = 1; step < 5; ++step) {
    change_and_publish(source, step);
    expect_fetched(source, {&sink}, step, trainable);
  }
}

TEST_F(NcclChannel, SinksThatJoinLateOrReplaceAKilledOne) {
  NEEDS_DEVICE_RANKS(3);
  auto source = start_source();
  auto first = start_sink();
  publish(source, 0);
  expect_fetched(source, {&first}, 0, everything);
  auto second = start_sink();
  expect_fetched(source, {&second}, 0, everything);
  change_and_publish(source, 1);
  expect_fetched(source, {&first, &second}, 1, trainable);
  second.signal(SIGKILL);
  change_and_publish(source, 2);
  expect_fetched(source, {&first}, 2, trainable);
  auto third = start_sink();
  expect_fetched(source, {&third}, 2, everything);
  for (int step = 3; step < 5; ++step) {
    change_and_publish(source, step);
    expect_fetched(source, {&first, &third}, step, trainable);
  }
}

TEST_F(NcclChannel, ASinkThatDiesInATransferHoldsNobodyUp) {
  NEEDS_DEVICE_RANKS(3);
  auto source = start_source();
  auto sink = start_sink();
  publish(source, 0);
  expect_fetched(source, {&sink}, 0, everything);
  change_and_publish(source, 1);
  auto silent = start({"silent", endpoint_, "1"});
  ASSERT_EQ(silent.line(), "joined");
  fetch(sink, 1);
  ASSERT_EQ(silent.line(), "invited");
  silent.signal(SIGKILL);
  EXPECT_EQ(sink.line(), std::to_string(trainable) + " " + ask(source, "digest"));
}

TEST_F(NcclChannel, ASinkThatStandsStillIsGivenUpAtTheDeadline) {
  NEEDS_DEVICE_RANKS(3);
  auto source = start_source(1000, 5000);
  auto sink = start_sink();
  publish(source, 0);
  expect_fetched(source, {&sink}, 0, everything);
  change_and_publish(source, 1);
  auto silent = start({"silent", endpoint_, "1"});
  ASSERT_EQ(silent.line(), "joined");
  fetch(sink, 1);
  ASSERT_EQ(silent.line(), "invited");
  EXPECT_EQ(sink.line(), std::to_string(trainable) + " " + ask(source, "digest"));
}

TEST_F(NcclChannel, AChangedByteIsNoticedAndTheNextFetchBringsAll) {
  NEEDS_DEVICE_RANKS(2);
  auto source = start_source();
  auto sink = start_sink();
  publish(source, 0);
  ASSERT_EQ(ask(source, "change 4"), "ok"); // after its checksum was taken
  const std::string text = ask(sink, "fetch 0 60000");
  expect_mention(text, "error " + std::to_string(int(errc::bad_input)));
  expect_mention(text, "version 0");
  expect_mention(text, "checksum of tensor large");
  publish(source, 0);
  expect_fetched(source, {&sink}, 0, everything);
}

TEST_F(NcclChannel, AModelThatDiffersIsRefusedByTensorAndTheOthersGoOn) {
  NEEDS_DEVICE_RANKS(3);
  auto source = start_source();
  auto sink = start_sink();
  publish(source, 0);
  expect_fetched(source, {&sink}, 0, everything);
  change_and_publish(source, 1);
  auto other = start({"sink", endpoint_, "renamed"});
  expect_mention(ask(other, "fetch 0 60000"), "moved on");
  other.write("fetch 1 60000\n");
  ask(source, "digest"); // by now it has most likely joined; whichever comes first, both get the same answers
  fetch(sink, 1);
  const std::string text = other.line();
  expect_mention(text, "error " + std::to_string(int(errc::bad_input)));
  expect_mention(text, "tensor larger");
  EXPECT_EQ(sink.line(), std::to_string(trainable) + " " + ask(source, "digest"));
}

TEST_F(NcclChannel, VersionsAreWaitedForOrGone) {
  NEEDS_DEVICE_RANKS(2);
  auto source = start_source();
  auto sink = start_sink();
  expect_mention(ask(sink, "fetch 1 500"), "it offers none at the moment");
  publish(source, 5);
  expect_mention(ask(sink, "fetch 6 500"), "it has weights version 5");
  const std::string text = ask(sink, "fetch 4 60000");
  expect_mention(text, "error " + std::to_string(int(errc::peer_lost)));
  expect_mention(text, "moved on to weights version 5");
  fetch(sink, 6);
  change_and_publish(source, 6);
  EXPECT_EQ(sink.line(), std::to_string(everything) + " " + ask(source, "digest"));
}

TEST_F(NcclChannel, ASourceThatDiesIsNoticedAtOnce) {
  NEEDS_DEVICE_RANKS(2);
  auto source = start_source();
  auto sink = start_sink();
  publish(source, 0);
  expect_fetched(source, {&sink}, 0, everything);
  fetch(sink, 1);
  source.signal(SIGKILL);
  expect_mention(sink.line(), "error " + std::to_string(int(errc::peer_lost)));
  expect_mention(ask(sink, "fetch 1 60000"), "nobody listens there");
}

TEST_F(NcclChannel, ASinkWithoutAGpuTakesTheSameVersionOverZmq) {
  if (cuda::device_count() == 0)
    GTEST_SKIP() << "no GPU";
  const auto plain = model(1);
  device_model from(1);
  for (std::size_t i = 0; i < plain->storage().size(); ++i) // the host's copies are there, as a learner has them
    from.host->storage()[i] = plain->storage()[i];
  const auto to = model(0);
  const auto source = make_process_source("auto", from.host, "127.0.0.1", "secret");
  ASSERT_TRUE(source->endpoint().starts_with("nccl:")) << source->endpoint();
  source->publish({0, 1});
  make_process_sink("auto", source->endpoint(), to, "secret")->fetch({0, 1}, std::chrono::seconds(20));
  EXPECT_EQ(to->storage(), plain->storage());
}

} // namespace
} // namespace troupe
