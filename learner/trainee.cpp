#include "learner/trainee.hpp"
#include "core/error.hpp"
#include "learner/checkpoint_files.hpp"
#include "model/compute.hpp"
#include <cmath>
#include <span>

namespace troupe {

namespace {

std::vector<parameter*> trainable_of(causal_lm& model) {
  std::vector<parameter*> out;
  for (auto& p : model.parameters()) {
    if (p.trainable && (p.master.size() != p.numel() || p.grad.size() != p.numel()))
      throw error{errc::bad_shape, "learner: tensor " + p.name + " has no master or gradient; load the model for training"};
    if (p.trainable)
      out.push_back(&p);
  }
  if (out.empty())
    throw error{errc::bad_config, "model.trainable matches none of the model's tensors: nothing would be trained"};
  return out;
}

} // namespace

trainee::trainee(const config& cfg, std::shared_ptr<causal_lm> policy, std::int64_t total_steps, compute& where)
    : cfg_(cfg), policy_(std::move(policy)), total_steps_(total_steps), where_(where), trainable_(trainable_of(*policy_)),
      optimizer_(cfg.learner.optim, std::vector<const parameter*>(trainable_.begin(), trainable_.end())) {}

trainee::~trainee() = default;

std::int64_t trainee::steps_done() const { return steps_; }
weights_version trainee::version() const { return {incarnation_, std::uint32_t(steps_)}; }
void trainee::set_incarnation(std::uint32_t incarnation) { incarnation_ = incarnation; }
void trainee::end_step() { ++steps_; }

std::string trainee::here() const { return "step " + std::to_string(steps_ + 1) + ", update " + std::to_string(optimizer_.steps() + 1); }

trainee::update trainee::apply_gradients() {
  update out;
  out.grad_norm = gradient_norm();
  out.lr = learning_rate(cfg_.learner.optim, steps_ + 1, total_steps_);
  optimizer_.step(where_.pool(), trainable_, out.lr, clip_factor(out.grad_norm, cfg_.learner.grad_clip));
  policy_->publish_masters();
  return out;
}

double trainee::gradient_norm() const {
  std::vector<std::span<const float>> grads;
  for (const auto* p : trainable_)
    grads.push_back(p->grad);
  const double norm = global_norm(where_.pool(), grads);
  if (std::isfinite(norm))
    return norm;
  for (const auto* p : trainable_)
    if (const std::span<const float> one[] = {p->grad}; !std::isfinite(global_norm(where_.pool(), one)))
      throw error{errc::failed,
                  here() + ": the gradient of " + p->name + " is not finite; nothing was updated (a lower learner.optim.lr may help)"};
  throw error{errc::failed, here() + ": the gradient's norm is " + std::to_string(norm) + "; nothing was updated"};
}

void trainee::save(const std::filesystem::path& dir, const std::filesystem::path& source) const {
  const dtype declared = cfg_.model.dtype == compute_dtype::bfloat16 ? dtype::bf16 : dtype::f32;
  write_learner_files(dir, source, *policy_, declared, optimizer_.state(), {steps_, optimizer_.steps(), incarnation_});
}

void trainee::load(const std::filesystem::path& dir) {
  const auto counters = read_learner_files(dir, *policy_, optimizer_.state());
  policy_->publish_masters();
  optimizer_.set_steps(counters.optimizer_steps);
  steps_ = counters.step;
  incarnation_ = counters.incarnation;
}

} // namespace troupe
