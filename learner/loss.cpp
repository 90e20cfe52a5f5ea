#include "learner/loss.hpp"
#include "core/error.hpp"
#include "learner/exact_math.hpp"
#include <algorithm>
#include <cmath>
#include <string>

namespace troupe {

namespace {

using term = policy_objective::term;
using logprobs_view = std::span<const float>;
using advantages_view = std::span<const double>;

// log rho and whether a gradient passes the clamp.
struct log_ratio_result {
  double value;
  bool inside;
};
log_ratio_result log_ratio_of(float logp, float old) {
  const double x = double(logp) - double(old);
  return {std::clamp(x, -20.0, 20.0), x >= -20 && x <= 20};
}

// max(-rho A, -clip(rho) A): the clipped side wins only where it is larger, and has no gradient.
term clipped_term(const learner_section& o, double ratio, double advantage, bool inside) {
  const double plain = -advantage * ratio;
  const double clipped = -advantage * std::clamp(ratio, 1 - o.clip_ratio_low, 1 + o.clip_ratio_high);
  if (clipped > plain)
    return {clipped, 0, true};
  return {plain, inside ? plain : 0, false};
}

// arXiv:1707.06347 with separate bounds (arXiv:2503.14476) and the dual clip of arXiv:1912.09729.
void vanilla(const learner_section& o, logprobs_view logp, logprobs_view old, advantages_view advantage, std::span<term> terms) {
  for (std::size_t t = 0; t < logp.size(); ++t) {
    const auto [x, inside] = log_ratio_of(logp[t], old[t]);
    terms[t] = clipped_term(o, exact_exp(x), advantage[t], inside);
    const double bound = -advantage[t] * o.clip_ratio_c;
    if (advantage[t] < 0 && bound < terms[t].value)
      terms[t] = {bound, 0, terms[t].clipped};
  }
}

// arXiv:2507.18071: vanilla's clip on one ratio a sample.
void gspo(const learner_section& o, logprobs_view logp, logprobs_view old, advantages_view advantage, std::span<term> terms) {
  double sum = 0;
  for (std::size_t t = 0; t < logp.size(); ++t)
    sum += log_ratio_of(logp[t], old[t]).value;
  const double mean = sum / double(logp.size());
  const double ratio = exact_exp(std::min(mean, 10.0));
  for (std::size_t t = 0; t < logp.size(); ++t)
    terms[t] = clipped_term(o, ratio, advantage[t], mean <= 10);
}

// arXiv:2506.13585: the clipped ratio is a weight, every token keeps its gradient.
void cispo(const learner_section& o, logprobs_view logp, logprobs_view old, advantages_view advantage, std::span<term> terms) {
  for (std::size_t t = 0; t < logp.size(); ++t) {
    const double ratio = exact_exp(log_ratio_of(logp[t], old[t]).value);
    const double weight = std::clamp(ratio, 1 - o.clip_ratio_low, 1 + o.clip_ratio_high);
    terms[t] = {-weight * advantage[t] * double(logp[t]), -weight * advantage[t], weight != ratio};
  }
}

// arXiv:2507.20673: the geometric mean of a sample's ratios, each clipped on the side of the advantage's sign.
void geo_mean(const learner_section& o, logprobs_view logp, logprobs_view old, advantages_view advantage, std::span<term> terms) {
  double sum = 0, mean_advantage = 0;
  for (std::size_t t = 0; t < logp.size(); ++t) {
    const auto [x, inside] = log_ratio_of(logp[t], old[t]);
    const double clipped = std::clamp(x, -o.clip_ratio_low, o.clip_ratio_high);
    const double sign = advantage[t] > 0 ? 1 : advantage[t] < 0 ? -1 : 0;
    const bool keep = sign * x <= sign * clipped;
    sum += sign == 0 ? 0 : keep ? x : clipped;
    mean_advantage += advantage[t];
    terms[t] = {0, keep && inside && sign != 0 ? 1.0 : 0.0, !keep};
  }
  const double n = double(logp.size());
  const double loss = -mean_advantage / n * exact_exp(sum / n);
  for (auto& t : terms)
    t = {loss, loss * t.gradient, t.clipped};
}

void reinforce(const learner_section&, logprobs_view logp, logprobs_view, advantages_view advantage, std::span<term> terms) {
  for (std::size_t t = 0; t < logp.size(); ++t)
    terms[t] = {-advantage[t] * double(logp[t]), -advantage[t], false};
}

term kl_k1(double logp, double ref) { return {logp - ref, 1, false}; }
term kl_abs(double logp, double ref) { return {std::abs(logp - ref), logp > ref ? 1.0 : logp < ref ? -1.0 : 0.0, false}; }
term kl_k2(double logp, double ref) { return {0.5 * (logp - ref) * (logp - ref), logp - ref, false}; }

// http://joschu.net/blog/kl-approx.html, with verl's clamps.
term kl_k3(double logp, double ref) {
  const double d = std::clamp(ref - logp, -20.0, 20.0);
  const double ratio = exact_exp(d), value = ratio - d - 1;
  const bool inside = value <= 10 && ref - logp == d;
  return {std::min(value, 10.0), inside ? 1 - ratio : 0, false};
}

struct loss_entry {
  const char* name;
  policy_objective::loss_function compute;
  bool by_sample; // always seq-mean-token-mean, whatever loss_agg_mode says
};
constexpr loss_entry losses[] = {{"vanilla", vanilla, false},
                                 {"gspo", gspo, true},
                                 {"cispo", cispo, false},
                                 {"geo_mean", geo_mean, true},
                                 {"reinforce", reinforce, false}};

struct kl_entry {
  const char* name;
  policy_objective::kl_function compute;
};
constexpr kl_entry kls[] = {{"kl", kl_k1}, {"k1", kl_k1},         {"abs", kl_abs}, {"mse", kl_k2},
                            {"k2", kl_k2}, {"low_var_kl", kl_k3}, {"k3", kl_k3}};

struct aggregation_entry {
  const char* name;
  policy_objective::weight_function weight;
};
double per_token(const loss_totals& all, double, double) { return 1 / double(all.tokens); }
double per_sample_sum(const loss_totals& all, double, double) { return 1 / double(all.samples); }
double per_sample_mean(const loss_totals& all, double length, double) { return 1 / (double(all.samples) * length); }
double per_sample_scaled(const loss_totals& all, double, double scale) { return 1 / (double(all.samples) * scale); }
constexpr aggregation_entry aggregations[] = {{"token-mean", per_token},
                                              {"seq-mean-token-sum", per_sample_sum},
                                              {"seq-mean-token-mean", per_sample_mean},
                                              {"seq-mean-token-sum-norm", per_sample_scaled}};

template <class Entry, std::size_t n>
std::vector<std::string> names_of(const Entry (&table)[n]) {
  std::vector<std::string> names;
  for (const auto& e : table)
    names.emplace_back(e.name);
  return names;
}

template <class Entry, std::size_t n>
const Entry& find_in(const Entry (&table)[n], const std::string& key, const std::string& name) {
  for (const auto& e : table)
    if (name == e.name)
      return e;
  std::string known;
  for (const auto& e : table)
    known += (known.empty() ? "" : ", ") + std::string(e.name);
  throw error{errc::bad_config, "learner." + key + " = \"" + name + "\": this version has " + known};
}

void check_size(const char* what, std::size_t found, std::size_t wanted) {
  if (found != wanted)
    throw error{errc::bad_shape, "loss: " + std::to_string(found) + " " + what + " for " + std::to_string(wanted) + " tokens"};
}

} // namespace

loss_sums& loss_sums::operator+=(const loss_sums& other) noexcept {
  policy += other.policy;
  kl += other.kl;
  entropy += other.entropy;
  total += other.total;
  tokens += other.tokens;
  clipped += other.clipped;
  log_ratio += other.log_ratio;
  entropy_sum += other.entropy_sum;
  return *this;
}

policy_objective::policy_objective(const learner_section& options, std::int64_t max_response_length)
    : options_(options), scale_length_(options.loss_scale_factor > 0 ? options.loss_scale_factor : double(max_response_length)) {
  const auto& loss = find_in(losses, "policy_loss", options.policy_loss);
  const auto& mode = find_in(aggregations, "loss_agg_mode", options.loss_agg_mode);
  loss_ = loss.compute;
  kl_ = find_in(kls, "kl_loss_type", options.kl_loss_type).compute;
  weight_ = mode.weight;
  policy_weight_ = loss.by_sample ? per_sample_mean : mode.weight;
}

loss_sums policy_objective::evaluate(const loss_input& in, const loss_totals& totals, std::vector<float>& d_logprob,
                                     std::vector<float>& d_entropy) const {
  std::size_t n = 0;
  for (auto length : in.lengths)
    n += std::size_t(length);
  check_size("log-probabilities", in.logprobs.size(), n);
  check_size("old log-probabilities", in.old_logprobs.size(), n);
  check_size("advantages", in.advantages.size(), n);
  if (needs_reference())
    check_size("reference log-probabilities", in.ref_logprobs.size(), n);
  if (needs_entropy() || !in.entropy.empty())
    check_size("entropies", in.entropy.size(), n);

  d_logprob.assign(n, 0.0F);
  d_entropy.assign(needs_entropy() ? n : 0, 0.0F);
  loss_sums sums;
  std::vector<term> terms;
  std::size_t begin = 0;
  for (auto length : in.lengths) {
    if (length == 0)
      continue;
    const auto count = std::size_t(length);
    terms.assign(count, {});
    loss_(options_, in.logprobs.subspan(begin, count), in.old_logprobs.subspan(begin, count), in.advantages.subspan(begin, count), terms);
    const double policy_weight = policy_weight_(totals, double(length), scale_length_);
    const double weight = weight_(totals, double(length), scale_length_);
    for (std::size_t t = 0; t < count; ++t) {
      const std::size_t i = begin + t;
      double gradient = policy_weight * terms[t].gradient;
      sums.policy += policy_weight * terms[t].value;
      sums.clipped += terms[t].clipped ? 1 : 0;
      sums.log_ratio += log_ratio_of(in.logprobs[i], in.old_logprobs[i]).value;
      if (needs_reference()) {
        const term kl = kl_(in.logprobs[i], in.ref_logprobs[i]);
        sums.kl += weight * kl.value;
        gradient += options_.kl_loss_coef * weight * kl.gradient;
      }
      if (!in.entropy.empty()) {
        sums.entropy += weight * double(in.entropy[i]);
        sums.entropy_sum += in.entropy[i];
      }
      d_logprob[i] = float(gradient);
      if (needs_entropy())
        d_entropy[i] = float(-options_.entropy_coeff * weight);
    }
    begin += count;
  }
  sums.tokens = std::int64_t(n);
  sums.total = sums.policy + (needs_reference() ? options_.kl_loss_coef * sums.kl : 0) - options_.entropy_coeff * sums.entropy;
  return sums;
}

std::vector<std::string> policy_losses() { return names_of(losses); }
std::vector<std::string> loss_aggregations() { return names_of(aggregations); }
std::vector<std::string> kl_loss_types() { return names_of(kls); }

} // namespace troupe
