#include "core/error.hpp"
#include "rollout/engine.hpp"
#include "rollout/fake_lm.hpp"
#include <atomic>
#include <gtest/gtest.h>
#include <limits>
#include <map>
#include <thread>

namespace troupe {
namespace {

using namespace std::chrono_literals;

auto soon() { return std::chrono::steady_clock::now() + 60s; }

std::unique_ptr<generator> small_generator(std::atomic<bool>* gate = nullptr) {
  generator_options options{.max_num_seqs = 6, .max_batch_tokens = 20, .cache_blocks = 40, .max_sequence = 200, .eos_token_ids = {{3}}};
  if (gate) // the first pass goes through, the second waits for it to open
    options.parallel_for = [gate, passes = 0](std::int64_t n, const std::function<void(std::int64_t)>& f) mutable {
      while (passes > 0 && !*gate)
        std::this_thread::yield();
      ++passes;
      for (std::int64_t i = 0; i < n; ++i)
        f(i);
    };
  return std::make_unique<generator>(std::make_shared<fake_lm>(50), nullptr, std::move(options));
}

generation_request request(std::uint64_t seed, std::int64_t n = 2, std::int64_t max_tokens = 25) {
  generation_request r;
  for (std::uint64_t i = 0; i < 3 + seed % 20; ++i)
    r.prompt_ids.push_back(std::int32_t((seed + 7 * i) % 50));
  r.n = n;
  r.params.max_tokens = max_tokens;
  r.params.top_logprobs = 2;
  r.key = {.seed = seed, .domain = draw::generate_seeded};
  return r;
}

// The request's samples as a generator of its own makes them.
std::vector<generation_output> alone(generation_request r) {
  const auto g = small_generator();
  std::vector<generation_output> out(std::size_t(r.n));
  g->add(std::move(r));
  while (!g->idle())
    for (auto& o : g->step())
      out[std::size_t(o.sample_index)] = std::move(o);
  return out;
}

struct received {
  std::map<std::int64_t, sample> drawn; // what the tokens say
  std::map<std::int64_t, std::vector<token_logprob>> top;
  std::map<std::int64_t, generation_output> ended;
};

received take_all(generation_stream& stream) {
  received out;
  while (!stream.ended()) {
    auto event = stream.next(soon());
    if (!event)
      throw error{errc::failed, "no event in a minute"};
    if (auto* token = std::get_if<streamed_token>(&*event)) {
      auto& s = out.drawn[token->sample_index];
      s.output_ids.push_back(token->token.id);
      s.logprobs.push_back(token->token.logprob);
      auto& top = out.top[token->sample_index];
      top.insert(top.end(), token->top.begin(), token->top.end());
    } else {
      auto& o = std::get<generation_output>(*event);
      out.ended[o.sample_index] = o;
    }
  }
  return out;
}

void expect_same(const received& got, const std::vector<generation_output>& want, bool tokens) {
  ASSERT_EQ(got.ended.size(), want.size());
  for (const auto& [i, o] : got.ended) {
    EXPECT_EQ(o.result, want[std::size_t(i)].result);
    EXPECT_EQ(o.top, want[std::size_t(i)].top);
    if (!tokens) {
      EXPECT_TRUE(got.drawn.empty());
      continue;
    }
    EXPECT_EQ(got.drawn.at(i).output_ids, o.result.output_ids);
    EXPECT_EQ(got.drawn.at(i).logprobs, o.result.logprobs);
    EXPECT_EQ(got.top.at(i), o.top);
  }
}

TEST(engine, many_threads_get_what_each_would_get_alone) {
  engine e(small_generator(), 100);
  std::vector<std::thread> threads;
  std::vector<received> got(16);
  for (std::uint64_t t = 0; t < got.size(); ++t)
    threads.emplace_back([&, t] {
      auto stream = e.submit({request(t)}, t % 2 == 0);
      got[t] = take_all(*stream);
    });
  for (auto& t : threads)
    t.join();
  for (std::uint64_t t = 0; t < got.size(); ++t)
    expect_same(got[t], alone(request(t)), t % 2 == 0);
  const auto counts = e.counts();
  EXPECT_EQ(counts.stopped + counts.at_length, 32u);
  EXPECT_EQ(counts.waiting + counts.running, 0);
  EXPECT_EQ(counts.aborted + counts.refused, 0u);
  std::uint64_t tokens = 0, firsts = 0;
  for (const auto& r : got)
    for (const auto& [i, o] : r.ended)
      tokens += o.result.output_ids.size();
  for (const auto n : counts.first_token.counts)
    firsts += n;
  EXPECT_EQ(counts.output_tokens, tokens);
  EXPECT_EQ(firsts, 16u);
}

TEST(engine, requests_of_one_submission_are_told_apart) {
  engine e(small_generator(), 100);
  auto stream = e.submit({request(5, 1), request(6, 1)}, false);
  std::map<std::uint64_t, sample> got;
  while (!stream->ended())
    if (const auto event = stream->next(soon()))
      got[std::get<generation_output>(*event).id] = std::get<generation_output>(*event).result;
  EXPECT_EQ(got.at(0), alone(request(5, 1)).front().result);
  EXPECT_EQ(got.at(1), alone(request(6, 1)).front().result);
}

TEST(engine, a_stream_that_goes_away_gives_its_request_up) {
  std::atomic<bool> gate = false;
  engine e(small_generator(&gate), 100);
  auto endless = request(1, 3, 190);
  endless.params.ignore_eos = true;
  {
    auto stream = e.submit({endless}, true);
    ASSERT_TRUE(stream->next(soon()));
  }
  gate = true;
  auto next = e.submit({request(2)}, false);
  expect_same(take_all(*next), alone(request(2)), false);
  // The engine's thread counts the cache's blocks a little after the last sample.
  const auto freed = [&] { return e.idle() && e.counts().generator.free_blocks == e.counts().generator.blocks; };
  const auto until = soon();
  while (!freed() && std::chrono::steady_clock::now() < until)
    std::this_thread::yield();
  EXPECT_EQ(e.counts().aborted, 3u);
  EXPECT_EQ(e.counts().given_up, 1u);
  EXPECT_EQ(e.counts().generator.free_blocks, e.counts().generator.blocks);
}

TEST(engine, a_bad_request_fails_alone) {
  engine e(small_generator(), 100);
  auto bad = request(1);
  bad.prompt_ids.push_back(50);
  auto good = e.submit({request(2)}, false);
  auto failing = e.submit({request(3), bad}, false);
  try {
    while (failing->next(soon()))
      ;
    FAIL();
  } catch (const error& err) {
    EXPECT_EQ(err.code(), errc::bad_input);
    EXPECT_NE(std::string(err.what()).find("50"), std::string::npos);
  }
  expect_same(take_all(*good), alone(request(2)), false);
}

TEST(engine, a_full_queue_takes_nothing) {
  engine e(small_generator(), 4);
  EXPECT_FALSE(e.submit({request(1), request(2), request(3), request(4), request(5)}, false));
  EXPECT_TRUE(e.full(5));
  EXPECT_FALSE(e.full(4));
  EXPECT_EQ(e.counts().refused, 5u);
  auto stream = e.submit({request(1)}, false);
  expect_same(take_all(*stream), alone(request(1)), false);
}

TEST(engine, cancel_ends_what_is_under_way) {
  std::atomic<bool> gate = false;
  engine e(small_generator(&gate), 100);
  auto endless = request(1, 1, 190);
  endless.params.ignore_eos = true;
  auto stream = e.submit({endless}, true);
  ASSERT_TRUE(stream->next(soon()));
  e.cancel();
  gate = true;
  const auto cancelled = [](const std::function<void()>& f) {
    try {
      f();
    } catch (const error& err) {
      return err.code() == errc::cancelled;
    }
    return false;
  };
  EXPECT_TRUE(cancelled([&] {
    while (!stream->ended())
      stream->next(soon());
  }));
  EXPECT_TRUE(cancelled([&] { e.submit({request(1)}, false); }));
}

TEST(engine, a_stream_outlives_its_engine) {
  std::optional<generation_stream> unread;
  {
    engine e(small_generator(), 100);
    unread.emplace(std::move(*e.submit({request(1)}, false)));
    auto other = e.submit({request(2)}, false);
    take_all(*other);
  }
  unread.reset();
}

TEST(engine, a_pass_that_fails_is_everybodys_failure) {
  auto lm = std::make_shared<fake_lm>(50, 4096, std::numeric_limits<float>::infinity());
  engine e(std::make_unique<generator>(lm, nullptr, generator_options{.max_num_seqs = 4, .cache_blocks = 20, .max_sequence = 100}), 10);
  auto stream = e.submit({request(1)}, true);
  EXPECT_THROW(
      {
        while (stream->next(soon()))
          ;
      },
      error);
  EXPECT_TRUE(e.failed());
  EXPECT_THROW(e.submit({request(1)}, false), error);
}

} // namespace
} // namespace troupe
