#pragma once
#include "core/config.hpp"
#include "model/causal_lm.hpp"
#include <cstdint>
#include <span>
#include <vector>

namespace troupe {

class thread_pool;

/// sum plus the squares of a tensor's values, added in float64 in an order fixed by the sizes alone.
double add_squares(thread_pool& pool, std::span<const float> tensor, double sum);
/// Euclidean norm of all values, added in float64 in an order fixed by the sizes alone.
double global_norm(thread_pool& pool, std::span<const std::span<const float>> tensors);

/// min(1, max_norm / (norm + 1e-6)); 1 when max_norm is 0 (off).
double clip_factor(double norm, double max_norm) noexcept;

/// Learning rate of step t, from 1, of `total_steps`: lr * min(1, t / lr_warmup_steps), then as lr_scheduler_type says
/// down to min_lr_ratio * lr at t = total_steps. All updates of a step share it.
double learning_rate(const optim_section& optim, std::int64_t t, std::int64_t total_steps) noexcept;

/// A trainable tensor's moments, both [numel].
struct moments {
  std::vector<float> first, second;
};

/// AdamW (arXiv:1711.05101), eps 1e-8, decay on every trainable tensor, float32 in torch.optim.AdamW's order of operations.
/// The same bits for any number of threads and on any processor. One thread.
class adamw {
public:
  /// params: the trainable tensors, in an order that stays.
  adamw(const optim_section& optim, std::span<const parameter* const> params);
  /// master -= ... with gradients grad * grad_scale.
  void step(thread_pool& pool, std::span<parameter* const> params, double lr, double grad_scale);
  std::int64_t steps() const noexcept { return steps_; }
  std::vector<moments>& state() noexcept { return state_; }
  const std::vector<moments>& state() const noexcept { return state_; }
  void set_steps(std::int64_t steps) noexcept { steps_ = steps; }

private:
  optim_section optim_;
  std::vector<moments> state_;
  std::int64_t steps_ = 0;
};

} // namespace troupe
