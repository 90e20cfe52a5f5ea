#include "rollout/row_cost.hpp"
#include "rollout/suffix_drafter.hpp"
#include <algorithm>
#include <gtest/gtest.h>
#include <numeric>
#include <rapidcheck/gtest.h>

namespace troupe {
namespace {

using tokens = std::vector<std::int32_t>;

// How often `piece` ends in `all` after more than `from` tokens.
std::int64_t occurrences(const tokens& all, const tokens& piece, std::size_t from) {
  std::int64_t n = 0;
  for (std::size_t end = std::max(from + 1, piece.size()); end <= all.size(); ++end)
    n += std::equal(piece.begin(), piece.end(), all.begin() + std::ptrdiff_t(end - piece.size()));
  return n;
}

// Texts that branch off a prompt and grow in any order hold every piece of them, as often as it occurs.
RC_GTEST_PROP(suffix_automaton, counts_what_a_search_finds, ()) {
  const auto prompt = *rc::gen::container<tokens>(rc::gen::inRange(0, 3));
  suffix_automaton tree;
  auto end = suffix_automaton::root;
  for (const auto id : prompt)
    end = tree.extend(end, id);
  std::vector<tokens> texts(*rc::gen::inRange<std::size_t>(1, 4));
  std::vector<std::int32_t> states(texts.size(), end);
  for (int n = *rc::gen::inRange(0, 40); n > 0; --n) {
    const auto i = *rc::gen::inRange<std::size_t>(0, texts.size());
    const auto id = *rc::gen::inRange(0, 3);
    texts[i].push_back(id);
    states[i] = tree.extend(states[i], id);
  }
  const auto piece = *rc::gen::resize(6, rc::gen::container<tokens>(rc::gen::inRange(0, 3)));
  if (piece.empty())
    return;
  std::int64_t want = occurrences(prompt, piece, 0);
  for (const auto& t : texts) {
    auto all = prompt;
    all.insert(all.end(), t.begin(), t.end());
    want += occurrences(all, piece, prompt.size());
  }
  RC_ASSERT(tree.occurrences(piece) == want);
}

tokens entered(suffix_automaton& tree, const tokens& text, std::int32_t* state) {
  *state = suffix_automaton::root;
  for (const auto id : text)
    *state = tree.extend(*state, id);
  return text;
}

TEST(suffix_automaton, proposes_what_followed_the_same_end) {
  struct {
    const char* what;
    std::vector<tokens> before;
    tokens text, want;
    double least;
  } cases[] = {
      {"nothing known", {}, {1, 2, 3}, {}, 0.01},
      {"another text", {{1, 2, 3, 4, 5, 6}}, {1, 2, 3}, {4, 5, 6}, 0.01},
      {"its own beginning", {}, {1, 2, 3, 4, 9, 2, 3}, {4, 9, 2, 3}, 0.01},
      {"the more frequent", {{1, 2, 3, 4}, {1, 2, 3, 5}, {7, 1, 2, 3, 5}}, {1, 2, 3}, {5}, 0.01},
      {"the longer end", {{1, 2, 3, 4}, {8, 2, 3, 5}}, {8, 2, 3}, {5}, 0.01},
      {"a short end is believed less", {{9, 3, 4, 5, 6}}, {1, 2, 3}, {4}, 0.3},
      {"too unlikely", {{9, 3, 4, 5, 6}}, {1, 2, 3}, {}, 0.4},
  };
  for (const auto& c : cases) {
    SCOPED_TRACE(c.what);
    suffix_automaton tree;
    std::int32_t state = 0;
    for (const auto& t : c.before)
      entered(tree, t, &state);
    entered(tree, c.text, &state);
    EXPECT_EQ(tree.propose(state, 8, c.least).tokens, c.want);
    EXPECT_LE(tree.propose(state, 1, c.least).tokens.size(), 1u);
  }
}

// Every draft occurs, after some end of the text, and is as short as was asked for.
RC_GTEST_PROP(suffix_automaton, drafts_are_pieces_of_what_was_entered, ()) {
  const auto text = *rc::gen::container<tokens>(rc::gen::inRange(0, 4));
  suffix_automaton tree;
  std::int32_t state = 0;
  entered(tree, text, &state);
  const auto most = *rc::gen::inRange<std::int64_t>(0, 9);
  const auto draft = tree.propose(state, most, *rc::gen::element(0.0, 0.3, 0.7));
  RC_ASSERT(std::int64_t(draft.tokens.size()) <= most);
  RC_ASSERT(draft.expected <= double(draft.tokens.size()));
  if (draft.tokens.empty())
    return;
  tokens piece = {text.back()};
  piece.insert(piece.end(), draft.tokens.begin(), draft.tokens.end());
  RC_ASSERT(std::search(text.begin(), text.end(), piece.begin(), piece.end()) != text.end());
}

TEST(suffix_automaton, a_loop_stays_cheap_and_goes_on) {
  suffix_automaton tree;
  auto state = suffix_automaton::root;
  for (int i = 0; i < 3 * suffix_automaton::longest_text + 50; ++i)
    state = tree.extend(state, i % 3);
  const auto draft = tree.propose(state, 8, 0.2).tokens;
  ASSERT_EQ(draft.size(), 8u);
  for (std::size_t i = 0; i < draft.size(); ++i)
    EXPECT_EQ(draft[i], std::int32_t((3 * suffix_automaton::longest_text + 50 + i) % 3));
  EXPECT_LT(tree.bytes(), std::size_t(4) << 20);
}

tokens count_from(std::int32_t first, std::size_t n) {
  tokens out(n);
  std::iota(out.begin(), out.end(), first);
  return out;
}

void append(suffix_drafter& d, std::uint64_t request, std::int64_t sample, const tokens& ids) {
  for (const auto id : ids)
    d.append(request, sample, id);
}

TEST(suffix_drafter, a_group_shares_its_responses_as_they_grow) {
  suffix_drafter d;
  d.begin(1, {100, 101, 102}, 2);
  EXPECT_TRUE(d.propose(1, 0, 8, 0.2).empty());
  append(d, 1, 0, count_from(1, 20));
  append(d, 1, 1, {1, 2, 3});
  EXPECT_EQ(d.propose(1, 1, 5, 0.2), count_from(4, 5)); // after the prompt's end and three tokens
  EXPECT_TRUE(d.propose(1, 0, 5, 0.2).empty());
  d.begin(2, {100, 101, 102}, 1); // another request of the same prompt does not see it before the end
  append(d, 2, 0, {1, 2, 3});
  EXPECT_TRUE(d.propose(2, 0, 5, 0.2).empty());
}

TEST(suffix_drafter, the_next_request_of_a_prompt_begins_with_the_last_ones_responses) {
  suffix_drafter d;
  for (const std::int32_t epoch : {1, 2, 3}) {
    d.begin(7, {5, 6, 7}, 1);
    d.append(7, 0, 50);
    const auto draft = d.propose(7, 0, 4, 0.1);
    EXPECT_EQ(draft, epoch == 1 ? tokens{} : count_from(100 * (epoch - 1), 4));
    append(d, 7, 0, count_from(100 * epoch, 30));
    d.end(7);
    EXPECT_EQ(d.history_tokens(), 31); // of one epoch
    EXPECT_EQ(d.tree_bytes(), 0u);
  }
  d.begin(8, {5, 6, 8}, 1); // another prompt
  d.append(8, 0, 50);
  EXPECT_TRUE(d.propose(8, 0, 4, 0.2).empty());
}

TEST(suffix_drafter, drafts_that_fail_become_rare_and_come_back) {
  suffix_drafter d;
  d.begin(1, {1, 2}, 2);
  append(d, 1, 0, count_from(10, 400));
  append(d, 1, 1, count_from(10, 5));
  const auto first = d.propose(1, 1, 16, 0.2).size();
  ASSERT_GT(first, 0u);
  std::size_t drafts = 0;
  for (int i = 0; i < 50; ++i) {
    const auto n = d.propose(1, 1, 16, 0.2).size();
    drafts += n > 0;
    if (n > 0)
      d.settle(1, 1, 0);
  }
  EXPECT_LT(drafts, 30u);
  EXPECT_GT(drafts, 0u);
  for (int i = 0; i < 100; ++i)
    d.settle(1, 1, std::int64_t(d.propose(1, 1, 16, 0.2).size()));
  EXPECT_EQ(d.propose(1, 1, 16, 0.2).size(), first);
}

TEST(suffix_drafter, memory_stays_within_its_bounds) {
  suffix_drafter d({.max_tree_bytes = 200'000, .max_history_tokens = 1000});
  std::uint32_t seed = 1;
  for (std::uint64_t request = 0; request < 20; ++request) {
    d.begin(request, count_from(std::int32_t(request), 10), 2);
    for (int i = 0; i < 300; ++i) {
      seed = seed * 1664525u + 1013904223u;
      d.append(request, i % 2, std::int32_t(seed >> 20));
      d.propose(request, i % 2, 4, 0.2);
    }
    EXPECT_LT(d.tree_bytes(), 400'000u); // a vector that doubles may pass it once
    if (request % 4 == 3)
      for (auto ended = request - 3; ended <= request; ++ended) {
        d.end(ended);
        EXPECT_LE(d.history_tokens(), 1000);
      }
  }
  EXPECT_EQ(d.tree_bytes(), 0u);
  EXPECT_EQ(d.history_tokens(), 900);
  // The youngest are kept.
  d.begin(100, count_from(19, 10), 1);
  d.begin(101, count_from(0, 10), 1);
  EXPECT_EQ(d.history_tokens(), 900);
}

TEST(row_cost, follows_the_passes_that_ran) {
  struct {
    const char* what;
    double flat_to, per_row; // a pass takes 1, and per_row for each row beyond flat_to
    std::int64_t at;
    double least, most;
  } cases[] = {
      {"rows are free", 64, 0, 1, 0, 0.02},
      {"rows cost what they compute", 1, 1, 4, 0.2, 0.26},
      {"free up to four", 4, 0.25, 1, 0.1, 0.25},
      {"free up to four, from there", 4, 0.25, 4, 0.2, 0.26},
  };
  for (const auto& c : cases) {
    SCOPED_TRACE(c.what);
    row_cost costs;
    EXPECT_EQ(costs.at(c.at), 0.05);
    for (int i = 0; i < 100; ++i)
      for (const std::int64_t rows : {1, 4, 9, 17})
        costs.add(rows, 1 + c.per_row * std::max(0.0, double(rows) - c.flat_to));
    EXPECT_GE(costs.at(c.at), c.least);
    EXPECT_LE(costs.at(c.at), c.most);
    for (int i = 0; i < 2000; ++i)
      costs.add(c.at, 1); // longer passes are forgotten, and tried again
    EXPECT_NEAR(costs.at(c.at), 0.05, 0.001);
  }
}

} // namespace
} // namespace troupe
