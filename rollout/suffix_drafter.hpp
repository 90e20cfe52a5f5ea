#pragma once
#include "rollout/suffix_automaton.hpp"
#include <cstdint>
#include <map>
#include <unordered_map>
#include <vector>

namespace troupe {

struct drafter_options {
  std::size_t max_tree_bytes = std::size_t{256} << 20; // of requests under way; full trees draft from what they hold
  std::int64_t max_history_tokens = 1 << 24;           // of responses kept between requests, 4 bytes each; the oldest go first
};

/// Drafts a sample's next tokens from what continued the same tokens before: in its prompt, in the responses of its group as
/// they grow, and in those that the same prompt got last time. No model; what it says never changes a result. One thread.
/// Source: arXiv:2411.04975.
class suffix_drafter {
public:
  explicit suffix_drafter(drafter_options options = {}) : options_(options) {}
  /// A request of n samples starts; its id is unique among those under way.
  void begin(std::uint64_t request, std::vector<std::int32_t> prompt_ids, std::int64_t n);
  void append(std::uint64_t request, std::int64_t sample, std::int32_t token);
  /// It is over; its responses are what the next request of the same prompt begins with.
  void end(std::uint64_t request);
  /// At most `most` tokens, as long as the chance that all come true is at least `least`.
  std::vector<std::int32_t> propose(std::uint64_t request, std::int64_t sample, std::int64_t most, double least);
  /// How many tokens of the last draft came true: later ones are as long as that deserves.
  void settle(std::uint64_t request, std::int64_t sample, std::int64_t accepted);
  std::size_t tree_bytes() const { return tree_bytes_; }
  std::int64_t history_tokens() const { return history_tokens_; }

private:
  // Tokens, of which the first `entered` are in the group's tree.
  struct text {
    std::vector<std::int32_t> tokens;
    std::size_t entered = 0;
    std::int32_t state = suffix_automaton::root;
    double drafted = 0;            // expected to come true in the last draft, without trust
    double expected = 0, came = 0; // of all drafts; older ones count less
  };
  struct group {
    text prompt;
    std::vector<text> earlier, samples;
    suffix_automaton tree;
  };
  struct responses {
    std::uint64_t serial = 0; // in the order of their end
    std::vector<std::vector<std::int32_t>> texts;
  };
  bool enter(group& g, text& t, std::int64_t& budget);
  void catch_up(group& g);
  void forget(std::uint64_t prompt);

  drafter_options options_;
  std::map<std::uint64_t, group> groups_;                // by request
  std::unordered_map<std::uint64_t, responses> history_; // by the prompt's hash; a mistaken one costs time alone
  std::map<std::uint64_t, std::uint64_t> by_age_;        // serial -> prompt's hash, of history_
  std::uint64_t serial_ = 0;
  std::size_t tree_bytes_ = 0;
  std::int64_t history_tokens_ = 0;
};

} // namespace troupe
