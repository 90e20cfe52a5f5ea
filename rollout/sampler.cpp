#include "rollout/sampler.hpp"
#include "core/error.hpp"
#include "rollout/exp.hpp"
#include <algorithm>
#include <array>
#include <cfloat>
#include <cmath>
#include <cstddef>
#include <functional>
#include <limits>
#include <numeric>

namespace troupe {

namespace {

// A token's place in the order of truncation: by logit, equal ones by id.
struct candidate {
  float logit = 0;
  std::int32_t id = 0;
  float weight = 0;
};
bool before(const candidate& a, const candidate& b) { return a.logit > b.logit || (a.logit == b.logit && a.id < b.id); }
bool by_id(const candidate& a, const candidate& b) { return a.id < b.id; }
using candidates = std::vector<candidate>;

// A thread's memory, so that no draw allocates.
struct workspace {
  std::vector<float> changed; // [vocab], the row after rules
  std::vector<float> maxima;  // [blocks]
  std::vector<float> weights; // [vocab]
  std::vector<float> sorted_maxima;
  std::vector<double> sums; // [blocks]
  candidates kept;
};
workspace& own_workspace() {
  thread_local workspace w;
  return w;
}

[[noreturn]] void refuse_logits(std::span<const float> logits) {
  const auto bad = std::find_if(logits.begin(), logits.end(), [](float v) { return !std::isfinite(v); });
  throw error{errc::failed, "sampling: the logit of token " + std::to_string(bad - logits.begin()) + " is " + std::to_string(*bad) +
                                ", not a finite number; the weights or activations overflowed (try --dtype float32)"};
}

// A row with its greatest logit; probabilities are proportional to exp((logit - most) * inverse).
struct weighed_row {
  std::span<const float> logits;
  std::span<const float> maxima; // of blocks of exp_block
  float most = -FLT_MAX;
  float inverse = 1; // of the temperature
  float weight(float logit) const { return exp_nonpositive((logit - most) * inverse); }
};

// All tokens from a logit on, up to less than another, ascending by id. What is masked never counts.
void collect(const weighed_row& row, float lowest, candidates& out, float below = std::numeric_limits<float>::infinity()) {
  out.clear();
  lowest = std::max(lowest, -FLT_MAX);
  for (std::size_t b = 0; b < row.maxima.size(); ++b) {
    if (row.maxima[b] < lowest)
      continue;
    const std::size_t end = std::min((b + 1) * exp_block, row.logits.size());
    for (std::size_t i = b * exp_block; i < end; ++i)
      if (row.logits[i] >= lowest && row.logits[i] < below)
        out.push_back({row.logits[i], std::int32_t(i), 0.0f});
  }
}

void keep_count(candidates& kept, std::size_t k) {
  if (kept.size() <= k)
    return;
  std::nth_element(kept.begin(), kept.begin() + std::ptrdiff_t(k - 1), kept.end(), before);
  kept.resize(k);
}

// The k first of a row. The k-th greatest maximum of a block is a bound: k tokens at least reach it.
void collect_count(const weighed_row& row, std::size_t k, workspace& w) {
  float lowest = -FLT_MAX;
  if (k <= row.maxima.size()) {
    w.sorted_maxima.assign(row.maxima.begin(), row.maxima.end());
    const auto nth = w.sorted_maxima.begin() + std::ptrdiff_t(k - 1);
    std::nth_element(w.sorted_maxima.begin(), nth, w.sorted_maxima.end(), std::greater<>());
    lowest = *nth;
  }
  collect(row, lowest, w.kept);
  keep_count(w.kept, k);
}

double mass(candidates::const_iterator begin, candidates::const_iterator end) {
  double sum = 0;
  for (; begin != end; ++begin)
    sum += double(begin->weight);
  return sum;
}

// Keeps the shortest beginning of the order whose mass, with that of what comes before the list, reaches `wanted`.
void keep_mass(candidates& kept, double reached, double wanted) {
  std::sort(kept.begin(), kept.end(), before);
  auto end = kept.begin();
  while (end != kept.end() && (end == kept.begin() || reached < wanted))
    reached += double(end++->weight);
  kept.erase(end, kept.end());
}

// What truncation leaves of a row.
enum class remains { all, listed, weights }; // the row; workspace::kept; workspace::weights, with their sums

// The shortest beginning of a whole row's order whose mass reaches p of it: bounds that it ends between, then one by one.
remains collect_mass(const weighed_row& row, double p, workspace& w) {
  constexpr std::size_t few = 1024;
  const std::size_t n = row.logits.size();
  w.weights.resize(n);
  w.sums.resize(row.maxima.size());
  exp_scaled(row.logits.data(), row.most, row.inverse, w.weights.data(), n);
  const double wanted = p * cut_weights(row.logits.data(), -FLT_MAX, n, w.weights.data(), w.sums.data(), n);
  float above = 0, depth = 4; // below the greatest logit, in units of the temperature
  const auto from = [&](float d) {
    return mass_from(row.logits.data(), w.weights.data(), row.maxima.data(), row.most - d / row.inverse, n);
  };
  masked_mass sure, enough = from(depth);
  for (; enough.mass < wanted && depth < 128; enough = from(depth)) {
    above = depth;
    sure = enough;
    depth *= 2;
  }
  for (int halvings = 0; enough.count > few && enough.count - sure.count > few && halvings < 24; ++halvings) {
    const float middle = 0.5f * (above + depth);
    const auto found = from(middle);
    (found.mass < wanted ? sure : enough) = found;
    (found.mass < wanted ? above : depth) = middle;
  }
  if (enough.mass < wanted) // the two sums round differently: nothing is to be left out
    return remains::weights;
  const bool whole_list = enough.count <= few || sure.count == 0;
  collect(row, row.most - depth / row.inverse, w.kept,
          whole_list ? std::numeric_limits<float>::infinity() : row.most - above / row.inverse);
  for (auto& c : w.kept)
    c.weight = w.weights[std::size_t(c.id)];
  keep_mass(w.kept, whole_list ? 0 : sure.mass, wanted);
  if (whole_list)
    return remains::listed;
  const candidate& last = w.kept.back();
  cut_weights(row.logits.data(), last.logit, std::size_t(last.id), w.weights.data(), w.sums.data(), n);
  return remains::weights;
}

// Inverse of the cumulative distribution over the ids that are left, at u in [0, 1).
std::int32_t invert(candidates& kept, double u) {
  if (!std::is_sorted(kept.begin(), kept.end(), by_id))
    std::sort(kept.begin(), kept.end(), by_id);
  const double target = u * mass(kept.begin(), kept.end());
  double reached = 0;
  std::int32_t chosen = kept.front().id;
  for (const auto& c : kept) {
    if (c.weight == 0.0f)
      continue;
    chosen = c.id;
    reached += double(c.weight);
    if (reached > target)
      break;
  }
  return chosen;
}

// The same of a whole row: sums of blocks, then one block token by token. weights_of: fills a block's weights.
template <class WeightsOf>
std::int32_t invert(const std::vector<double>& sums, double target, const WeightsOf& weights_of) {
  double reached = 0;
  std::size_t b = 0, last = 0; // last: of the blocks with any mass, where rounding leads past the end
  for (; b < sums.size(); ++b) {
    if (sums[b] > 0)
      last = b;
    if (reached + sums[b] > target)
      break;
    reached += sums[b];
  }
  b = std::min(b, last);
  const std::span<const float> weights = weights_of(b * exp_block);
  std::size_t chosen = 0;
  for (std::size_t i = 0; i < weights.size(); ++i) {
    if (weights[i] == 0.0f)
      continue;
    chosen = i;
    reached += double(weights[i]);
    if (reached > target)
      break;
  }
  return std::int32_t(b * exp_block + chosen);
}

std::int32_t invert(const weighed_row& row, double u, workspace& w) {
  w.sums.resize(row.maxima.size());
  const double total = exp_sums(row.logits.data(), row.most, row.inverse, w.sums.data(), row.logits.size());
  std::array<float, exp_block> weights;
  return invert(w.sums, u * total, [&](std::size_t first) {
    const std::size_t n = std::min(exp_block, row.logits.size() - first);
    exp_scaled(row.logits.data() + first, row.most, row.inverse, weights.data(), n);
    return std::span<const float>(weights.data(), n);
  });
}

// Maxima of the row's blocks -> the row. Throws when a logit is not finite.
weighed_row weigh(std::span<const float> logits, double temperature, workspace& w) {
  if (logits.empty())
    throw error{errc::bad_shape, "sampling: a row of no logits"};
  w.maxima.resize((logits.size() + exp_block - 1) / exp_block);
  if (!block_maxima(logits.data(), w.maxima.data(), logits.size()))
    refuse_logits(logits);
  weighed_row row{logits, w.maxima};
  row.most = *std::max_element(w.maxima.begin(), w.maxima.end());
  row.inverse = float(1.0 / std::clamp(temperature, 1e-37, 1e37));
  return row;
}

// The same row changed by bias, penalties and min_tokens.
void change(weighed_row& row, const sampling_params& p, const sampling_history& history, workspace& w) {
  w.changed.assign(row.logits.begin(), row.logits.end());
  apply_rules(w.changed, p, history);
  block_maxima(w.changed.data(), w.maxima.data(), w.changed.size());
  row.logits = w.changed;
  row.most = *std::max_element(w.maxima.begin(), w.maxima.end());
}

void collect_allowed(weighed_row& row, std::span<const std::int32_t> ids, candidates& out) {
  out.clear();
  for (const auto id : ids)
    if (const float v = row.logits[std::size_t(id)]; v >= -FLT_MAX)
      out.push_back({v, id, 0.0f});
  if (!out.empty())
    row.most = std::min_element(out.begin(), out.end(), before)->logit;
}

void weigh_kept(const weighed_row& row, candidates& kept) {
  for (auto& c : kept)
    c.weight = row.weight(c.logit);
}

// min_p of weights, whose greatest is 1.
void cut_below(double min_p, workspace& w) {
  for (std::size_t b = 0; b < w.sums.size(); ++b) {
    w.sums[b] = 0;
    for (std::size_t i = b * exp_block; i < std::min((b + 1) * exp_block, w.weights.size()); ++i) {
      if (double(w.weights[i]) < min_p)
        w.weights[i] = 0;
      w.sums[b] += double(w.weights[i]);
    }
  }
}

// What truncation leaves of the row, or of the ids that are allowed (`listed`).
remains truncate(const weighed_row& row, const sampling_params& p, bool listed, workspace& w) {
  if (p.top_k > 0 && std::size_t(p.top_k) < row.logits.size()) {
    if (listed)
      keep_count(w.kept, std::size_t(p.top_k));
    else
      collect_count(row, std::size_t(p.top_k), w);
    listed = true;
  }
  if (listed)
    weigh_kept(row, w.kept);
  auto left = listed ? remains::listed : remains::all;
  if (p.top_p < 1) {
    if (listed)
      keep_mass(w.kept, 0, p.top_p * mass(w.kept.begin(), w.kept.end()));
    else
      left = collect_mass(row, p.top_p, w);
  }
  if (p.min_p > 0) {
    if (left == remains::all) {
      collect(row, row.most + (float(std::log(p.min_p)) - 0.01f) / row.inverse, w.kept);
      weigh_kept(row, w.kept);
      left = remains::listed;
    }
    std::erase_if(w.kept, [&](const candidate& c) { return double(c.weight) < p.min_p; });
    if (left == remains::weights)
      cut_below(p.min_p, w);
  }
  return left;
}

std::int32_t draw_from(const weighed_row& row, remains left, double u, workspace& w) {
  switch (left) {
  case remains::listed:
    return invert(w.kept, u);
  case remains::weights: {
    const double total = std::accumulate(w.sums.begin(), w.sums.end(), 0.0);
    return invert(w.sums, u * total, [&](std::size_t first) {
      return std::span<const float>(w.weights).subspan(first).first(std::min(exp_block, w.weights.size() - first));
    });
  }
  case remains::all:
    break;
  }
  return invert(row, u, w);
}

} // namespace

std::int32_t sample_token(std::span<const float> logits, const sampling_params& p, const draw_key& key, const sampling_history& history) {
  workspace& w = own_workspace();
  weighed_row row = weigh(logits, p.temperature, w);
  if (!p.logit_bias.empty() || has_penalty(p) || history.n_drawn < p.min_tokens)
    change(row, p, history, w);
  const bool listed = !p.allowed_ids.empty();
  if (listed)
    collect_allowed(row, p.allowed_ids, w.kept);
  if (listed ? w.kept.empty() : row.most == -FLT_MAX && row.logits.data() != logits.data())
    throw error{errc::failed, "sampling: no token is left to draw; allowed ids, end tokens and min_tokens exclude each other"};
  if (p.temperature == 0) {
    if (listed)
      return std::min_element(w.kept.begin(), w.kept.end(), before)->id;
    const auto block = std::find(w.maxima.begin(), w.maxima.end(), row.most) - w.maxima.begin();
    return std::int32_t(std::find(row.logits.begin() + block * std::ptrdiff_t(exp_block), row.logits.end(), row.most) - row.logits.begin());
  }
  return draw_from(row, truncate(row, p, listed, w), draw_place(key), w);
}

double draw_place(const draw_key& key) {
  const auto bits = draw_bits(key);
  // 53 bits: 24 would leave tokens rarer than 6e-8 out.
  return double((std::uint64_t(bits[0]) << 32 | bits[1]) >> 11) * 0x1p-53;
}

std::vector<std::int32_t> most_probable_ids(std::span<const float> logits, std::int64_t k) {
  workspace& w = own_workspace();
  const auto row = weigh(logits, 1.0, w);
  collect_count(row, std::size_t(k), w);
  std::sort(w.kept.begin(), w.kept.end(), before);
  std::vector<std::int32_t> ids;
  for (const auto& c : w.kept)
    ids.push_back(c.id);
  return ids;
}

void check_sampling(const sampling_params& p, std::int64_t vocab_size) {
  const auto refuse = [](const std::string& what, double found, const std::string& allowed) {
    throw error{errc::bad_usage, what + " is " + std::to_string(found) + "; it must be " + allowed};
  };
  const auto within = [&](const char* what, double v, double low, double high, const char* note) {
    if (!(v >= low && v <= high))
      refuse(what, v, "in " + std::to_string(std::int64_t(low)) + " .. " + std::to_string(std::int64_t(high)) + note);
  };
  if (!(p.temperature >= 0 && p.temperature <= FLT_MAX))
    refuse("temperature", p.temperature, "0 (greedy) or a positive number");
  if (!(p.top_p > 0 && p.top_p <= 1))
    refuse("top_p", p.top_p, "above 0 and at most 1 (1: off)");
  if (p.top_k < -1)
    refuse("top_k", double(p.top_k), "a positive number, or 0 or -1 (off)");
  within("min_p", p.min_p, 0, 1, " (0: off)");
  if (!(p.repetition_penalty > 0 && p.repetition_penalty <= 100))
    refuse("repetition_penalty", p.repetition_penalty, "above 0 and at most 100 (1: off)");
  within("presence_penalty", p.presence_penalty, -2, 2, " (0: off)");
  within("frequency_penalty", p.frequency_penalty, -2, 2, " (0: off)");
  if (p.max_tokens < 1)
    refuse("max_tokens", double(p.max_tokens), "at least 1");
  if (p.min_tokens < 0 || p.min_tokens > p.max_tokens)
    refuse("min_tokens", double(p.min_tokens), "from 0 to max_tokens, " + std::to_string(p.max_tokens));
  within("top_logprobs", double(p.top_logprobs), 0, 1000, " (0: none)");
  const auto check_id = [&](const char* what, std::int32_t id) {
    if (id < 0 || id >= vocab_size)
      throw error{errc::bad_usage,
                  std::string(what) + " has the id " + std::to_string(id) + "; ids are 0 to " + std::to_string(vocab_size - 1)};
  };
  for (const auto& [id, bias] : p.logit_bias) {
    check_id("logit_bias", id);
    within("logit_bias", double(bias), -100, 100, "");
  }
  for (const auto id : p.allowed_ids)
    check_id("allowed_token_ids", id);
  if (std::any_of(p.stop_strings.begin(), p.stop_strings.end(), [](const std::string& s) { return s.empty(); }))
    throw error{errc::bad_usage, "a stop string is empty; give some text or leave it out"};
}

} // namespace troupe
