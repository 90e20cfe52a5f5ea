#include "learner/optimizer.hpp"
#include "core/error.hpp"
#include "learner/exact_math.hpp"
#include "model/kernels/thread_pool.hpp"
#include <algorithm>
#include <cmath>
#include <string>

namespace troupe {

namespace {

constexpr std::size_t chunk_values = 65536; // of a sum: fixes its order whatever the threads

struct chunk {
  const float* data;
  std::size_t count;
};

// Eight interleaved sums and a fixed tree, so that any vector width gives the same bits.
double sum_of_squares(const chunk& c) {
  double lanes[8] = {};
  std::size_t i = 0;
  for (; i + 8 <= c.count; i += 8)
    for (std::size_t l = 0; l < 8; ++l) {
      const double x = c.data[i + l];
      lanes[l] += x * x;
    }
  for (std::size_t l = 0; i < c.count; ++i, ++l)
    lanes[l] += double(c.data[i]) * double(c.data[i]);
  return ((lanes[0] + lanes[4]) + (lanes[2] + lanes[6])) + ((lanes[1] + lanes[5]) + (lanes[3] + lanes[7]));
}

// Scalars of one update in float32, as torch applies them.
struct update {
  float decay, beta1_rest, beta2, beta2_rest, bias2_root, step_size, eps, grad_scale;
};

void update_range(const update& u, std::size_t n, float* __restrict w, const float* __restrict g, float* __restrict m,
                  float* __restrict v) {
  for (std::size_t i = 0; i < n; ++i) {
    const float grad = g[i] * u.grad_scale;
    const float weight = w[i] * u.decay;
    const float first = m[i] + u.beta1_rest * (grad - m[i]);
    const float second = v[i] * u.beta2 + u.beta2_rest * grad * grad;
    m[i] = first;
    v[i] = second;
    w[i] = weight - u.step_size * first / (std::sqrt(second) / u.bias2_root + u.eps);
  }
}

} // namespace

double add_squares(thread_pool& pool, std::span<const float> tensor, double sum) {
  std::vector<chunk> chunks;
  for (std::size_t begin = 0; begin < tensor.size(); begin += chunk_values)
    chunks.push_back({tensor.data() + begin, std::min(chunk_values, tensor.size() - begin)});
  std::vector<double> partial(chunks.size());
  pool.split(std::int64_t(chunks.size()), [&](std::int64_t begin, std::int64_t end) {
    for (auto i = std::size_t(begin); i < std::size_t(end); ++i)
      partial[i] = sum_of_squares(chunks[i]);
  });
  for (double p : partial)
    sum += p;
  return sum;
}

double global_norm(thread_pool& pool, std::span<const std::span<const float>> tensors) {
  double sum = 0;
  for (auto t : tensors)
    sum = add_squares(pool, t, sum);
  return std::sqrt(sum);
}

double clip_factor(double norm, double max_norm) noexcept { return max_norm > 0 ? std::min(1.0, max_norm / (norm + 1e-6)) : 1; }

double learning_rate(const optim_section& optim, std::int64_t t, std::int64_t total_steps) noexcept {
  if (t < optim.lr_warmup_steps)
    return optim.lr * (double(t) / double(optim.lr_warmup_steps));
  if (optim.lr_scheduler_type == "constant" || total_steps <= optim.lr_warmup_steps)
    return optim.lr;
  const double done = std::min(1.0, double(t - optim.lr_warmup_steps) / double(total_steps - optim.lr_warmup_steps));
  const double left = optim.lr_scheduler_type == "cosine" ? 0.5 * (1 + exact_cos_pi(done)) : 1 - done;
  return optim.lr * (optim.min_lr_ratio + (1 - optim.min_lr_ratio) * left);
}

adamw::adamw(const optim_section& optim, std::span<const parameter* const> params) : optim_(optim) {
  for (const auto* p : params)
    state_.push_back({std::vector<float>(p->numel()), std::vector<float>(p->numel())});
}

void adamw::step(thread_pool& pool, std::span<parameter* const> params, double lr, double grad_scale) {
  if (params.size() != state_.size())
    throw error{errc::bad_shape,
                "adamw: " + std::to_string(params.size()) + " tensors where it was made for " + std::to_string(state_.size())};
  ++steps_;
  const double beta1 = optim_.betas[0], beta2 = optim_.betas[1];
  const double bias1 = 1 - exact_pow(beta1, steps_), bias2 = 1 - exact_pow(beta2, steps_);
  const update u{float(1 - lr * optim_.weight_decay),
                 float(1 - beta1),
                 float(beta2),
                 float(1 - beta2),
                 float(std::sqrt(bias2)),
                 float(lr / bias1),
                 1e-8F,
                 float(grad_scale)};
  for (std::size_t i = 0; i < params.size(); ++i) {
    auto& p = *params[i];
    pool.split(std::int64_t(p.numel()), [&](std::int64_t begin, std::int64_t end) {
      update_range(u, std::size_t(end - begin), p.master.data() + begin, p.grad.data() + begin, state_[i].first.data() + begin,
                   state_[i].second.data() + begin);
    });
  }
}

} // namespace troupe
