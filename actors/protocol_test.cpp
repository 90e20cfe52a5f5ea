#include "actors/protocol.hpp"
#include <caf/binary_deserializer.hpp>
#include <caf/binary_serializer.hpp>
#include <gtest/gtest.h>

namespace troupe {
namespace {

struct protocol_test : ::testing::Test {
  struct settings : caf::actor_system_config {
    settings() {
      set("scheduler.policy", caf::atom("testing"));
      add_message_types<caf::id_block::troupe>();
    }
  } cfg;
  caf::actor_system sys{cfg};

  std::vector<char> bytes_of(const caf::message& m) {
    std::vector<char> out;
    caf::binary_serializer sink{sys, out};
    EXPECT_FALSE(sink(const_cast<caf::message&>(m)));
    return out;
  }
  caf::message back(const std::vector<char>& bytes) {
    caf::message out;
    caf::binary_deserializer source{sys, bytes};
    EXPECT_FALSE(source(out));
    return out;
  }
  /// The message comes back as one value of its type, with the same bytes.
  template <class T>
  T travels(const T& x) {
    const std::vector<char> bytes = bytes_of(caf::make_message(x));
    const caf::message m = back(bytes);
    EXPECT_TRUE(m.match_elements<T>()) << typeid(T).name();
    EXPECT_EQ(bytes_of(m), bytes) << typeid(T).name();
    EXPECT_LT(bytes.size(), 64u * 1024);
    return m.match_elements<T>() ? m.get_as<T>(0) : T{};
  }
};

constexpr weights_version v23{2, 3};

TEST_F(protocol_test, EveryMessageTravels) {
  const auto join = travels(join_request{7, "secret", "build", "numerics", "host", "avx2", 42});
  EXPECT_EQ(join.protocol, 7u);
  EXPECT_EQ(join.isa, "avx2");
  EXPECT_EQ(join.pid, 42);
  const auto welcome = travels(join_answer{worker_role::learner, 3, "a = 1", "{}", "tcp://x"});
  EXPECT_EQ(welcome.role, worker_role::learner);
  EXPECT_EQ(welcome.experience_endpoint, "tcp://x");
  EXPECT_EQ(travels(join_answer{worker_role::rollout, 3, "", "", "", 4}).ranks, 4u);
  EXPECT_EQ(travels(worker_info{worker_role::rollout, 2, "host", 9, "tcp://y", ""}).batch_endpoint, "tcp://y");
  EXPECT_EQ(travels(worker_info{worker_role::rollout, 2, "host", 9, "", "tcp://r"}).rank_endpoint, "tcp://r");
  EXPECT_EQ(travels(rank_peers{{"tcp://a", "tcp://b"}}).endpoints, (std::vector<std::string>{"tcp://a", "tcp://b"}));
  EXPECT_EQ(travels(fetch_texts{1u << 30}).from, 1u << 30);
  EXPECT_EQ(travels(texts_part{9, std::string("a\0b", 3)}).bytes, std::string("a\0b", 3));
  const auto group = travels(generate_group{{4, 5, true}, v23, 6, {1, -2, 3}});
  EXPECT_EQ(group.key, (group_key{4, 5, true}));
  EXPECT_EQ(group.version, v23);
  EXPECT_EQ(group.prompt_ids, (std::vector<std::int32_t>{1, -2, 3}));
  const auto scored = travels(group_scored{{4, 5, false}, {0.5, -1}, {3, 4}, 7, 2, 0.25, "why"});
  EXPECT_EQ(scored.rewards, (std::vector<double>{0.5, -1}));
  EXPECT_EQ(scored.lengths, (std::vector<std::uint32_t>{3, 4}));
  EXPECT_EQ(scored.dropped, "why");
  EXPECT_EQ(travels(ship_batch{4, {0, 2}, "tcp://z"}).indices, (std::vector<std::uint32_t>{0, 2}));
  EXPECT_EQ(travels(batch_shipped{4, 0.5, -0.25}).advantage_mean, -0.25);
  EXPECT_EQ(travels(restore_learner{1, 2, "dir"}).only, "dir");
  EXPECT_EQ(travels(learner_restored{v23, {"line"}}).passed_over.size(), 1u);
  EXPECT_EQ(travels(train_step{8}).step, 8u);
  const auto trained = travels(step_trained{v23, {{"actor/pg_loss", 0.125}}});
  ASSERT_EQ(trained.metrics.size(), 1u);
  EXPECT_EQ(trained.metrics[0], (std::pair<std::string, double>{"actor/pg_loss", 0.125}));
  EXPECT_EQ(travels(save_checkpoint{8}).step, 8u);
  EXPECT_EQ(travels(checkpoint_saved{8}).step, 8u);
  EXPECT_EQ(travels(publish_weights{v23}).version, v23);
  EXPECT_EQ(travels(weights_published{v23, "tcp://w"}).endpoint, "tcp://w");
  EXPECT_EQ(travels(fetch_weights{v23, "tcp://w"}).version, v23);
  EXPECT_EQ(travels(weights_fetched{v23, 1u << 30, 0.5}).bytes, 1u << 30);
  EXPECT_EQ(travels(sync_weights{v23}).version, v23);
  EXPECT_EQ(travels(rollout_holds{3, v23}).id, 3u);
  EXPECT_EQ(travels(rollout_failed{3, "why"}).text, "why");
  EXPECT_EQ(travels(worker_failed{worker_role::learner, 1, "host", "why", 9}).code, 9);
  EXPECT_EQ(travels(worker_exited{42, "signal 9"}).how, "signal 9");
  EXPECT_EQ(travels(stop_run{15}).signal, 15u);
  EXPECT_EQ(travels(rollout_status{5, v23}).groups, 5u);
}

TEST_F(protocol_test, HandlesTravel) {
  const auto bytes = bytes_of(caf::make_message(worker_info{}, rollout_actor{}));
  EXPECT_TRUE((back(bytes).match_elements<worker_info, rollout_actor>()));
  EXPECT_TRUE((back(bytes_of(caf::make_message(worker_info{}, learner_actor{}))).match_elements<worker_info, learner_actor>()));
  EXPECT_TRUE((back(bytes_of(caf::make_message(worker_info{}, rank_actor{}))).match_elements<worker_info, rank_actor>()));
  EXPECT_TRUE((back(bytes_of(caf::make_message(join_answer{}, coordinator_actor{}))).match_elements<join_answer, coordinator_actor>()));
}

TEST_F(protocol_test, ErrorsKeepTheirCodeAndText) {
  const auto bytes = bytes_of(caf::make_message(to_caf(error(errc::bad_input, "row 7 is bad"))));
  const auto m = back(bytes);
  ASSERT_TRUE(m.match_elements<caf::error>());
  const error e = to_exception(m.get_as<caf::error>(0), "learner 0 on host");
  EXPECT_EQ(e.code(), errc::bad_input);
  EXPECT_STREQ(e.what(), "learner 0 on host: row 7 is bad");
}

TEST_F(protocol_test, SilenceAndDeathHaveCodesOfTheirOwn) {
  EXPECT_EQ(to_exception(caf::make_error(caf::sec::request_timeout), "x").code(), errc::timeout);
  EXPECT_EQ(to_exception(caf::make_error(caf::sec::request_receiver_down), "x").code(), errc::peer_lost);
}

} // namespace
} // namespace troupe
