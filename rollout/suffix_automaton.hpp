#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

namespace troupe {

/// Tokens that may follow a text, with the chance of each that it and all before it come true.
struct token_draft {
  std::vector<std::int32_t> tokens;
  double expected = 0; // how many of them come true: the sum of the chances
};

/// A suffix automaton of several texts that grow side by side: every piece of them, with how often it occurs. A text is a
/// state; texts may branch off one another. Linear in the tokens entered. One thread.
/// Source: Blumer et al. 1985, doi:10.1016/0304-3975(85)90157-4; drafting with it: arXiv:2411.04975.
class suffix_automaton {
public:
  static constexpr std::int32_t root = 0;            // the empty text
  static constexpr std::int32_t longest_text = 2048; // after so many tokens a text starts anew: a loop's occurrences nest as deep

  /// The text of `state` with one more token.
  std::int32_t extend(std::int32_t state, std::int32_t token);
  /// The likeliest continuation by what followed the ends of the text before: at most `most` tokens, as long as the chance
  /// of all stays at `least`; `trust` in (0, 1] scales the chances.
  token_draft propose(std::int32_t state, std::int64_t most, double least, double trust = 1) const;
  /// How often tokens occur in a row; for tests.
  std::int64_t occurrences(const std::vector<std::int32_t>& tokens) const;
  std::size_t bytes() const;

private:
  struct node {
    std::int32_t length = 0; // of its longest piece; a text is the longest of its state
    std::int32_t link = -1;  // the longest end of it that occurs elsewhere too
    std::int32_t count = 0;  // occurrences
    std::int32_t first_edge = -1;
  };
  struct edge {
    std::int32_t from = 0, token = 0, to = 0, next = -1; // next: of the same state
  };
  std::int32_t find(std::int32_t from, std::int32_t token) const; // edge, or -1
  std::size_t slot_of(std::int32_t from, std::int32_t token) const;
  void add_edge(std::int32_t from, std::int32_t token, std::int32_t to);
  std::int32_t add_node(std::int32_t length, std::int32_t link, std::int32_t count);
  std::int32_t grow(std::int32_t last, std::int32_t token);
  std::int32_t follow(std::int32_t from, std::int32_t found);
  token_draft walk(std::int32_t state, std::int64_t most, double least, double trust) const;

  std::vector<node> nodes_ = {node{}};
  std::vector<edge> edges_;
  std::vector<std::int32_t> slots_ = std::vector<std::int32_t>(64, -1); // edges by (from, token), open addressing, at most half full
};

} // namespace troupe
