#include "core/error.hpp"
#include "model/tokenizer/tokenizer.hpp"
#include "rollout/fake_lm.hpp"
#include "rollout/generate_all.hpp"
#include "rollout/generator.hpp"
#include "rollout/small_tokenizer.hpp"
#include <algorithm>
#include <gtest/gtest.h>
#include <map>
#include <rapidcheck/gtest.h>
#include <set>
#include <thread>

namespace troupe {
namespace {

using outputs = std::map<std::pair<std::uint64_t, std::int64_t>, generation_output>;

generation_request request(std::uint64_t id, std::vector<std::int32_t> prompt, std::int64_t n, std::int64_t max_tokens) {
  generation_request r;
  r.id = id;
  r.prompt_ids = std::move(prompt);
  r.n = n;
  r.params.max_tokens = max_tokens;
  r.key = {.seed = 5, .domain = draw::generate, .index = std::uint32_t(id)};
  return r;
}

std::vector<std::int32_t> prompt_of(std::size_t length, std::int32_t first = 1) {
  std::vector<std::int32_t> out;
  for (std::size_t i = 0; i < length; ++i)
    out.push_back((first + std::int32_t(i) * 7) % 50);
  return out;
}

void collect(generator& g, outputs& into) {
  for (auto& o : g.step())
    ASSERT_TRUE(into.emplace(std::pair{o.id, o.sample_index}, o).second);
}

outputs run(generator& g) {
  outputs all;
  for (int steps = 0; !g.idle(); ++steps) {
    if (steps > 20000)
      throw error{errc::failed, "the generator does not come to an end"};
    collect(g, all);
  }
  return all;
}

// One request at a time, one sample of it at a time, with all the room there is: what company must not change.
outputs alone(const std::vector<generation_request>& requests, std::int64_t max_sequence) {
  outputs all;
  for (const auto& r : requests) {
    generator g(std::make_shared<fake_lm>(50), nullptr,
                {.max_num_seqs = 1, .max_batch_tokens = 4096, .cache_blocks = 256, .max_sequence = max_sequence, .eos_token_ids = {{3}}});
    g.add(r);
    all.merge(run(g));
  }
  return all;
}

void in_two_threads(std::int64_t n, const std::function<void(std::int64_t)>& f) {
  std::thread half([&] {
    for (std::int64_t i = 0; i < n; i += 2)
      f(i);
  });
  for (std::int64_t i = 1; i < n; i += 2)
    f(i);
  half.join();
}

void expect_same(const outputs& got, const outputs& want) {
  ASSERT_EQ(got.size(), want.size());
  for (const auto& [at, o] : want) {
    SCOPED_TRACE("request " + std::to_string(at.first) + " sample " + std::to_string(at.second));
    ASSERT_TRUE(got.count(at));
    const auto& s = got.at(at).result;
    EXPECT_EQ(s.output_ids, o.result.output_ids);
    EXPECT_EQ(s.logprobs, o.result.logprobs);
    EXPECT_EQ(s.finish, o.result.finish);
  }
}

TEST(generator, equals_a_loop_over_the_whole_history) {
  // The reference needs no cache: every token from a fresh pass over all before it.
  fake_lm model(50);
  const auto r = request(4, prompt_of(40), 2, 12);
  generator g(std::make_shared<fake_lm>(50), nullptr, {.cache_blocks = 64, .eos_token_ids = {{3}}});
  g.add(r);
  const auto got = run(g);
  for (std::int64_t s = 0; s < r.n; ++s) {
    auto ids = r.prompt_ids;
    std::vector<std::int32_t> drawn;
    std::vector<float> logprobs;
    while (drawn.size() < 12 && (drawn.empty() || drawn.back() != 3)) {
      token_batch batch;
      batch.ids = ids;
      segment seg{0, std::int32_t(ids.size()), 0, {}};
      for (std::size_t i = 0; i < ids.size(); ++i)
        batch.positions.push_back(std::int32_t(i));
      for (std::int32_t b = 0; b * kv_block_tokens < std::int32_t(ids.size()); ++b)
        seg.blocks.push_back(batch.n_blocks++);
      batch.segments = {seg};
      const auto cache = model.make_cache(batch.n_blocks);
      std::vector<float> logits(50);
      const std::int32_t last = seg.row_end - 1;
      model.forward(batch, *cache, {&last, 1}, logits.data());
      auto key = r.key;
      key.sample = std::uint32_t(s);
      key.position = std::uint32_t(ids.size());
      drawn.push_back(sample_token(logits, r.params, key));
      logprobs.push_back(model.logprob(logits.data(), drawn.back(), 1.0f));
      ids.push_back(drawn.back());
    }
    EXPECT_EQ(got.at({4, s}).result.output_ids, drawn);
    EXPECT_EQ(got.at({4, s}).result.logprobs, logprobs);
  }
}

TEST(generator, a_prompt_is_computed_once_whatever_n) {
  auto model = std::make_shared<fake_lm>(50);
  generator g(model, nullptr, {.cache_blocks = 64, .eos_token_ids = {{}}});
  g.add(request(1, prompt_of(70), 8, 5));
  const auto got = run(g);
  EXPECT_EQ(got.size(), 8u);
  EXPECT_EQ(model->rows(), 70 + 8 * 4);
  EXPECT_EQ(g.counts().rows, model->rows());
  EXPECT_EQ(g.counts().preemptions, 0);
  EXPECT_EQ(g.counts().passes, 5);
}

TEST(generator, samples_of_a_request_differ_and_do_not_depend_on_n) {
  outputs one, eight;
  for (const std::int64_t n : {1, 8}) {
    generator g(std::make_shared<fake_lm>(50), nullptr, {.cache_blocks = 64, .eos_token_ids = {{}}});
    g.add(request(1, prompt_of(33), n, 20));
    (n == 1 ? one : eight) = run(g);
  }
  EXPECT_EQ(one.at({1, 0}).result.output_ids, eight.at({1, 0}).result.output_ids);
  EXPECT_NE(eight.at({1, 1}).result.output_ids, eight.at({1, 0}).result.output_ids);
}

TEST(generator, ends_at_end_tokens_and_lengths) {
  struct {
    const char* what;
    std::int64_t max_tokens, max_sequence;
    bool ignore_eos;
    std::vector<std::int32_t> stop_ids;
  } cases[] = {
      {"eos", 300, 4000, false, {}},     {"eos ignored", 30, 4000, true, {}}, {"stop id", 300, 4000, true, {7, 2}},
      {"max_tokens", 1, 4000, true, {}}, {"max_sequence", 300, 45, true, {}},
  };
  for (const auto& c : cases) {
    SCOPED_TRACE(c.what);
    generator g(std::make_shared<fake_lm>(50), nullptr, {.cache_blocks = 64, .max_sequence = c.max_sequence, .eos_token_ids = {{3}}});
    auto r = request(9, prompt_of(40), 3, c.max_tokens);
    r.params.ignore_eos = c.ignore_eos;
    r.params.stop_ids = c.stop_ids;
    g.add(r);
    std::set<std::int32_t> ends(c.stop_ids.begin(), c.stop_ids.end());
    if (!c.ignore_eos)
      ends.insert(3);
    for (const auto& [at, o] : run(g)) {
      const auto& ids = o.result.output_ids;
      ASSERT_FALSE(ids.empty());
      EXPECT_EQ(o.result.logprobs.size(), ids.size());
      EXPECT_EQ(o.result.versions.size(), ids.size());
      for (std::size_t i = 0; i + 1 < ids.size(); ++i)
        EXPECT_EQ(ends.count(ids[i]), 0u);
      const auto limit = std::min(c.max_tokens, c.max_sequence - 40);
      if (o.result.finish == finish_reason::stop)
        EXPECT_EQ(ends.count(ids.back()), 1u);
      else
        EXPECT_EQ(std::int64_t(ids.size()), limit);
      EXPECT_EQ(o.result.finish == finish_reason::stop, ends.count(ids.back()) == 1);
      EXPECT_EQ(o.text_stop, std::string::npos);
    }
  }
}

TEST(generator, the_models_own_end_tokens_are_the_default) {
  auto model = std::make_shared<fake_lm>(4);
  model->settings().eos_token_ids = {1};
  generator g(model, nullptr, {.cache_blocks = 64});
  g.add(request(1, {2}, 1, 1000));
  EXPECT_EQ(run(g).at({1, 0}).result.output_ids.back(), 1);
}

TEST(generator, runs_out_of_blocks_and_gives_the_same) {
  std::vector<generation_request> requests;
  for (std::uint64_t i = 0; i < 6; ++i)
    requests.push_back(request(i, prompt_of(20 + 9 * i, std::int32_t(i)), 3, 90));
  generator g(std::make_shared<fake_lm>(50), nullptr,
              {.max_num_seqs = 16, .max_batch_tokens = 64, .cache_blocks = 9, .eos_token_ids = {{3}}});
  for (const auto& r : requests)
    g.add(r);
  const auto got = run(g);
  EXPECT_GT(g.counts().preemptions, 0);
  expect_same(got, alone(requests, 4000));
}

TEST(generator, tokens_carry_the_version_that_drew_them) {
  generator g(std::make_shared<fake_lm>(50), nullptr, {.cache_blocks = 64, .eos_token_ids = {{}}});
  for (const std::uint32_t step : {4u, 5u}) {
    const weights_version first{1, step}, second{1, step + 10};
    g.set_version(first);
    g.add(request(step, prompt_of(5), 1, 3));
    g.step();
    g.set_version(second);
    EXPECT_EQ(run(g).at({step, 0}).result.versions, (std::vector{first, second, second}));
  }
}

// After the change every token is what the new weights alone give for all before it.
TEST(generator, new_weights_between_two_steps_are_those_of_later_tokens) {
  for (const bool preempting : {false, true}) {
    auto model = std::make_shared<fake_lm>(50);
    generator g(model, nullptr, {.max_num_seqs = 8, .max_batch_tokens = 64, .cache_blocks = preempting ? 12 : 64, .eos_token_ids = {{3}}});
    const std::vector<generation_request> requests = {request(0, prompt_of(70), 3, 60), request(1, prompt_of(33, 9), 2, 60)};
    for (const auto& r : requests)
      g.add(r);
    outputs got;
    for (int i = 0; i < 8; ++i)
      collect(g, got);
    model->set_weights(7);
    g.set_version({0, 7});
    got.merge(run(g));
    ASSERT_EQ(got.size(), 5u);
    int changed = 0;
    for (const auto& [at, o] : got) {
      const auto& s = o.result;
      const auto n = std::find(s.versions.begin(), s.versions.end(), weights_version{0, 7}) - s.versions.begin();
      if (n == std::ptrdiff_t(s.versions.size()))
        continue;
      auto rest = requests[at.first];
      rest.prompt_ids.insert(rest.prompt_ids.end(), s.output_ids.begin(), s.output_ids.begin() + n);
      rest.params.max_tokens -= n;
      rest.n = at.second + 1;
      auto updated = std::make_shared<fake_lm>(50);
      updated->set_weights(7);
      generator fresh(updated, nullptr, {.cache_blocks = 256, .eos_token_ids = {{3}}});
      fresh.add(rest);
      const auto want = run(fresh).at(at).result;
      EXPECT_EQ(std::vector<std::int32_t>(s.output_ids.begin() + n, s.output_ids.end()), want.output_ids);
      EXPECT_EQ(std::vector<float>(s.logprobs.begin() + n, s.logprobs.end()), want.logprobs);
      ++changed;
    }
    EXPECT_GE(changed, 2);
    EXPECT_EQ(g.counts().free_blocks, g.counts().blocks);
  }
}

TEST(generator, a_kept_cache_is_not_computed_again_nor_given_to_others) {
  auto model = std::make_shared<fake_lm>(50);
  generator g(model, nullptr, {.cache_blocks = 64, .eos_token_ids = {{}}});
  g.add(request(0, prompt_of(70), 2, 20));
  for (int i = 0; i < 8; ++i)
    g.step();
  model->set_weights(7);
  g.set_version({0, 7}, inflight_cache::keep);
  const auto other = request(1, prompt_of(70), 1, 20);
  g.add(other);
  const auto got = run(g);
  EXPECT_EQ(model->rows(), 70 + 2 * 19 + 70 + 19);
  auto updated = std::make_shared<fake_lm>(50);
  updated->set_weights(7);
  generator fresh(updated, nullptr, {.cache_blocks = 64, .eos_token_ids = {{}}});
  fresh.add(other);
  EXPECT_EQ(got.at({1, 0}).result.output_ids, run(fresh).at({1, 0}).result.output_ids);
}

TEST(generator, sleep_frees_the_cache_and_changes_no_result) {
  const std::vector<generation_request> requests = {request(0, prompt_of(70), 3, 40), request(1, prompt_of(20, 9), 2, 40)};
  generator g(std::make_shared<fake_lm>(50), nullptr, {.max_batch_tokens = 32, .cache_blocks = 40, .eos_token_ids = {{3}}});
  g.add(requests[0]);
  outputs got;
  for (int i = 0; i < 9; ++i) {
    collect(g, got);
    if (i % 3 != 2)
      continue;
    g.sleep();
    g.sleep();
    EXPECT_EQ(g.counts().free_blocks, 40);
    if (i == 5)
      g.add(requests[1]);
    EXPECT_THROW(g.step(), error);
    g.wake();
    g.wake();
  }
  got.merge(run(g));
  expect_same(got, alone(requests, 4000));
}

TEST(generator, a_prompt_that_was_computed_before_is_found) {
  auto model = std::make_shared<fake_lm>(50);
  generator g(model, nullptr, {.cache_blocks = 64, .eos_token_ids = {{}}});
  std::vector<generation_request> requests;
  for (std::uint64_t i = 0; i < 3; ++i) {
    requests.push_back(request(i, prompt_of(70), 2, 5));
    requests.back().prompt_ids.back() = std::int32_t(i);
    requests.back().params.ignore_eos = true;
  }
  g.add(requests[0]);
  auto got = run(g);
  g.add(requests[1]);
  g.add(requests[2]);
  got.merge(run(g));
  EXPECT_EQ(model->rows(), 70 + 6 + 6 + 6 * 4);
  EXPECT_EQ(g.counts().reused_prompt_tokens, 128);
  expect_same(got, alone(requests, 4000));
}

TEST(generator, abort_ends_every_sample_once_and_frees_the_room) {
  generator g(std::make_shared<fake_lm>(50), nullptr,
              {.max_num_seqs = 4, .max_batch_tokens = 32, .cache_blocks = 40, .eos_token_ids = {{}}});
  g.add(request(1, prompt_of(40), 6, 50)); // samples in two waves
  g.add(request(2, prompt_of(90), 2, 50)); // waits
  const auto other = request(3, prompt_of(10), 2, 20);
  g.add(other);
  outputs got;
  for (int i = 0; i < 6; ++i)
    collect(g, got);
  g.abort(1);
  g.abort(2);
  g.abort(77); // unknown: nothing happens
  collect(g, got);
  EXPECT_EQ(got.size(), 8u);
  for (const auto& [at, o] : got)
    EXPECT_EQ(o.result.finish, finish_reason::abort);
  EXPECT_TRUE(got.at({2, 1}).result.output_ids.empty());
  EXPECT_FALSE(got.at({1, 0}).result.output_ids.empty());
  expect_same(run(g), alone({other}, 4000));
  g.abort(3); // already ended
  EXPECT_TRUE(g.step().empty());
}

TEST(generator, refuses_what_it_cannot_do) {
  generator g(std::make_shared<fake_lm>(50, 200), nullptr, {.cache_blocks = 4});
  const auto code_of = [&](generation_request r) {
    try {
      g.add(std::move(r));
    } catch (const error& e) {
      EXPECT_EQ(std::string(e.what()).find('\n'), std::string::npos);
      return e.code();
    }
    return errc::cancelled;
  };
  EXPECT_EQ(code_of(request(1, {}, 1, 5)), errc::bad_input);
  EXPECT_EQ(code_of(request(1, prompt_of(200), 1, 5)), errc::bad_input);
  EXPECT_EQ(code_of(request(1, {50}, 1, 5)), errc::bad_input);
  EXPECT_EQ(code_of(request(1, {-1}, 1, 5)), errc::bad_input);
  EXPECT_EQ(code_of(request(1, {1}, 0, 5)), errc::bad_usage);
  EXPECT_EQ(code_of(request(1, prompt_of(100), 1, 30)), errc::bad_input); // 129 positions, 128 in the cache
  EXPECT_EQ(code_of(request(1, prompt_of(100), 1, 29)), errc::cancelled); // fits to the last slot
  EXPECT_EQ(code_of(request(1, prompt_of(3), 1, 5)), errc::bad_input);    // id under way
  auto stops = request(2, prompt_of(3), 1, 5);
  stops.params.stop_strings = {"x"};
  EXPECT_EQ(code_of(stops), errc::bad_usage); // no tokenizer
  auto nothing = request(2, prompt_of(3), 1, 5);
  nothing.params.allowed_ids = nothing.params.stop_ids = {4, 5};
  nothing.params.min_tokens = 1;
  EXPECT_EQ(code_of(nothing), errc::bad_usage);
  EXPECT_EQ(run(g).at({1, 0}).result.output_ids.size(), 29u);
  EXPECT_THROW(generator(std::make_shared<fake_lm>(50), nullptr, {.max_num_seqs = 0}), error);
}

TEST(generator, logits_that_are_not_finite_end_the_step_with_an_error) {
  generator g(std::make_shared<fake_lm>(50, 4096, std::nanf("")), nullptr, {.cache_blocks = 4});
  g.add(request(1, {1}, 2, 5));
  EXPECT_THROW(g.step(), error);
}

TEST(generator, stop_strings_end_at_the_token_that_completes_one) {
  const auto tok = small_tokenizer();
  const auto generate = [&](std::vector<std::string> stops, std::int64_t n) {
    generator g(std::make_shared<fake_lm>(6), tok, {.cache_blocks = 64});
    auto r = request(1, {0}, n, 60);
    r.params.stop_strings = std::move(stops);
    g.add(r);
    return run(g);
  };
  const std::int64_t n = 20;
  const auto whole = generate({}, n); // the same draws, never stopped
  const std::vector<std::vector<std::string>> cases = {{"ca"},        {"bab", "cc"}, {"\u00e9"},
                                                       {"bc", "abc"}, {"aabcb"},     {"b\u00e9", "\ufffd\ufffd\ufffd"}};
  int stopped = 0;
  for (const auto& stops : cases)
    for (const auto& [at, o] : generate(stops, n)) {
      SCOPED_TRACE(stops[0] + " " + std::to_string(at.second));
      const auto& all = whole.at(at).result.output_ids;
      std::size_t count = 0, place = std::string::npos;
      while (count < all.size() && place == std::string::npos) {
        auto text = tok->decode(std::span(all).first(++count), true);
        // A character of which bytes are missing may still become another one.
        if (count < all.size() && all[count - 1] == 4)
          text.resize(text.size() - 3);
        for (const auto& s : stops)
          place = std::min(place, text.find(s));
      }
      EXPECT_EQ(o.result.output_ids, std::vector<std::int32_t>(all.begin(), all.begin() + std::ptrdiff_t(count)));
      EXPECT_EQ(o.text_stop, place);
      EXPECT_EQ(o.result.finish, place == std::string::npos ? finish_reason::length : finish_reason::stop);
      stopped += place != std::string::npos;
    }
  EXPECT_GT(stopped, 40);
}

TEST(generator, min_tokens_hold_back_end_tokens_and_stop_strings) {
  const auto tok = small_tokenizer();
  generator g(std::make_shared<fake_lm>(6), tok, {.cache_blocks = 64, .eos_token_ids = {{2}}});
  for (const std::int64_t least : {0, 5}) {
    auto r = request(std::uint64_t(least), {0}, 30, 60);
    r.params.stop_strings = {"ba"};
    r.params.stop_ids = {4};
    r.params.min_tokens = least;
    g.add(r);
  }
  std::size_t shortest[2] = {99, 99};
  for (const auto& [at, o] : run(g)) {
    const auto& ids = o.result.output_ids;
    auto& s = shortest[at.first == 5];
    s = std::min(s, ids.size());
    const auto first = std::min<std::size_t>(at.first, ids.size());
    for (std::size_t i = 0; i < first; ++i)
      EXPECT_TRUE(ids[i] != 2 && ids[i] != 4);
    if (o.text_stop != std::string::npos) {
      EXPECT_EQ(tok->decode(ids, true).substr(o.text_stop, 2), "ba");
    }
  }
  EXPECT_EQ(shortest[0], 1u);
  EXPECT_EQ(shortest[1], 6u); // five, and the one that ends it
}

TEST(generator, penalties_see_prompt_and_output_of_their_own_sample) {
  // A bias makes 7 certain; each time it is drawn the penalty takes more off, until another is drawn.
  generator g(std::make_shared<fake_lm>(50, 4096, 0.01f), nullptr, {.cache_blocks = 64, .eos_token_ids = {{}}});
  auto r = request(1, {1, 2}, 2, 12);
  r.params.temperature = 0;
  r.params.logit_bias = {{7, 5.0f}};
  r.params.frequency_penalty = 1.0;
  g.add(r);
  auto repeated = request(2, {1, 7}, 1, 3);
  repeated.params = r.params;
  repeated.params.max_tokens = 3;
  repeated.params.frequency_penalty = 0;
  repeated.params.repetition_penalty = 100;
  g.add(repeated);
  const auto got = run(g);
  for (const std::int64_t sample : {0, 1}) {
    const auto& ids = got.at({1, sample}).result.output_ids;
    EXPECT_EQ(std::count(ids.begin(), ids.begin() + 5, 7), 5);
    EXPECT_NE(ids[6], 7);
  }
  EXPECT_EQ(got.at({1, 0}).result, got.at({1, 1}).result); // greedy
  EXPECT_EQ(got.at({2, 0}).result.output_ids[0], 7);       // 0.05 still leads
}

TEST(generator, alternatives_are_of_the_untouched_softmax) {
  auto model = std::make_shared<fake_lm>(50);
  generator g(model, nullptr, {.cache_blocks = 64, .eos_token_ids = {{}}});
  auto r = request(1, prompt_of(9), 2, 6);
  r.params.top_logprobs = 4;
  r.params.allowed_ids = {20, 10, 30, 20};
  g.add(r);
  for (const auto& [at, o] : run(g)) {
    const auto& s = o.result;
    ASSERT_EQ(o.top.size(), 4 * s.output_ids.size());
    for (std::size_t i = 0; i < s.output_ids.size(); ++i) {
      EXPECT_TRUE(s.output_ids[i] == 10 || s.output_ids[i] == 20 || s.output_ids[i] == 30);
      for (std::size_t k = 0; k < 4; ++k) {
        EXPECT_TRUE(k == 0 || o.top[4 * i + k].logprob <= o.top[4 * i + k - 1].logprob);
        if (o.top[4 * i + k].id == s.output_ids[i]) {
          EXPECT_EQ(o.top[4 * i + k].logprob, s.logprobs[i]);
        }
      }
      EXPECT_TRUE(s.logprobs[i] <= o.top[4 * i].logprob);
    }
  }
}

TEST(generate_all, hands_over_in_order_as_soon_as_may_be) {
  std::vector<generation_request> requests;
  for (std::uint64_t i = 0; i < 12; ++i) // the first ends last
    requests.push_back(request(i, prompt_of(3 + i, std::int32_t(i)), 2, std::int64_t(40 - 3 * i)));
  generator g(std::make_shared<fake_lm>(50), nullptr, {.max_num_seqs = 4, .cache_blocks = 40, .eos_token_ids = {{3}}});
  outputs got;
  std::vector<std::pair<std::uint64_t, std::int64_t>> order;
  bool early = false;
  generate_all(g, requests, [&](generation_output&& o) {
    order.emplace_back(o.id, o.sample_index);
    early |= !g.idle();
    got.emplace(order.back(), std::move(o));
  });
  EXPECT_TRUE(std::is_sorted(order.begin(), order.end()));
  EXPECT_TRUE(early);
  expect_same(got, alone(requests, 4000));
  generate_all(g, {}, [](generation_output&&) { FAIL(); });
}

// Random work in random company: any options, arrivals and aborts while others run, sleep, threads, shared beginnings.
RC_GTEST_PROP(generator_property, results_do_not_depend_on_company_or_options, ()) {
  std::vector<generation_request> requests;
  const auto count = *rc::gen::inRange(1, 9);
  for (int i = 0; i < count; ++i) {
    auto r = request(std::uint64_t(i), prompt_of(*rc::gen::inRange<std::size_t>(1, 100), *rc::gen::element(0, 1, 9)),
                     *rc::gen::inRange<std::int64_t>(1, 6), *rc::gen::inRange<std::int64_t>(1, 60));
    r.expected_tokens = *rc::gen::element<std::int64_t>(0, 0, 10, 50);
    r.params.temperature = *rc::gen::element(0.0, 0.8, 1.0);
    r.params.top_k = *rc::gen::element<std::int64_t>(0, 5);
    r.params.frequency_penalty = *rc::gen::element(0.0, 0.5);
    r.params.repetition_penalty = *rc::gen::element(1.0, 1.3);
    r.params.min_tokens = *rc::gen::inRange<std::int64_t>(0, r.params.max_tokens + 1);
    if (*rc::gen::arbitrary<bool>())
      r.params.logit_bias = {{7, 2.0f}, {3, -1.0f}};
    r.logprob_temperature = *rc::gen::element(1.0f, 0.8f);
    requests.push_back(std::move(r));
  }
  generator_options options{.max_num_seqs = *rc::gen::inRange<std::int64_t>(1, 12),
                            .max_batch_tokens = *rc::gen::inRange<std::int64_t>(1, 200),
                            .cache_blocks = *rc::gen::inRange<std::int64_t>(5, 40), // 5: the longest alone
                            .max_sequence = 4000,
                            .eos_token_ids = {{3}}};
  if (*rc::gen::arbitrary<bool>())
    options.parallel_for = in_two_threads;
  auto order = requests;
  if (*rc::gen::arbitrary<bool>())
    std::reverse(order.begin(), order.end());
  generator g(std::make_shared<fake_lm>(50), nullptr, options);
  outputs got;
  std::set<std::uint64_t> aborted;
  for (const auto& r : order) {
    g.add(r);
    for (int steps = *rc::gen::inRange(0, 4); steps > 0; --steps)
      collect(g, got);
    switch (*rc::gen::inRange(0, 8)) {
    case 0:
      g.abort(*aborted.insert(*rc::gen::inRange<std::uint64_t>(0, std::uint64_t(count))).first);
      collect(g, got);
      break;
    case 1:
      g.sleep();
      RC_ASSERT(g.counts().free_blocks == options.cache_blocks);
      g.wake();
      break;
    default:
      break;
    }
  }
  got.merge(run(g));
  RC_ASSERT(g.counts().free_blocks == options.cache_blocks);
  const auto want = alone(requests, 4000);
  RC_ASSERT(got.size() == want.size());
  for (const auto& [at, o] : want) {
    const auto &s = got.at(at).result, &w = o.result;
    if (s.finish == finish_reason::abort) {
      RC_ASSERT(aborted.count(at.first) == 1);
      RC_ASSERT(s.output_ids.size() < w.output_ids.size());
      RC_ASSERT(std::equal(s.output_ids.begin(), s.output_ids.end(), w.output_ids.begin()));
      RC_ASSERT(std::equal(s.logprobs.begin(), s.logprobs.end(), w.logprobs.begin()));
      continue;
    }
    RC_ASSERT(s.output_ids == w.output_ids);
    RC_ASSERT(s.logprobs == w.logprobs);
    RC_ASSERT(s.finish == w.finish);
  }
}

} // namespace
} // namespace troupe
