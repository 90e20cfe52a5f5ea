#include "actors/rollout.hpp"
#include "actors/run_texts.hpp"
#include "core/error.hpp"
#include "core/files.hpp"
#include "rollout/fake_lm.hpp"
#include <gtest/gtest.h>

namespace troupe {
namespace {

using namespace std::chrono_literals;

/// A rollout on a model that is a hash, and a learner's side that publishes and retracts its weights.
struct rollout_engine_test : ::testing::Test {
  std::shared_ptr<fake_lm> model = std::make_shared<fake_lm>(50);
  std::unique_ptr<weights_source> source = make_shared_source(model);
  std::shared_ptr<request_desk> desk = std::make_shared<request_desk>(4, first_served_id);
  std::vector<trajectory_group> made;
  int woken = 0;

  std::unique_ptr<rollout_engine> engine(bool serves, const std::string& cache = "recompute") {
    rollout_setup s;
    s.cfg.run.seed = 3;
    s.cfg.rollout.n = 4;
    s.cfg.data.max_response_length = 30;
    s.cfg.rollout.inflight_cache = cache;
    s.end_tokens = {3};
    s.model = model;
    s.options = {.max_num_seqs = 6, .max_batch_tokens = 20, .cache_blocks = 40, .max_sequence = 90, .eos_token_ids = {{3}}};
    s.make_sink = [this](const std::string&) { return make_shared_sink(*source, model); };
    s.outlet = [this](trajectory_group g) { made.push_back(std::move(g)); };
    s.sleeps = true;
    if (serves)
      s.desk = desk;
    return std::make_unique<rollout_engine>(s, [this] { ++woken; });
  }
  void publish(rollout_engine& e, std::uint32_t step) {
    model->set_weights(step);
    source->publish({0, step});
    e.fetch({{0, step}, "shared"});
  }
  static generate_group group(std::uint32_t step, std::uint32_t index) {
    return {{step, index, false}, {0, step - 1}, index, {4, 5, 6, std::int32_t(7 + index)}};
  }
  static generation_request question(std::uint64_t seed, std::int64_t tokens = 60) {
    generation_request r;
    r.prompt_ids = {9, 8, std::int32_t(10 + seed)};
    r.n = 2;
    r.params.max_tokens = tokens;
    r.params.ignore_eos = true;
    r.key = {.seed = seed, .domain = draw::generate_seeded};
    return r;
  }
  static std::vector<sample> ends(generation_stream& s) {
    std::vector<sample> out(2);
    while (auto event = s.next({}))
      if (auto* o = std::get_if<generation_output>(&*event))
        out[std::size_t(o->sample_index)] = o->result;
    return out;
  }
  /// The groups of two steps, the second with other weights.
  std::vector<trajectory_group> two_steps(rollout_engine& e, const std::function<void()>& between) {
    made.clear();
    for (std::uint32_t step = 1; step <= 2; ++step) {
      publish(e, step - 1);
      for (std::uint32_t i = 0; i < 5; ++i)
        e.add(group(step, i));
      while (!e.idle())
        e.step();
      source->retract();
      between();
    }
    std::sort(made.begin(), made.end(), [](const auto& a, const auto& b) { return a.key < b.key; });
    return made;
  }
};

TEST_F(rollout_engine_test, RequestsOfOthersChangeNoGroup) {
  auto plain = engine(false);
  const auto want = two_steps(*plain, [] {});
  ASSERT_EQ(want.size(), 10u);
  for (const std::string cache : {"recompute", "keep"}) {
    desk = std::make_shared<request_desk>(4, first_served_id);
    auto e = engine(true, cache);
    std::vector<generation_stream> streams;
    for (std::uint64_t i = 0; i < 3; ++i)
      streams.push_back(std::move(*desk->submit({question(i)}, false)));
    const auto passes = [&] { return desk->counts().generator.passes; };
    const auto got = two_steps(*e, [&] {
      e->tend();
      const auto before = passes();
      e->step();
      e->tend();
      EXPECT_EQ(passes(), before) << "no pass while the weights change";
      EXPECT_FALSE(e->busy());
    });
    EXPECT_EQ(got, want) << cache;
    publish(*e, 2);
    while (e->busy())
      e->step();
    EXPECT_TRUE(desk->idle());
    EXPECT_EQ(desk->counts().version, (weights_version{0, 2}));
    for (auto& s : streams)
      for (const auto& one : ends(s)) {
        EXPECT_EQ(one.output_ids.size(), 60u);
        EXPECT_TRUE(std::is_sorted(one.versions.begin(), one.versions.end()));
        EXPECT_LE(one.versions.back().step, 2u);
      }
  }
}

TEST_F(rollout_engine_test, AnAnswerUnderWayGoesOnWithTheNewWeights) {
  auto e = engine(true);
  publish(*e, 0);
  auto stream = *desk->submit({question(1)}, false);
  for (int i = 0; i < 10; ++i)
    e->step();
  source->retract();
  EXPECT_GT(woken, 1);
  e->tend(); // asleep: the cache is gone
  e->tend(); // counts
  EXPECT_EQ(desk->counts().generator.free_blocks, 40);
  publish(*e, 1);
  while (e->busy())
    e->step();
  // What comes after the update is what the new weights make of what came before.
  for (const auto& got : ends(stream)) {
    const auto old = std::size_t(std::count(got.versions.begin(), got.versions.end(), weights_version{0, 0}));
    EXPECT_GT(old, 5u);
    EXPECT_LT(old, 60u);
    auto updated = std::make_shared<fake_lm>(50);
    updated->set_weights(1);
    generator fresh(updated, nullptr, {.cache_blocks = 40, .max_sequence = 90, .eos_token_ids = {{3}}});
    auto rest = question(1, 60 - std::int64_t(old));
    rest.prompt_ids.insert(rest.prompt_ids.end(), got.output_ids.begin(), got.output_ids.begin() + std::ptrdiff_t(old));
    fresh.add(rest);
    std::vector<sample> want(2);
    while (!fresh.idle())
      for (auto& o : fresh.step())
        want[std::size_t(o.sample_index)] = o.result;
    const auto same = [&](const sample& s) {
      return std::equal(s.output_ids.begin(), s.output_ids.end(), got.output_ids.begin() + std::ptrdiff_t(old));
    };
    EXPECT_TRUE(std::any_of(want.begin(), want.end(), same));
  }
}

TEST_F(rollout_engine_test, WhatIsUnderWayIsToldOfTheEnd) {
  auto e = engine(true);
  publish(*e, 0);
  auto stream = *desk->submit({question(1)}, true);
  e->step();
  auto waiting = *desk->submit({question(2)}, true);
  e.reset();
  for (auto* s : {&stream, &waiting}) {
    const auto all = [&] {
      while (s->next({}))
        ;
    };
    EXPECT_THROW(all(), error);
  }
  EXPECT_THROW((void)desk->submit({question(3)}, true), error);
}

TEST(run_texts, come_back_in_parts) {
  const std::string bytes(70000, 'x');
  std::string all;
  while (all.size() < part_of(bytes, all.size()).total) {
    const auto part = part_of(bytes, all.size());
    EXPECT_LT(part.bytes.size(), 60000u);
    all += part.bytes;
  }
  EXPECT_EQ(all, bytes);
  EXPECT_EQ(part_of(bytes, 1 << 20).bytes, "");
  EXPECT_THROW(unpack_texts(""), error);
  EXPECT_THROW(unpack_texts(bytes), error);
}

} // namespace
} // namespace troupe
