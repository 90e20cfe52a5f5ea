#include "experience/test_util.hpp"
#include "weightsync/channel.hpp"
#include "weightsync/manifest.hpp"
#include "weightsync/nccl_protocol.hpp"
#include "weightsync/test_support.hpp"
#include <atomic>
#include <csignal>
#include <cstring>
#include <numeric>
#include <random>
#include <rapidcheck/gtest.h>
#include <sys/wait.h>
#include <thread>

namespace troupe {
namespace {

using namespace std::chrono_literals;

std::vector<std::byte> random_bytes(std::size_t n) {
  std::vector<std::byte> bytes(n);
  std::mt19937_64 random(n);
  for (std::byte& b : bytes)
    b = std::byte(random());
  return bytes;
}

RC_GTEST_PROP(checksum, any_split_at_words_gives_the_same_sum, ()) {
  const auto bytes = random_bytes(*rc::gen::inRange<std::size_t>(0, 3000));
  std::uint64_t sum = 0;
  for (std::size_t at = 0; at < bytes.size();) {
    const std::size_t n = std::min(bytes.size() - at, 8 * *rc::gen::inRange<std::size_t>(1, 100));
    sum += weights_checksum(std::span(bytes).subspan(at, n), at / 8);
    at += n;
  }
  RC_ASSERT(sum == weights_checksum(bytes));
}

TEST(checksum, every_changed_bit_and_exchanged_word_shows) {
  auto bytes = random_bytes(61);
  const std::uint64_t sum = weights_checksum(bytes);
  for (std::size_t bit = 0; bit < bytes.size() * 8; ++bit) {
    bytes[bit / 8] ^= std::byte(1 << bit % 8);
    EXPECT_NE(weights_checksum(bytes), sum) << bit;
    bytes[bit / 8] ^= std::byte(1 << bit % 8);
  }
  std::swap_ranges(bytes.begin(), bytes.begin() + 8, bytes.begin() + 16);
  EXPECT_NE(weights_checksum(bytes), sum);
}

TEST(checksum, the_value_is_fixed) {
  // Worked out in Python from the definition; processes of different builds compare it.
  const std::vector<std::byte> bytes = {std::byte{1}, std::byte{2}, std::byte{3}, std::byte{4}, std::byte{5},
                                        std::byte{6}, std::byte{7}, std::byte{8}, std::byte{9}};
  EXPECT_EQ(weights_checksum(bytes), 0x64790b00c236db7au);
  EXPECT_EQ(weights_checksum({}), 0u);
}

TEST(manifest, comes_back_and_refuses_damage) {
  const std::string packed = pack_manifest(make_manifest(*model(1), {2, 7}));
  EXPECT_EQ(pack_manifest(unpack_manifest(packed)), packed);
  const manifest m = unpack_manifest(packed);
  EXPECT_EQ(m.version, (weights_version{2, 7}));
  EXPECT_EQ(m.entries.at(1).n_bytes, 42u);
  EXPECT_FALSE(m.entries.at(2).trainable);
  for (std::size_t n = 0; n < packed.size(); ++n)
    expect_error(errc::bad_input, {"manifest"}, [&] { unpack_manifest(std::string_view(packed).substr(0, n)); });
  manifest lying = m;
  lying.entries[1].shape = {7, 4};
  expect_error(errc::bad_input, {"odd", "42 bytes", "56"}, [&] { unpack_manifest(pack_manifest(lying)); });
  manifest cut = m;
  cut.entries[1].global_shape = {8, 3};
  cut.entries[1].begin = 1;
  EXPECT_EQ(unpack_manifest(pack_manifest(cut)).entries[1].begin, 1);
  cut.entries[1].begin = 2;
  expect_error(errc::bad_input, {"odd", "does not lie in its whole"}, [&] { unpack_manifest(pack_manifest(cut)); });
  lying.entries[1].shape = {std::int64_t{1} << 40, std::int64_t{1} << 40};
  expect_error(errc::bad_input, {"odd", "2^64"}, [&] { unpack_manifest(pack_manifest(lying)); });
  lying.entries[1].shape = {-7, -3};
  expect_error(errc::bad_input, {"odd", "-7"}, [&] { unpack_manifest(pack_manifest(lying)); });
}

TEST(manifest, mutations_are_refused_or_parse) {
  const std::string whole = pack_manifest(make_manifest(*model(1), {2, 7}));
  std::mt19937_64 random(5);
  for (int i = 0; i < 20000; ++i) {
    std::string bytes = whole;
    for (std::uint64_t k = random() % 3 + 1; k-- > 0;)
      bytes[random() % bytes.size()] = char(random());
    try {
      unpack_manifest(bytes);
    } catch (const error& e) {
      ASSERT_EQ(int(e.code()), int(errc::bad_input));
    }
  }
}

TEST(nccl_protocol, messages_come_back_and_mutations_are_refused_or_parse) {
  nccl_invitation invitation{7, true, {}, 2, 3, true, pack_manifest(make_manifest(*model(1), {2, 7}))};
  std::iota(invitation.id.begin(), invitation.id.end(), char(1));
  const std::vector<std::string> messages = {pack(nccl_has{}), pack(nccl_has{weights_version{1, 2}}), pack(invitation),
                                             pack(nccl_ended{9, true, "gone"})};
  const auto repacked = [](std::string_view message) {
    byte_reader in(message.substr(1), "weights message");
    switch (nccl_message(message[0])) {
    case nccl_message::version:
      return pack(unpack_has(in));
    case nccl_message::invitation:
      return pack(unpack_invitation(in));
    default:
      return pack(unpack_ended(in));
    }
  };
  std::mt19937_64 random(5);
  for (const std::string& message : messages) {
    EXPECT_EQ(repacked(message), message);
    for (int i = 0; i < 5000; ++i) {
      std::string bytes = message.substr(0, i % 2 ? message.size() : 1 + random() % message.size());
      bytes[1 + random() % bytes.size() % (bytes.size() - (bytes.size() > 1))] = char(random());
      try {
        repacked(bytes);
      } catch (const error& e) {
        ASSERT_EQ(int(e.code()), int(errc::bad_input));
      }
    }
  }
  const nccl_join join{0x123456789abcdef0u, {3, 4}, 5, true};
  ASSERT_EQ(pack(join).size(), nccl_join_bytes);
  EXPECT_EQ(pack(unpack_join(pack(join))), pack(join));
  expect_error(errc::bad_input, {"rank 3 of 3"}, [&] {
    invitation.rank = 3;
    repacked(pack(invitation));
  });
  EXPECT_EQ(nccl_endpoint::parse("nccl:a;b;c")->text(), "nccl:a;b;c");
  EXPECT_FALSE(nccl_endpoint::parse("nccl:a;b"));
  EXPECT_FALSE(nccl_endpoint::parse("tcp://127.0.0.1:1,tcp://127.0.0.1:2"));
}

TEST(process_channel, models_that_are_on_no_gpu_take_zmq_and_refuse_nccl) {
  for (const std::string channel : {"auto", "zmq"}) {
    const auto from = model(1), to = model(0);
    const auto source = make_process_source(channel, from, "127.0.0.1", "secret");
    EXPECT_TRUE(source->endpoint().starts_with("tcp://")) << source->endpoint();
    source->publish({0, 1});
    make_process_sink(channel, source->endpoint(), to, "secret")->fetch({0, 1}, 20s);
    EXPECT_EQ(to->storage(), from->storage());
    // What offers NCCL serves a sink without a GPU over ZeroMQ.
    const auto other = model(0);
    make_process_sink(channel, nccl_endpoint{"tcp://127.0.0.1:9", source->endpoint(), "0000:1b:00.0"}.text(), other, "secret")
        ->fetch({0, 1}, 20s);
    EXPECT_EQ(other->storage(), from->storage());
  }
  expect_error(errc::unsupported, {"nccl", "not on a GPU"}, [] { make_process_source("nccl", model(1), "127.0.0.1", "secret"); });
  expect_error(errc::unsupported, {"nccl", "not on a GPU"}, [] { make_process_sink("nccl", "nccl:a;b;c", model(1), "secret"); });
}

TEST(shared_channel, version_is_checked_and_nothing_copied) {
  const auto m = model(1);
  auto source = make_shared_source(m);
  const auto sink = make_shared_sink(*source, m);
  expect_error(errc::timeout, {"version 3", "none"}, [&] { sink->fetch({0, 3}, 20ms); });
  source->publish({0, 3});
  const sync_result r = sink->fetch({0, 3}, 1s);
  EXPECT_EQ(r.version, (weights_version{0, 3}));
  EXPECT_EQ(r.bytes, 0u);
  expect_error(errc::timeout, {"version 4", "version 3"}, [&] { sink->fetch({0, 4}, 20ms); });
  expect_error(errc::peer_lost, {"version 2", "version 3"}, [&] { sink->fetch({0, 2}, 20ms); });
  source->retract();
  expect_error(errc::timeout, {"version 3"}, [&] { sink->fetch({0, 3}, 20ms); });
  std::thread later([&] {
    std::this_thread::sleep_for(30ms);
    source->publish({1, 3});
  });
  EXPECT_EQ(sink->fetch({1, 3}, 20s).version, (weights_version{1, 3}));
  later.join();
  expect_error(errc::bad_input, {"model"}, [&] { make_shared_sink(*source, model(1)); });
  source.reset();
  expect_error(errc::peer_lost, {"gone"}, [&] { sink->fetch({1, 3}, 1s); });
}

TEST(shared_channel, values_that_are_held_do_not_change) {
  const auto m = model(1);
  auto source = make_shared_source(m);
  const auto sink = make_shared_sink(*source, m);
  int told = 0;
  sink->on_retract([&] { ++told; });
  source->publish({0, 3});
  EXPECT_EQ(sink->hold(), nullptr) << "nothing was fetched";
  sink->fetch({0, 3}, 1s);
  auto held = sink->hold(), twice = sink->hold();
  ASSERT_NE(held, nullptr);
  std::atomic<bool> retracted = false;
  std::thread learner([&] {
    source->retract();
    retracted = true;
  });
  while (sink->hold()) // until the other thread waits
    std::this_thread::yield();
  held.reset();
  std::this_thread::sleep_for(20ms);
  EXPECT_FALSE(retracted) << "one still reads";
  twice.reset();
  learner.join();
  EXPECT_EQ(told, 1);
  source->publish({0, 4});
  EXPECT_EQ(sink->hold(), nullptr) << "the values are not those of the last fetch";
  sink->fetch({0, 4}, 1s);
  EXPECT_NE(sink->hold(), nullptr);
}

TEST(zmq_channel, everything_first_then_the_trainable_ones) {
  const auto from = model(1), to = model(0);
  const auto source = make_zmq_source(from, "127.0.0.1", "secret");
  const auto sink = make_zmq_sink(source->endpoint(), to, "secret");
  source->publish({0, 0});
  const std::uint64_t all = 2 * (1024 * 1024 + 21 + 33 + 1800000);
  EXPECT_EQ(sink->fetch({0, 0}, 20s).bytes, all);
  EXPECT_EQ(to->storage(), from->storage());
  EXPECT_EQ(to->published, (std::vector<std::size_t>{0, 1, 2, 3, 4}));
  for (const weights_version v : {weights_version{0, 1}, weights_version{0, 2}, weights_version{1, 1}}) {
    source->retract();
    for (std::size_t i : {0, 1, 4})
      from->storage()[i][5] ^= std::byte{1};
    source->publish(v);
    EXPECT_EQ(sink->fetch(v, 20s).bytes, all - 66);
    EXPECT_EQ(to->storage(), from->storage());
    EXPECT_EQ(to->published, (std::vector<std::size_t>{0, 1, 3, 4}));
  }
  const auto late = model(0);
  EXPECT_EQ(make_zmq_sink(source->endpoint(), late, "secret")->fetch({1, 1}, 20s).bytes, all);
  EXPECT_EQ(late->storage(), from->storage());
}

TEST(zmq_channel, several_sinks_at_once) {
  const auto from = model(1);
  const auto source = make_zmq_source(from, "127.0.0.1", "secret");
  source->publish({0, 1});
  std::vector<std::shared_ptr<fake_model>> models = {model(0), model(0), model(0)};
  std::vector<std::thread> threads;
  for (const auto& m : models)
    threads.emplace_back([&, m] { make_zmq_sink(source->endpoint(), m, "secret")->fetch({0, 1}, 20s); });
  for (std::thread& t : threads)
    t.join();
  for (const auto& m : models)
    EXPECT_EQ(m->storage(), from->storage());
}

// ---- ranks that hold parts ----

/// A rank's parts of "rows" [6, 5] and "columns" [4, 6], cut in `ranks`, and of "all" [3], which the first rank counts as its own.
/// Bytes say where in the whole they are from.
std::shared_ptr<fake_model> rank_model(int rank, int ranks, bool filled) {
  const std::int64_t rows = 6 / ranks, begin = rows * rank;
  auto m = model(0, {{"rows", {rows, 5}, true}, {"columns", {4, rows}, true}, {"all", {3}, false}});
  const auto parameters = m->parameters();
  parameters[0].global_shape = {6, 5};
  parameters[1].global_shape = {4, 6};
  parameters[2].global_shape = {3};
  parameters[1].dim = 1;
  parameters[0].begin = parameters[1].begin = begin;
  parameters[2].copy = rank > 0;
  const auto put = [&](std::size_t i, std::int64_t at, std::int64_t value) {
    m->storage()[i][std::size_t(2 * at)] = std::byte(filled ? value + 1 : 0);
  };
  for (std::int64_t r = 0; r < rows; ++r)
    for (std::int64_t c = 0; c < 5; ++c)
      put(0, r * 5 + c, (begin + r) * 5 + c);
  for (std::int64_t r = 0; r < 4; ++r)
    for (std::int64_t c = 0; c < rows; ++c)
      put(1, r * rows + c, 100 + r * 6 + begin + c);
  for (std::int64_t i = 0; i < 3; ++i)
    put(2, i, 200 + i);
  return m;
}

TEST(zmq_channel, parts_go_between_ranks_that_are_cut_otherwise) {
  for (const int from : {1, 2, 3}) {
    std::vector<std::unique_ptr<weights_source>> sources;
    std::string endpoints;
    for (int r = 0; r < from; ++r) {
      sources.push_back(make_zmq_source(rank_model(r, from, true), "127.0.0.1", "secret"));
      sources.back()->publish({0, 1});
      endpoints += (r > 0 ? "," : "") + sources.back()->endpoint();
    }
    for (const int to : {1, 2, 3})
      for (int r = 0; r < to; ++r) {
        const auto m = rank_model(r, to, false);
        const auto sink = make_zmq_sink(endpoints, m, "secret");
        const sync_result result = sink->fetch({0, 1}, 20s);
        EXPECT_EQ(m->storage(), rank_model(r, to, true)->storage()) << from << " to " << to << ", rank " << r;
        if (from == to) {
          EXPECT_EQ(result.bytes, 2u * (54 / std::size_t(to) + 3)) << "a rank needs no more than its parts";
        }
      }
  }
}

TEST(zmq_channel, a_part_that_no_source_has_is_named) {
  const auto first = make_zmq_source(rank_model(0, 2, true), "127.0.0.1", "secret");
  first->publish({0, 1});
  const auto m = rank_model(1, 3, false);
  expect_error(errc::bad_input, {"lacks some of tensor rows"}, [&] { make_zmq_sink(first->endpoint(), m, "secret")->fetch({0, 1}, 20s); });
  EXPECT_EQ(m->storage(), rank_model(1, 3, false)->storage());
}

TEST(zmq_channel, a_corrupted_byte_changes_nothing_here) {
#ifdef __SANITIZE_THREAD__
  GTEST_SKIP() << "it changes a byte that another thread serves";
#endif
  const auto from = model(1), to = model(0);
  const auto before = to->storage();
  const auto source = make_zmq_source(from, "127.0.0.1", "secret");
  const auto sink = make_zmq_sink(source->endpoint(), to, "secret");
  source->publish({0, 1});
  from->storage()[4].back() ^= std::byte{1}; // after its checksum was taken
  expect_error(errc::bad_input, {"version 1", source->endpoint(), "tensor large", "checksum"}, [&] { sink->fetch({0, 1}, 20s); });
  EXPECT_EQ(to->storage(), before);
  from->storage()[4].back() ^= std::byte{1};
  sink->fetch({0, 1}, 20s);
  EXPECT_EQ(to->storage(), from->storage());
}

TEST(zmq_channel, models_that_differ_are_refused_by_tensor) {
  const auto source = make_zmq_source(model(1), "127.0.0.1", "secret");
  source->publish({0, 1});
  const auto refused = [&](std::initializer_list<std::string_view> parts, const std::shared_ptr<fake_model>& m) {
    const auto before = m->storage();
    expect_error(errc::bad_input, parts, [&] { make_zmq_sink(source->endpoint(), m, "secret")->fetch({0, 1}, 20s); });
    EXPECT_EQ(m->storage(), before);
  };
  auto other = specs;
  other[1].shape = {3, 7};
  refused({"tensor odd", "[7, 3]", "[3, 7]"}, model(0, other));
  other = specs;
  other[0].name = "embedding";
  refused({"tensor embed,", "lacks"}, model(0, other));
  other = specs;
  other.pop_back();
  refused({"tensor large", "lacks"}, model(0, other));
  other = specs;
  other.push_back({"more", {1}, true});
  refused({"lacks tensor more"}, model(0, other));
  refused({"tensor embed", "BF16", "F32"}, model(0, specs, dtype::f32));
}

TEST(zmq_channel, versions_are_waited_for_or_gone) {
  const auto source = make_zmq_source(model(1), "127.0.0.1", "secret");
  const auto sink = make_zmq_sink(source->endpoint(), model(0), "secret");
  expect_error(errc::timeout, {"version 1", source->endpoint(), "none"}, [&] { sink->fetch({0, 1}, 50ms); });
  source->publish({0, 5});
  expect_error(errc::timeout, {"version 6", "version 5"}, [&] { sink->fetch({0, 6}, 50ms); });
  expect_error(errc::peer_lost, {"version 4", "version 5"}, [&] { sink->fetch({0, 4}, 20s); });
  std::thread later([&] {
    std::this_thread::sleep_for(30ms);
    source->retract();
    source->publish({1, 0});
  });
  EXPECT_EQ(sink->fetch({1, 0}, 20s).version, (weights_version{1, 0}));
  later.join();
}

TEST(zmq_channel, a_fetch_is_whole_or_an_error_while_versions_change) {
  const auto from = model(1), to = model(0);
  const auto source = make_zmq_source(from, "127.0.0.1", "secret");
  const auto sink = make_zmq_sink(source->endpoint(), to, "secret");
  source->publish({0, 0});
  std::thread fetcher([&] {
    for (std::uint32_t step = 0; step < 40;)
      try {
        sink->fetch({0, step}, 20s);
        for (const auto& bytes : {to->storage()[0], to->storage()[1], to->storage()[4]})
          ASSERT_EQ(bytes[1], std::byte(step)) << "a value of another version";
        ++step;
      } catch (const error& e) {
        ASSERT_EQ(int(e.code()), int(errc::peer_lost)) << e.what();
        ++step;
      }
  });
  for (std::uint32_t step = 0; step <= 40; ++step) {
    source->retract();
    for (std::size_t i : {0, 1, 4})
      from->storage()[i][1] = std::byte(step);
    source->publish({0, step});
    std::this_thread::sleep_for(2ms);
  }
  fetcher.join();
}

TEST(zmq_channel, strangers_get_no_answer) {
  const auto source = make_zmq_source(model(1), "127.0.0.1", "secret");
  source->publish({0, 1});
  expect_error(errc::timeout, {source->endpoint(), "manifest"}, [&] {
    make_zmq_sink(source->endpoint(), model(0), "Secret")->fetch({0, 1}, 100ms);
  });
  expect_error(errc::io, {"192.0.2.1"}, [&] { make_zmq_source(model(1), "192.0.2.1", "s"); });
  expect_error(errc::bad_input, {"cannot connect"}, [&] { make_zmq_sink("nowhere", model(1), "s"); });
}

TEST(zmq_channel, a_source_in_another_process_and_its_death) {
  int ready[2];
  ASSERT_EQ(pipe(ready), 0);
  const pid_t pid = fork();
  if (pid == 0) {
    const auto source = make_zmq_source(model(1), "127.0.0.1", "secret");
    source->publish({0, 1});
    const std::string endpoint = source->endpoint();
    if (write(ready[1], endpoint.data(), endpoint.size()) > 0)
      pause();
    _exit(0);
  }
  char endpoint[64] = {};
  ASSERT_GT(read(ready[0], endpoint, sizeof endpoint - 1), 0);
  const auto to = model(0);
  const auto sink = make_zmq_sink(endpoint, to, "secret");
  sink->fetch({0, 1}, 20s);
  EXPECT_EQ(to->storage(), model(1)->storage());
  std::thread killer([&] {
    std::this_thread::sleep_for(50ms);
    kill(pid, SIGKILL);
  });
  const auto start = std::chrono::steady_clock::now();
  expect_error(errc::peer_lost, {endpoint}, [&] { sink->fetch({0, 2}, 60s); }); // waits for a publication when the source dies
  expect_error(errc::peer_lost, {endpoint}, [&] { sink->fetch({0, 2}, 60s); }); // nobody listens any more
  EXPECT_LT(std::chrono::steady_clock::now() - start, 60s);
  killer.join();
  waitpid(pid, nullptr, 0);
  close(ready[0]);
  close(ready[1]);
}

} // namespace
} // namespace troupe
