#include "rollout/suffix_automaton.hpp"
#include <utility>

namespace troupe {

namespace {

// Pieces that are tried, from the longest on.
constexpr int most_pieces = 4;
// A piece of one token is believed as if so many other continuations had been seen, a longer one by that much less.
constexpr double doubt = 2;

} // namespace

// The slot of an edge, or the free one where it belongs.
std::size_t suffix_automaton::slot_of(std::int32_t from, std::int32_t token) const {
  std::uint64_t h = (std::uint64_t(std::uint32_t(from)) << 32 | std::uint32_t(token)) * 0x9e3779b97f4a7c15u;
  h ^= h >> 32;
  const std::size_t mask = slots_.size() - 1;
  for (std::size_t at = std::size_t(h) & mask;; at = (at + 1) & mask) {
    if (slots_[at] < 0)
      return at;
    const edge& e = edges_[std::size_t(slots_[at])];
    if (e.from == from && e.token == token)
      return at;
  }
}

std::int32_t suffix_automaton::find(std::int32_t from, std::int32_t token) const { return slots_[slot_of(from, token)]; }

void suffix_automaton::add_edge(std::int32_t from, std::int32_t token, std::int32_t to) {
  if (2 * (edges_.size() + 1) > slots_.size()) {
    slots_.assign(2 * slots_.size(), -1);
    for (std::size_t i = 0; i < edges_.size(); ++i)
      slots_[slot_of(edges_[i].from, edges_[i].token)] = std::int32_t(i);
  }
  auto& first = nodes_[std::size_t(from)].first_edge;
  slots_[slot_of(from, token)] = std::int32_t(edges_.size());
  edges_.push_back({from, token, to, std::exchange(first, std::int32_t(edges_.size()))});
}

std::int32_t suffix_automaton::add_node(std::int32_t length, std::int32_t link, std::int32_t count) {
  nodes_.push_back({length, link, count, -1});
  return std::int32_t(nodes_.size()) - 1;
}

// Where an edge leads, as a state of the pieces that it makes of `from`'s alone.
std::int32_t suffix_automaton::follow(std::int32_t from, std::int32_t found) {
  const auto token = edges_[std::size_t(found)].token, to = edges_[std::size_t(found)].to;
  const auto length = nodes_[std::size_t(from)].length + 1;
  const node whole = nodes_[std::size_t(to)];
  if (whole.length == length)
    return to;
  const auto part = add_node(length, whole.link, whole.count);
  for (auto e = whole.first_edge; e >= 0; e = edges_[std::size_t(e)].next)
    add_edge(part, edges_[std::size_t(e)].token, edges_[std::size_t(e)].to);
  nodes_[std::size_t(to)].link = part;
  for (; from >= 0; from = nodes_[std::size_t(from)].link) {
    const auto e = find(from, token);
    if (e < 0 || edges_[std::size_t(e)].to != to)
      break;
    edges_[std::size_t(e)].to = part;
  }
  return part;
}

std::int32_t suffix_automaton::grow(std::int32_t last, std::int32_t token) {
  const auto state = add_node(nodes_[std::size_t(last)].length + 1, root, 0);
  auto from = last, found = std::int32_t(-1);
  for (; from >= 0 && (found = find(from, token)) < 0; from = nodes_[std::size_t(from)].link)
    add_edge(from, token, state);
  if (from >= 0) {
    const auto link = follow(from, found);
    nodes_[std::size_t(state)].link = link;
  }
  return state;
}

std::int32_t suffix_automaton::extend(std::int32_t state, std::int32_t token) {
  if (nodes_[std::size_t(state)].length >= longest_text)
    state = root;
  const auto found = find(state, token);
  const auto longer = found >= 0 ? follow(state, found) : grow(state, token);
  for (auto s = longer; s != root; s = nodes_[std::size_t(s)].link)
    ++nodes_[std::size_t(s)].count;
  return longer;
}

// The likeliest token after the state's pieces, again and again; of equal ones the one seen last.
token_draft suffix_automaton::walk(std::int32_t state, std::int64_t most, double least, double trust) const {
  token_draft out;
  const double doubted = doubt / double(nodes_[std::size_t(state)].length);
  for (double chance = trust; std::int64_t(out.tokens.size()) < most;) {
    std::int64_t all = 0, greatest = 0;
    std::int32_t best = -1;
    for (auto e = nodes_[std::size_t(state)].first_edge; e >= 0; e = edges_[std::size_t(e)].next) {
      const std::int64_t count = nodes_[std::size_t(edges_[std::size_t(e)].to)].count;
      all += count;
      if (count > greatest) {
        greatest = count;
        best = e;
      }
    }
    chance *= double(greatest) / (double(all) + doubted);
    if (best < 0 || chance < least)
      break;
    out.tokens.push_back(edges_[std::size_t(best)].token);
    out.expected += chance;
    state = edges_[std::size_t(best)].to;
  }
  return out;
}

token_draft suffix_automaton::propose(std::int32_t state, std::int64_t most, double least, double trust) const {
  token_draft best;
  for (int pieces = 0; state > root && pieces < most_pieces; state = nodes_[std::size_t(state)].link) {
    if (nodes_[std::size_t(state)].first_edge < 0)
      continue;
    ++pieces;
    if (auto found = walk(state, most, least, trust); found.expected > best.expected)
      best = std::move(found);
  }
  return best;
}

std::int64_t suffix_automaton::occurrences(const std::vector<std::int32_t>& tokens) const {
  auto state = root;
  for (const auto token : tokens) {
    const auto found = find(state, token);
    if (found < 0)
      return 0;
    state = edges_[std::size_t(found)].to;
  }
  return nodes_[std::size_t(state)].count;
}

std::size_t suffix_automaton::bytes() const {
  return nodes_.capacity() * sizeof(node) + edges_.capacity() * sizeof(edge) + slots_.capacity() * sizeof(std::int32_t);
}

} // namespace troupe
