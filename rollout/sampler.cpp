#include "rollout/sampler.hpp"
#include "core/error.hpp"
#include "rollout/exp.hpp"
#include <algorithm>
#include <array>
#include <cfloat>
#include <cmath>
#include <cstddef>

namespace troupe {

namespace {

constexpr std::size_t lanes = 16;       // a sum is 16 interleaved sums, then a tree: one order for every vector width
constexpr std::size_t block_size = 256; // weights are summed block by block
constexpr std::size_t n_buckets = 4096; // of 1/64 in z, for partial selection
constexpr float buckets_per_unit = 64.0f;

// A token's place in the order of truncation: by logit, equal ones by id.
struct candidate {
  float logit = -FLT_MAX;
  std::int32_t id = INT32_MAX;
};
bool before(const candidate& a, const candidate& b) { return a.logit > b.logit || (a.logit == b.logit && a.id < b.id); }

[[noreturn]] void refuse_logits(std::span<const float> logits) {
  const auto bad = std::find_if(logits.begin(), logits.end(), [](float v) { return !std::isfinite(v); });
  throw error{errc::failed, "sampling: the logit of token " + std::to_string(bad - logits.begin()) + " is " + std::to_string(*bad) +
                                ", not a finite number; the weights or activations overflowed (try --dtype float32)"};
}

// The largest logit; throws when one is not finite.
float checked_max(std::span<const float> logits) {
  const float most = finite_max(logits.data(), logits.size());
  if (!std::isfinite(most))
    refuse_logits(logits);
  return most;
}

// One row's unnormalised probabilities, exp((logit - max) / temperature), less what truncation removed.
class weighted_row {
public:
  weighted_row(std::span<const float> logits, double temperature)
      : logits_(logits), max_(checked_max(logits)), inverse_(float(1.0 / std::clamp(temperature, 1e-37, 1e37))) {}

  std::size_t size() const { return logits_.size(); }
  std::size_t n_blocks() const { return (size() + block_size - 1) / block_size; }

  // Keeps the k first tokens of the order.
  void keep_count(std::size_t k) {
    std::vector<std::size_t> counts(n_buckets);
    for (const float v : logits_)
      ++counts[bucket(v)];
    std::size_t b = 0, kept = 0;
    for (; kept + counts[b] < k; ++b)
      kept += counts[b];
    auto members = members_of(b);
    const auto nth = members.begin() + std::ptrdiff_t(k - kept - 1);
    std::nth_element(members.begin(), nth, members.end(), before);
    last_ = *nth;
    truncated_ = true;
  }

  // Keeps the shortest beginning of the order whose mass reaches p of what is kept so far.
  void keep_mass(double p) {
    std::vector<double> masses(n_buckets);
    std::array<float, block_size> w;
    for (std::size_t b = 0; b < n_blocks(); ++b) {
      const std::size_t n = fill(b, w);
      for (std::size_t i = 0; i < n; ++i)
        masses[bucket(logits_[b * block_size + i])] += double(w[i]);
    }
    double total = 0, mass = 0;
    for (const double m : masses)
      total += m;
    std::size_t b = 0;
    for (; b + 1 < n_buckets && mass + masses[b] < p * total; ++b)
      mass += masses[b];
    auto members = members_of(b);
    std::erase_if(members, [this](const candidate& c) { return truncated_ && before(last_, c); });
    std::sort(members.begin(), members.end(), before);
    for (const auto& c : members) {
      mass += double(weight(c.logit));
      last_ = c;
      if (mass >= p * total)
        break;
    }
    truncated_ = true;
  }

  // Drops what is less than min_p times as probable as the most probable, whose weight is 1.
  void keep_above(double min_p) { min_weight_ = min_p; }

  // Weights of block b -> how many there are.
  std::size_t fill(std::size_t b, std::array<float, block_size>& w) const {
    const float* l = logits_.data() + b * block_size;
    const std::size_t n = std::min(block_size, size() - b * block_size);
    exp_scaled(l, max_, inverse_, w.data(), n);
    if (truncated_)
      for (std::size_t i = 0; i < n; ++i)
        if (before(last_, {l[i], std::int32_t(b * block_size + i)}))
          w[i] = 0.0f;
    if (min_weight_ > 0)
      for (std::size_t i = 0; i < n; ++i)
        if (double(w[i]) < min_weight_)
          w[i] = 0.0f;
    return n;
  }

private:
  float weight(float logit) const { return exp_nonpositive((logit - max_) * inverse_); }
  std::size_t bucket(float logit) const {
    return std::size_t(std::min((max_ - logit) * inverse_ * buckets_per_unit, float(n_buckets - 1)));
  }
  std::vector<candidate> members_of(std::size_t b) const {
    std::vector<candidate> members;
    for (std::size_t i = 0; i < size(); ++i)
      if (bucket(logits_[i]) == b)
        members.push_back({logits_[i], std::int32_t(i)});
    return members;
  }

  std::span<const float> logits_;
  float max_, inverse_; // inverse_: of the temperature
  candidate last_;      // of what truncation keeps
  bool truncated_ = false;
  double min_weight_ = 0;
};

double sum(const std::array<float, block_size>& w, std::size_t n) {
  std::array<double, lanes> s{};
  std::size_t i = 0;
  for (; i + lanes <= n; i += lanes)
    for (std::size_t j = 0; j < lanes; ++j)
      s[j] += double(w[i + j]);
  for (; i < n; ++i)
    s[i % lanes] += double(w[i]);
  for (std::size_t half = lanes / 2; half > 0; half /= 2)
    for (std::size_t j = 0; j < half; ++j)
      s[j] += s[j + half];
  return s[0];
}

// Inverse of the cumulative distribution over ids, at u in [0, 1).
std::int32_t invert(const weighted_row& row, double u) {
  std::array<float, block_size> w;
  std::vector<double> sums(row.n_blocks());
  double total = 0;
  for (std::size_t b = 0; b < sums.size(); ++b) {
    const std::size_t n = row.fill(b, w);
    sums[b] = sum(w, n);
    total += sums[b];
  }
  const double target = u * total;
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
  const std::size_t n = row.fill(b, w);
  std::size_t chosen = 0;
  for (std::size_t i = 0; i < n; ++i) {
    if (w[i] == 0.0f)
      continue;
    chosen = i;
    reached += double(w[i]);
    if (reached > target)
      break;
  }
  return std::int32_t(b * block_size + chosen);
}

std::int32_t most_probable(std::span<const float> logits) {
  const float most = checked_max(logits);
  return std::int32_t(std::find(logits.begin(), logits.end(), most) - logits.begin());
}

} // namespace

std::int32_t sample_token(std::span<const float> logits, const sampling_params& params, const draw_key& key) {
  if (logits.empty())
    throw error{errc::bad_shape, "sampling: a row of no logits"};
  if (params.temperature == 0)
    return most_probable(logits);
  weighted_row row{logits, params.temperature};
  if (params.top_k > 0 && std::size_t(params.top_k) < logits.size())
    row.keep_count(std::size_t(params.top_k));
  if (params.top_p < 1)
    row.keep_mass(params.top_p);
  if (params.min_p > 0)
    row.keep_above(params.min_p);
  const auto bits = draw_bits(key);
  // 53 bits: 24 would leave tokens rarer than 6e-8 out.
  return invert(row, double((std::uint64_t(bits[0]) << 32 | bits[1]) >> 11) * 0x1p-53);
}

void check_sampling(const sampling_params& p) {
  const auto refuse = [](const std::string& what, double found, const std::string& allowed) {
    throw error{errc::bad_usage, what + " is " + std::to_string(found) + "; it must be " + allowed};
  };
  if (!(p.temperature >= 0 && p.temperature <= FLT_MAX))
    refuse("temperature", p.temperature, "0 (greedy) or a positive number");
  if (!(p.top_p > 0 && p.top_p <= 1))
    refuse("top_p", p.top_p, "above 0 and at most 1 (1: off)");
  if (p.top_k < -1)
    refuse("top_k", double(p.top_k), "a positive number, or 0 or -1 (off)");
  if (!(p.min_p >= 0 && p.min_p <= 1))
    refuse("min_p", p.min_p, "in 0 .. 1 (0: off)");
  if (p.max_tokens < 1)
    refuse("max_tokens", double(p.max_tokens), "at least 1");
  if (std::any_of(p.stop_strings.begin(), p.stop_strings.end(), [](const std::string& s) { return s.empty(); }))
    throw error{errc::bad_usage, "a stop string is empty; give some text or leave it out"};
}

} // namespace troupe
