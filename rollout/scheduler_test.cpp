#include "rollout/scheduler.hpp"
#include <algorithm>
#include <gtest/gtest.h>
#include <map>
#include <numeric>
#include <stdexcept>

namespace troupe {
namespace {

std::shared_ptr<scheduled_prompt> prompt_of(std::int32_t length, std::int32_t first = 0, std::int64_t n = 1) {
  auto p = std::make_shared<scheduled_prompt>();
  p->ids.resize(std::size_t(length));
  std::iota(p->ids.begin(), p->ids.end(), first);
  p->unfinished = n;
  return p;
}

using lengths_of = std::map<const scheduled_prompt*, std::size_t>;

// Runs what is scheduled without a model: every sample draws 1, 2, 3, ... until it has as many tokens as `lengths` says. -> rows run
std::int64_t run_pass(scheduler& s, const lengths_of& lengths, std::size_t otherwise = 0) {
  const auto& pass = s.next();
  const auto rows = std::int64_t(pass.batch.ids.size());
  for (auto* end : std::vector<sequence*>(pass.ends)) {
    auto prompt = end->prompt;
    const auto known = lengths.find(prompt.get());
    const std::size_t length = known == lengths.end() ? otherwise : known->second;
    if (end->sample_index >= 0) {
      end->output_ids.push_back(std::int32_t(end->output_ids.size()) + 1);
      if (end->output_ids.size() >= length)
        s.finish_sample(*prompt, end);
      continue;
    }
    s.prompt_done(*end);
    for (std::int64_t i = 0, n = prompt->unfinished; i < n; ++i) {
      if (length == 1) {
        s.finish_sample(*prompt, nullptr);
        continue;
      }
      auto sample = std::make_unique<sequence>();
      sample->prompt = prompt;
      sample->sample_index = i;
      sample->output_ids = {1};
      s.add_sample(std::move(sample));
    }
  }
  return rows;
}

std::int64_t run_pass(scheduler& s, std::size_t length) { return run_pass(s, {}, length); }

std::int64_t run(scheduler& s, std::size_t length) {
  std::int64_t rows = 0;
  for (int passes = 0; !s.idle(); ++passes) {
    if (passes > 10000)
      throw std::runtime_error("the scheduler does not come to an end");
    rows += run_pass(s, length);
  }
  EXPECT_EQ(s.blocks().n_free(), s.blocks().n_blocks());
  return rows;
}

TEST(scheduler, a_prompt_is_cut_into_chunks_of_the_budget) {
  scheduler s(16, 4, 24);
  s.add_prompt(prompt_of(60));
  std::vector<std::int64_t> rows;
  while (!s.idle())
    rows.push_back(run_pass(s, 3));
  EXPECT_EQ(rows, (std::vector<std::int64_t>{24, 24, 12, 1, 1}));
}

TEST(scheduler, rows_that_continue_come_before_chunks) {
  scheduler s(32, 4, 8);
  s.add_prompt(prompt_of(5, 0, 2));
  run_pass(s, 50);
  s.add_prompt(prompt_of(40, 100));
  const auto& pass = s.next();
  ASSERT_EQ(pass.batch.segments.size(), 3u);
  EXPECT_EQ(pass.batch.segments[1].row_end, 2);
  EXPECT_EQ(pass.batch.segments[2].row_end, 8); // six of the prompt
  EXPECT_EQ(pass.ends.size(), 2u);
}

TEST(scheduler, those_expected_to_be_longest_start_first) {
  scheduler s(32, 2, 256);
  const std::pair<std::int32_t, std::int64_t> prompts[] = {{3, 0}, {4, 10}, {5, 90}, {6, 90}, {7, 20}};
  for (const auto& [length, expected] : prompts) {
    auto p = prompt_of(length, 100 * length);
    p->expected = expected;
    s.add_prompt(p);
  }
  std::vector<std::int32_t> order;
  while (!s.idle()) {
    const auto& pass = s.next();
    for (auto* end : std::vector<sequence*>(pass.ends)) {
      const auto prompt = end->prompt;
      order.push_back(std::int32_t(prompt->ids.size()));
      s.prompt_done(*end);
      s.finish_sample(*prompt, nullptr);
    }
  }
  EXPECT_EQ(order, (std::vector<std::int32_t>{5, 6, 7, 4, 3}));
}

// Fewer passes where lengths are known from before: a long one that starts last runs alone.
TEST(scheduler, expected_lengths_shorten_the_tail) {
  std::int64_t passes[2] = {};
  for (const bool told : {false, true}) {
    scheduler s(256, 4, 256);
    lengths_of lengths;
    for (std::int32_t i = 0; i < 16; ++i) {
      auto p = prompt_of(5, 100 * i);
      lengths[p.get()] = i == 15 ? 200 : std::size_t(10 + i);
      p->expected = told ? std::int64_t(lengths[p.get()]) : 0;
      s.add_prompt(p);
    }
    for (; !s.idle(); ++passes[told])
      run_pass(s, lengths);
  }
  EXPECT_LT(passes[1], 206);
  EXPECT_GT(passes[0], 240);
}

TEST(scheduler, samples_share_the_full_blocks_and_copy_the_last) {
  scheduler s(16, 4, 256);
  s.add_prompt(prompt_of(70, 0, 3));
  run_pass(s, 9);
  const auto& pass = s.next();
  ASSERT_EQ(pass.batch.segments.size(), 3u);
  const auto& first = pass.batch.segments[0].blocks;
  for (const auto& seg : pass.batch.segments) {
    EXPECT_EQ(seg.row_end - seg.row_begin, 1);
    EXPECT_TRUE(std::equal(first.begin(), first.begin() + 2, seg.blocks.begin()));
    EXPECT_TRUE(&seg.blocks == &first || seg.blocks[2] != first[2]);
  }
  EXPECT_EQ(pass.copies.size(), 2u); // the last to start takes the block itself
  EXPECT_EQ(s.blocks().n_free(), 16 - 2 - 3);
}

TEST(scheduler, what_was_computed_is_found_again_until_the_weights_change) {
  scheduler s(32, 4, 256);
  s.add_prompt(prompt_of(70, 0, 2));
  EXPECT_EQ(run(s, 5), 70 + 2 * 4);
  s.add_prompt(prompt_of(70));
  EXPECT_EQ(run(s, 5), 6 + 4); // two of its three blocks
  s.add_prompt(prompt_of(64));
  EXPECT_EQ(run(s, 5), 32 + 4); // the last row always runs
  s.add_prompt(prompt_of(70, 1));
  EXPECT_EQ(run(s, 5), 70 + 4);
  EXPECT_EQ(s.reused_prompt_tokens(), 64 + 32);
  s.weights_changed();
  s.add_prompt(prompt_of(70));
  EXPECT_EQ(run(s, 5), 70 + 4);
}

TEST(scheduler, outputs_are_found_as_a_later_prompt) {
  scheduler s(32, 4, 256);
  s.add_prompt(prompt_of(30));
  run(s, 40); // 69 positions computed
  auto turn = prompt_of(30);
  for (std::int32_t i = 1; i <= 40; ++i)
    turn->ids.push_back(i);
  s.add_prompt(turn);
  EXPECT_EQ(run(s, 2), 70 - 64 + 1);
}

TEST(scheduler, equal_prompts_that_come_together_are_computed_once) {
  scheduler s(32, 8, 16); // chunks: the second waits for several passes
  s.add_prompt(prompt_of(70));
  s.add_prompt(prompt_of(70));
  s.add_prompt(prompt_of(20, 500)); // nothing to wait for
  EXPECT_EQ(run(s, 5), 70 + 6 + 20 + 3 * 4);
}

TEST(scheduler, the_least_recently_used_is_given_up_first) {
  scheduler s(8, 1, 256);
  for (const std::int32_t first : {0, 1000, 0, 2000, 3000}) { // three blocks each, two of them full
    s.add_prompt(prompt_of(70, first));
    run(s, 2);
  }
  s.add_prompt(prompt_of(70, 3000));
  EXPECT_EQ(run(s, 2), 6 + 1);
  s.add_prompt(prompt_of(70, 1000)); // its end made room for the last
  EXPECT_EQ(run(s, 2), 70 - 32 + 1);
}

TEST(scheduler, the_youngest_gives_way_and_is_computed_again) {
  scheduler s(10, 4, 256);
  for (const std::int32_t first : {0, 500, 1000})
    s.add_prompt(prompt_of(40, first));
  const auto rows = run(s, 80); // 119 positions each: four blocks
  EXPECT_GT(s.preemptions(), 0);
  EXPECT_GT(rows, 3 * 119);
}

TEST(scheduler, a_dropped_cache_is_all_free_and_is_computed_again_shared) {
  scheduler s(32, 8, 256);
  s.add_prompt(prompt_of(70, 0, 4));
  s.add_prompt(prompt_of(33, 500, 1));
  for (int i = 0; i < 3; ++i)
    run_pass(s, 6);
  s.drop_cache();
  EXPECT_EQ(s.blocks().n_free(), 32);
  // Three tokens a sample so far: the prompt once, its tail and the outputs by each.
  EXPECT_EQ(run_pass(s, 6) + run_pass(s, 6), (70 + 3) + (33 + 3) + 3 * (6 + 3) + 2);
  run(s, 6);
}

TEST(scheduler, sequences_under_way_keep_what_older_weights_computed) {
  scheduler s(32, 2, 256);
  s.add_prompt(prompt_of(70, 0, 3)); // one more than may run at once
  run_pass(s, 6);
  run_pass(s, 6);
  s.weights_changed();
  EXPECT_EQ(run(s, 6), 2 * 4 + 5);
  s.add_prompt(prompt_of(70));
  EXPECT_EQ(run(s, 2), 70 + 1);
}

TEST(scheduler, removal_frees_everything_at_any_point) {
  for (int passes = 0; passes < 12; ++passes) {
    scheduler s(9, 3, 32);
    const auto first = prompt_of(70, 0, 4), second = prompt_of(50, 500, 2);
    s.add_prompt(first);
    s.add_prompt(second);
    for (int i = 0; i < passes; ++i)
      run_pass(s, 30);
    s.remove(*first);
    if (second->unfinished > 0)
      run_pass(s, 30);
    s.remove(*second);
    EXPECT_TRUE(s.idle());
    EXPECT_EQ(s.blocks().n_free(), 9);
  }
}

} // namespace
} // namespace troupe
