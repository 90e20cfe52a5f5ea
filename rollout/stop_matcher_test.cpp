#include "rollout/stop_matcher.hpp"
#include <algorithm>
#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

namespace troupe {
namespace {

TEST(stop_matcher, finds_across_pieces) {
  stop_matcher m({"END", "\n\n"});
  EXPECT_FALSE(m.add("the E"));
  EXPECT_FALSE(m.add("N"));
  EXPECT_TRUE(m.add("D of it"));
  EXPECT_EQ(m.position(), 4u);
  EXPECT_TRUE(m.add("more"));
  EXPECT_EQ(m.position(), 4u);
}

TEST(stop_matcher, the_first_in_the_text_wins) {
  stop_matcher m({"d", "bcd"});
  EXPECT_TRUE(m.add("abcd"));
  EXPECT_EQ(m.position(), 1u);
}

TEST(stop_matcher, without_strings_nothing_matches) {
  stop_matcher m({});
  EXPECT_FALSE(m.add("anything"));
  EXPECT_EQ(m.position(), std::string::npos);
}

RC_GTEST_PROP(stop_matcher_property, equals_a_search_of_the_whole_text_after_each_piece, ()) {
  const auto letters = rc::gen::container<std::string>(rc::gen::element('a', 'b', 'c'));
  const auto stops = *rc::gen::container<std::vector<std::string>>(2, rc::gen::nonEmpty(rc::gen::resize(4, letters)));
  const auto pieces = *rc::gen::container<std::vector<std::string>>(12, rc::gen::resize(3, letters));
  stop_matcher m(stops);
  std::string text;
  for (const auto& piece : pieces) {
    text += piece;
    std::size_t want = std::string::npos;
    for (const auto& s : stops)
      want = std::min(want, text.find(s));
    RC_ASSERT(m.add(piece) == (want != std::string::npos));
    RC_ASSERT(m.position() == want);
    if (want != std::string::npos)
      break;
  }
}

TEST(stop_matcher, a_match_counts_where_it_ends) {
  stop_matcher m({"ab", "bcd"});
  EXPECT_FALSE(m.add("xab", false));
  EXPECT_FALSE(m.add("c", true)); // "ab" ended before
  EXPECT_TRUE(m.add("d", true));  // "bcd" began before
  EXPECT_EQ(m.position(), 2u);
}

} // namespace
} // namespace troupe
