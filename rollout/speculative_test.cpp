#include "model/tokenizer/tokenizer.hpp"
#include "rollout/fake_lm.hpp"
#include "rollout/generator.hpp"
#include "rollout/small_tokenizer.hpp"
#include <algorithm>
#include <gtest/gtest.h>
#include <map>
#include <rapidcheck/gtest.h>
#include <thread>

namespace troupe {
namespace {

using outputs = std::map<std::pair<std::uint64_t, std::int64_t>, generation_output>;

// Three tokens decide the next: texts of little variety, in which drafts come true often.
std::shared_ptr<fake_lm> repeating(bool draws, float spread = 12.0f) {
  auto model = std::make_shared<fake_lm>(6, 4096, spread);
  model->set_memory(3);
  model->set_draws(draws);
  return model;
}

generation_request request(std::uint64_t id, std::size_t length, std::int64_t n, std::int64_t max_tokens) {
  generation_request r;
  r.id = id;
  for (std::size_t i = 0; i < length; ++i)
    r.prompt_ids.push_back(std::int32_t((id + i * i) % 6));
  r.n = n;
  r.params.max_tokens = max_tokens;
  r.params.ignore_eos = true;
  r.key = {.seed = 5, .domain = draw::generate, .index = std::uint32_t(id)};
  return r;
}

outputs run(generator& g) {
  outputs all;
  for (int steps = 0; !g.idle(); ++steps) {
    if (steps > 20000)
      throw error{errc::failed, "the generator does not come to an end"};
    for (auto& o : g.step())
      all.emplace(std::pair{o.id, o.sample_index}, std::move(o));
  }
  return all;
}

outputs run(std::shared_ptr<causal_lm> model, const generator_options& options, const std::vector<generation_request>& requests,
            generator_counts* counts = nullptr) {
  generator g(std::move(model), small_tokenizer(), options);
  for (const auto& r : requests)
    g.add(r);
  auto out = run(g);
  if (counts)
    *counts = g.counts();
  return out;
}

bool same(const generation_output& a, const generation_output& b) {
  return a.result == b.result && a.text_stop == b.text_stop && a.top == b.top;
}

void expect_same(const outputs& got, const outputs& want) {
  ASSERT_EQ(got.size(), want.size());
  for (const auto& [at, o] : want)
    EXPECT_TRUE(same(got.at(at), o)) << "request " << at.first << " sample " << at.second;
}

class speculative : public testing::TestWithParam<bool> {}; // whether the model draws

TEST_P(speculative, fewer_passes_give_the_same) {
  for (const std::int64_t n : {1, 2, 4, 8}) {
    SCOPED_TRACE(n);
    const std::vector<generation_request> requests = {request(1, 40, n, 300)};
    generator_options options{.max_num_seqs = 8, .cache_blocks = 128, .eos_token_ids = {{}}};
    generator_counts plain, drafted;
    const auto want = run(repeating(GetParam()), options, requests, &plain);
    options.speculative = {.num_speculative_tokens = 8, .row_cost = 0.03};
    const auto got = run(repeating(GetParam()), options, requests, &drafted);
    expect_same(got, want);
    EXPECT_EQ(plain.passes, 300);
    EXPECT_EQ(plain.drafted, 0);
    EXPECT_LT(drafted.passes, 200);
    EXPECT_GT(drafted.accepted, 100 * n);
    EXPECT_LT(drafted.accepted, drafted.drafted);
    EXPECT_EQ(drafted.rows, plain.rows - drafted.accepted + drafted.drafted);
    EXPECT_EQ(drafted.free_blocks, drafted.blocks);
  }
}

TEST_P(speculative, the_second_time_takes_fewer_passes) {
  generator_options options{.cache_blocks = 64, .eos_token_ids = {{}}};
  options.speculative = {.num_speculative_tokens = 8, .row_cost = 0.03};
  generator g(repeating(GetParam(), 2.0f), nullptr, options);
  std::int64_t passes[2];
  outputs results[2];
  for (const int epoch : {0, 1}) {
    const auto before = g.counts().passes;
    g.add(request(1, 40, 2, 100)); // the same draws: all is known
    results[epoch] = run(g);
    passes[epoch] = g.counts().passes - before;
  }
  expect_same(results[1], results[0]);
  EXPECT_LT(2 * passes[1], passes[0]);
}

TEST_P(speculative, a_full_batch_is_left_alone) {
  generator_options options{.cache_blocks = 128, .eos_token_ids = {{}}};
  options.speculative = {.num_speculative_tokens = 8, .disable_by_batch_size = 3, .row_cost = 0.03};
  generator_counts four, three;
  run(repeating(GetParam()), options, {request(1, 9, 4, 100)}, &four);
  run(repeating(GetParam()), options, {request(1, 9, 3, 100)}, &three);
  EXPECT_EQ(four.drafted, 0);
  EXPECT_GT(three.drafted, 0);
}

// Later tokens are what the new weights give, with drafts as without; both change them after the same token of each sample.
TEST_P(speculative, new_weights_meet_no_keys_of_a_draft) {
  for (const auto under_way : {inflight_cache::recompute, inflight_cache::keep}) {
    auto model = repeating(GetParam());
    generator_options options{.cache_blocks = 64, .eos_token_ids = {{}}};
    options.speculative = {.num_speculative_tokens = 8, .row_cost = 0.03};
    generator g(model, nullptr, options);
    const auto r = request(1, 40, 1, 300);
    g.add(r);
    for (int i = 0; i < 60; ++i)
      g.step();
    ASSERT_GT(g.counts().accepted, 10);
    model->set_weights(7);
    g.set_version({0, 7}, under_way);
    const auto result = run(g).at({1, 0}).result;
    const auto n = std::find(result.versions.begin(), result.versions.end(), weights_version{0, 7}) - result.versions.begin();
    ASSERT_LT(n, 299);
    auto slow_model = repeating(GetParam());
    generator slow(slow_model, nullptr, {.cache_blocks = 64, .eos_token_ids = {{}}});
    slow.add(r);
    for (std::ptrdiff_t i = 0; i < n; ++i)
      slow.step();
    slow_model->set_weights(7);
    slow.set_version({0, 7}, under_way);
    EXPECT_EQ(run(slow).at({1, 0}).result, result);
  }
}

INSTANTIATE_TEST_SUITE_P(draws, speculative, testing::Bool());

void in_two_threads(std::int64_t n, const std::function<void(std::int64_t)>& f) {
  std::thread half([&] {
    for (std::int64_t i = 0; i < n; i += 2)
      f(i);
  });
  for (std::int64_t i = 1; i < n; i += 2)
    f(i);
  half.join();
}

std::vector<generation_request> random_requests() {
  std::vector<generation_request> requests;
  const auto count = *rc::gen::inRange<std::uint64_t>(1, 4);
  for (std::uint64_t i = 0; i < count; ++i) {
    auto r =
        request(i, *rc::gen::inRange<std::size_t>(1, 80), *rc::gen::inRange<std::int64_t>(1, 5), *rc::gen::inRange<std::int64_t>(1, 100));
    if (i > 0 && *rc::gen::arbitrary<bool>())
      r.prompt_ids = requests.front().prompt_ids;
    auto& p = r.params;
    p.temperature = *rc::gen::element(0.0, 0.8, 1.0);
    p.top_k = *rc::gen::element<std::int64_t>(0, 0, 3);
    p.frequency_penalty = *rc::gen::element(0.0, 0.0, 0.3);
    p.repetition_penalty = *rc::gen::element(1.0, 1.0, 1.2);
    p.min_tokens = *rc::gen::element<std::int64_t>(0, 0, p.max_tokens / 2);
    p.top_logprobs = *rc::gen::element<std::int64_t>(0, 0, 2);
    p.ignore_eos = *rc::gen::arbitrary<bool>();
    p.stop_strings = *rc::gen::elementOf(std::vector<std::vector<std::string>>{{}, {}, {"cab"}, {"b\u00e9", "aaaa"}, {"bcbcb"}});
    p.stop_ids = *rc::gen::elementOf(std::vector<std::vector<std::int32_t>>{{}, {}, {4}});
    r.logprob_temperature = *rc::gen::element(1.0f, 0.8f);
    requests.push_back(std::move(r));
  }
  return requests;
}

// Any requests, options and company: drafts change no token, log-probability, end or cut.
RC_GTEST_PROP(speculative_property, drafts_change_no_result, ()) {
  const auto requests = random_requests();
  const bool draws = *rc::gen::arbitrary<bool>();
  const auto spread = *rc::gen::element(2.0f, 8.0f, 20.0f);
  generator_options options{.max_num_seqs = *rc::gen::inRange<std::int64_t>(1, 12),
                            .max_batch_tokens = *rc::gen::element<std::int64_t>(1, 3, 10, 30, 200),
                            .cache_blocks = *rc::gen::inRange<std::int64_t>(6, 40), // 6: the longest alone
                            .eos_token_ids = {{3}}};
  if (*rc::gen::arbitrary<bool>())
    options.parallel_for = in_two_threads;
  std::map<std::pair<std::uint64_t, std::int64_t>, generation_output> want;
  for (const auto& r : requests)
    want.merge(
        run(repeating(draws, spread), {.max_num_seqs = 1, .max_batch_tokens = 4096, .cache_blocks = 256, .eos_token_ids = {{3}}}, {r}));
  options.speculative = {.num_speculative_tokens = *rc::gen::inRange<std::int64_t>(1, 40),
                         .disable_by_batch_size = *rc::gen::element<std::int64_t>(1, 4, 100),
                         .row_cost = *rc::gen::element(0.0, 0.01)};
  generator g(repeating(draws, spread), small_tokenizer(), options);
  outputs got;
  for (const auto& r : requests) {
    g.add(r);
    for (int steps = *rc::gen::inRange(0, 20); steps > 0; --steps)
      for (auto& o : g.step())
        got.emplace(std::pair{o.id, o.sample_index}, std::move(o));
    if (*rc::gen::inRange(0, 6) == 0) {
      g.sleep();
      g.wake();
    }
  }
  got.merge(run(g));
  const auto counts = g.counts();
  RC_TAG(counts.accepted > 0 ? "accepted" : "none accepted");
  RC_ASSERT(counts.free_blocks == counts.blocks);
  RC_ASSERT(got.size() == want.size());
  for (const auto& [at, o] : want)
    RC_ASSERT(same(got.at(at), o));
}

} // namespace
} // namespace troupe
