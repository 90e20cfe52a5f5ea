#include "rollout/suffix_drafter.hpp"
#include <algorithm>
#include <utility>

namespace troupe {

namespace {

// Tokens that one call enters at most, so that no pass waits long.
constexpr std::int64_t entered_at_once = 1 << 14;
constexpr double remembered = 0.9; // of earlier drafts' outcome, at every draft
constexpr double forgiven = 0.98;  // at every pass without one

std::uint64_t hash(const std::vector<std::int32_t>& tokens) {
  std::uint64_t h = tokens.size();
  for (const auto id : tokens) {
    h = (h ^ std::uint32_t(id)) * 0x9e3779b97f4a7c15u;
    h ^= h >> 32;
  }
  return h;
}

} // namespace

void suffix_drafter::begin(std::uint64_t request, std::vector<std::int32_t> prompt_ids, std::int64_t n) {
  group& g = groups_[request];
  if (const auto known = history_.find(hash(prompt_ids)); known != history_.end())
    for (const auto& tokens : known->second.texts)
      g.earlier.emplace_back().tokens = tokens;
  g.prompt.tokens = std::move(prompt_ids);
  g.samples.resize(std::size_t(n));
  tree_bytes_ += g.tree.bytes();
}

void suffix_drafter::append(std::uint64_t request, std::int64_t sample, std::int32_t token) {
  groups_.at(request).samples[std::size_t(sample)].tokens.push_back(token);
}

void suffix_drafter::forget(std::uint64_t prompt) {
  const auto known = history_.find(prompt);
  if (known == history_.end())
    return;
  for (const auto& tokens : known->second.texts)
    history_tokens_ -= std::int64_t(tokens.size());
  by_age_.erase(known->second.serial);
  history_.erase(known);
}

void suffix_drafter::end(std::uint64_t request) {
  group g = std::move(groups_.at(request));
  groups_.erase(request);
  tree_bytes_ -= g.tree.bytes();
  const auto prompt = hash(g.prompt.tokens);
  forget(prompt);
  responses& kept = history_[prompt];
  kept.serial = ++serial_;
  for (auto& s : g.samples) {
    s.tokens.shrink_to_fit();
    history_tokens_ += std::int64_t(s.tokens.size());
    kept.texts.push_back(std::move(s.tokens));
  }
  by_age_[kept.serial] = prompt;
  while (history_tokens_ > options_.max_history_tokens)
    forget(by_age_.begin()->second);
}

// Enters a text's newest tokens -> whether all are in the tree.
bool suffix_drafter::enter(group& g, text& t, std::int64_t& budget) {
  for (; t.entered < t.tokens.size() && budget > 0 && tree_bytes_ < options_.max_tree_bytes; ++t.entered, --budget) {
    const auto before = g.tree.bytes();
    t.state = g.tree.extend(t.state, t.tokens[t.entered]);
    tree_bytes_ += g.tree.bytes() - before;
  }
  return t.entered == t.tokens.size();
}

// Responses branch off where the prompt ends, so that they begin with its last tokens.
void suffix_drafter::catch_up(group& g) {
  std::int64_t budget = entered_at_once;
  if (!enter(g, g.prompt, budget))
    return;
  for (auto* texts : {&g.earlier, &g.samples})
    for (auto& t : *texts) {
      if (t.entered == 0)
        t.state = g.prompt.state;
      enter(g, t, budget);
    }
}

std::vector<std::int32_t> suffix_drafter::propose(std::uint64_t request, std::int64_t sample, std::int64_t most, double least) {
  group& g = groups_.at(request);
  catch_up(g);
  text& t = g.samples[std::size_t(sample)];
  if (t.entered < t.tokens.size() || t.tokens.empty())
    return {};
  const double trust = std::min(1.0, (t.came + 2) / (t.expected + 2));
  auto draft = g.tree.propose(t.state, most, least, trust);
  t.drafted = draft.expected / trust;
  if (draft.tokens.empty()) {
    t.expected *= forgiven;
    t.came *= forgiven;
  }
  return std::move(draft.tokens);
}

void suffix_drafter::settle(std::uint64_t request, std::int64_t sample, std::int64_t accepted) {
  text& t = groups_.at(request).samples[std::size_t(sample)];
  t.expected = remembered * t.expected + t.drafted;
  t.came = remembered * t.came + double(accepted);
}

} // namespace troupe
