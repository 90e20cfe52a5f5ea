#include "learner/trainee.hpp"
#include "core/error.hpp"
#include "learner/checkpoint_files.hpp"
#include "learner/whole_state.hpp"
#include "model/compute.hpp"
#include "model/parallel/process_ranks.hpp"
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
  if (out.empty() && !model.ranks()) // a rank of several may have none
    throw error{errc::bad_config, "model.trainable matches none of the model's tensors: nothing would be trained"};
  return out;
}

} // namespace

trainee::trainee(const config& cfg, std::shared_ptr<causal_lm> policy, std::int64_t total_steps, compute& where)
    : cfg_(cfg), policy_(std::move(policy)), total_steps_(total_steps), where_(where), trainable_(trainable_of(*policy_)),
      optimizer_(cfg.learner.optim, std::vector<const parameter*>(trainable_.begin(), trainable_.end())) {
  if (policy_->ranks())
    follow();
}

trainee::~trainee() = default;

void trainee::together(const std::string& what, const std::string& bytes, const work& own) const {
  if (process_ranks* ranks = policy_->ranks())
    ranks->run("learner." + what, bytes, own);
  else
    own();
}

// What another rank than the first does.
void trainee::follow() {
  process_ranks& ranks = *policy_->ranks();
  ranks.on("learner.update", [this](byte_reader&) { apply_gradients(); });
  ranks.on("learner.end_step", [this](byte_reader&) { end_step(); });
  ranks.on("learner.save", [this](byte_reader& in) {
    const auto dir = in.get_string();
    save(dir, in.get_string());
  });
  ranks.on("learner.load", [this](byte_reader& in) { load(in.get_string()); });
}

std::int64_t trainee::steps_done() const { return steps_; }
weights_version trainee::version() const { return {incarnation_, std::uint32_t(steps_)}; }
void trainee::set_incarnation(std::uint32_t incarnation) { incarnation_ = incarnation; }
void trainee::end_step() {
  together("end_step", "", [this] { ++steps_; });
}

std::string trainee::here() const { return "step " + std::to_string(steps_ + 1) + ", update " + std::to_string(optimizer_.steps() + 1); }

trainee::update trainee::apply_gradients() {
  update out;
  together("update", "", [&] {
    policy_->sum_gradients();
    out.grad_norm = gradient_norm();
    out.lr = learning_rate(cfg_.learner.optim, steps_ + 1, total_steps_);
    optimizer_.step(where_.pool(), trainable_, out.lr, clip_factor(out.grad_norm, cfg_.learner.grad_clip));
    policy_->publish_masters();
  });
  return out;
}

// Of the whole tensors in their order, so that it is the same for any layout.
double trainee::gradient_norm() const {
  whole_state whole(*policy_);
  double sum = 0;
  for (std::size_t i = 0; i < whole.size(); ++i) {
    if (!whole.trainable(i))
      continue;
    sum = add_squares(where_.pool(), whole.gather(i, [](const parameter& p, std::size_t) { return std::span<const float>(p.grad); }), sum);
    if (whole.leads() && !std::isfinite(sum))
      throw error{errc::failed, here() + ": the gradient of " + whole.name(i) +
                                    " is not finite; nothing was updated (a lower learner.optim.lr may help)"};
  }
  double norm = std::sqrt(sum);
  if (process_ranks* ranks = policy_->ranks())
    ranks->all().broadcast(&norm, sizeof norm, 0, "the gradient's norm");
  return norm;
}

void trainee::save(const std::filesystem::path& dir, const std::filesystem::path& source) const {
  const dtype declared = cfg_.model.dtype == compute_dtype::bfloat16 ? dtype::bf16 : dtype::f32;
  byte_writer bytes;
  bytes.put_string(dir.string());
  bytes.put_string(source.string());
  together("save", bytes.take(), [&] {
    write_learner_files(dir, source, *policy_, declared, optimizer_.state(), {steps_, optimizer_.steps(), incarnation_});
  });
}

void trainee::load(const std::filesystem::path& dir) {
  byte_writer bytes;
  bytes.put_string(dir.string());
  together("load", bytes.take(), [&] {
    const auto counters = read_learner_files(dir, *policy_, optimizer_.state());
    policy_->publish_masters();
    optimizer_.set_steps(counters.optimizer_steps);
    steps_ = counters.step;
    incarnation_ = counters.incarnation;
  });
}

} // namespace troupe
