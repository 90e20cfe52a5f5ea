#include "core/error.hpp"
#include "model/parallel/local_ranks.hpp"
#include "model/parallel/model_support.hpp"
#include <gtest/gtest.h>

namespace troupe {
namespace {

struct shared_case {
  mesh shape;
  bool sequence;
};

std::string text_of(const shared_case& c) {
  return "tp " + std::to_string(c.shape.tp) + " pp " + std::to_string(c.shape.pp) + " dp " + std::to_string(c.shape.dp) +
         (c.sequence ? " sp" : "");
}

const std::vector<shared_case> cases = {{{1, 1, 2}, false}, {{1, 1, 4}, true}, {{2, 1, 2}, true}, {{1, 2, 1}, false}, {{2, 3, 2}, false}};

void expect_gradients(std::span<const parameter> got, std::span<const parameter> expected, float tolerance, const std::string& where) {
  ASSERT_EQ(got.size(), expected.size());
  for (std::size_t i = 0; i < got.size(); ++i) {
    ASSERT_EQ(got[i].name, expected[i].name);
    ASSERT_EQ(got[i].shape, expected[i].shape);
    ASSERT_EQ(got[i].grad.size(), expected[i].grad.size()) << got[i].name;
    float largest = 0;
    for (const float v : expected[i].grad)
      largest = std::max(largest, std::abs(v));
    for (std::size_t j = 0; j < expected[i].grad.size(); ++j)
      ASSERT_NEAR(got[i].grad[j], expected[i].grad[j], tolerance * largest) << where << ": " << got[i].name << " " << j;
  }
}

TEST(LocalRanks, LookLikeOneModel) {
  compute where(2);
  const packed_batch batch = tiny_batch(3, 0);
  for (const auto& cfg : {tiny_llama(2, true), tiny_llama(4, false)})
    for (const dtype type : {dtype::f32, dtype::bf16}) {
      const auto one = make_model(cfg, {type, true, {"*"}, nullptr}, where);
      fill_by_name(*one);
      const pass_result expected = run_pass(*one, batch, true);
      std::map<int, std::vector<float>> by_tp = {{1, expected.logprobs}};
      for (const auto& c : cases) {
        const auto many = make_local_ranks(cfg, {type, true, {"*"}, nullptr}, c.shape, c.sequence, where);
        fill_by_name(*many);
        const pass_result got = run_pass(*many, batch, true);
        EXPECT_EQ(by_tp.try_emplace(c.shape.tp, got.logprobs).first->second, got.logprobs) << text_of(c);
        if (type == dtype::f32)
          expect_gradients(many->parameters(), one->parameters(), 2e-5f, text_of(c));
      }
    }
}

TEST(LocalRanks, DecodingGivesTheBitsOfScoring) {
  compute where(1);
  const std::vector<std::int32_t> sequence = {3, 60, 31, 0, 17, 44, 5, 59, 12, 8};
  batch_builder builder;
  builder.add_sequence(sequence, 6);
  const packed_batch batch = builder.take();
  for (const auto& c : cases) {
    const auto many = make_local_ranks(tiny_llama(2, false), {dtype::bf16, false, {}, nullptr}, c.shape, c.sequence, where);
    fill_by_name(*many);
    EXPECT_EQ(decode(*many, sequence, 6), many->score(batch, 0.7f, false, nullptr).logprobs) << text_of(c);
  }
}

TEST(LocalRanks, AnUpdateOfTheMastersReachesEveryRank) {
  compute where(1);
  const packed_batch batch = tiny_batch(2, 0);
  for (const dtype type : {dtype::f32, dtype::bf16}) {
    const auto fresh = make_local_ranks(tiny_llama(2, true), {type, true, {"*"}, nullptr}, {2, 1, 2}, true, where);
    const auto updated = make_local_ranks(tiny_llama(2, true), {type, true, {"*"}, nullptr}, {2, 1, 2}, true, where);
    fill_by_name(*fresh);
    fill_by_name(*updated);
    for (const auto& m : {fresh, updated})
      for (parameter& p : m->parameters())
        for (float& x : p.master)
          x *= 1.25f;
    fresh->publish_masters();
    updated->publish_masters();
    const auto first = updated->score(batch, 1.f, false, nullptr).logprobs;
    EXPECT_EQ(fresh->score(batch, 1.f, false, nullptr).logprobs, first);
    for (parameter& p : updated->parameters())
      p.master[p.master.size() / 2] += 0.5f;
    updated->publish_masters();
    EXPECT_NE(updated->score(batch, 1.f, false, nullptr).logprobs, first);
  }
}

TEST(LocalRanks, GenerationMayHaveOtherRanksOverTheSameTensors) {
  compute where(1);
  const std::vector<std::int32_t> sequence = {3, 60, 31, 0, 17, 44, 5, 59, 12, 8};
  batch_builder builder;
  builder.add_sequence(sequence, 6);
  const packed_batch batch = builder.take();
  const auto decoded_at = [&](int training, int generating) {
    const auto model =
        make_shared_model(tiny_llama(2, true), {dtype::bf16, true, {"*"}, nullptr}, {{1, 1, training}, false, generating}, where);
    fill_by_name(*model);
    for (parameter& p : model->parameters())
      p.master[0] += 0.5f;
    model->publish_masters();
    const auto scored = model->score(batch, 0.7f, false, nullptr).logprobs;
    return std::pair(decode(*model, sequence, 6), scored);
  };
  const auto [one, one_scored] = decoded_at(1, 1);
  const auto [two, two_scored] = decoded_at(2, 2);
  EXPECT_EQ(one, one_scored);
  EXPECT_EQ(two, two_scored);
  EXPECT_NE(one, two);
  EXPECT_EQ(decoded_at(1, 2), std::pair(two, one_scored));
  EXPECT_EQ(decoded_at(2, 1), std::pair(one, two_scored));
}

TEST(LocalRanks, AFailureIsReportedOnceAndTheModelGoesOn) {
  compute where(1);
  const auto many = make_local_ranks(tiny_llama(2, true), {dtype::f32, false, {}, nullptr}, {2, 1, 2}, false, where);
  fill_by_name(*many);
  const packed_batch batch = tiny_batch(2, 0);
  const auto before = many->score(batch, 1.f, false, nullptr).logprobs;
  packed_batch bad = batch;
  bad.tokens.ids[3] = 61;
  for (int i = 0; i < 3; ++i)
    try {
      many->score(bad, 1.f, false, nullptr);
      FAIL();
    } catch (const error& e) {
      EXPECT_EQ(e.code(), errc::bad_shape);
      EXPECT_NE(std::string(e.what()).find("token id 61"), std::string::npos) << e.what();
    }
  EXPECT_EQ(many->score(batch, 1.f, false, nullptr).logprobs, before);
}

TEST(LocalRanks, RanksThatCannotShareTheModelAreRefused) {
  compute where(1);
  EXPECT_THROW(make_local_ranks(tiny_llama(2, true), {dtype::f32, false, {}, nullptr}, {1, 1, 3}, false, where), error);
  EXPECT_THROW(make_local_ranks(tiny_llama(2, true), {dtype::f32, false, {}, nullptr}, {6, 1, 1}, false, where), error);
}

} // namespace
} // namespace troupe
