#pragma once
#include "core/config.hpp"
#include "experience/trajectory.hpp"
#include "learner/optimizer.hpp"
#include "model/causal_lm.hpp"
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <vector>

namespace troupe {

class compute;

/// A model under training with its optimizer and counters: what every task's learner does behind its backward passes. One thread.
/// Where processes share the model each has one, of its parts; the first rank's takes the others along.
class trainee {
public:
  /// policy: made with model_options::training. total_steps: for the schedule. `where` must outlive it.
  trainee(const config& cfg, std::shared_ptr<causal_lm> policy, std::int64_t total_steps, compute& where);
  ~trainee();

  std::int64_t steps_done() const; // of the run so far
  weights_version version() const;
  void set_incarnation(std::uint32_t incarnation);
  /// Writes tensors, optimizer state and counters into `dir` (an existing, empty, staged directory): a Hugging Face directory
  /// with `optimizer.safetensors` and `learner.json` beside. `source`: the directory that the model was loaded from, whose frozen
  /// tensors and tokenizer files are carried over. Throws errc::failed where a frozen tensor there has changed since.
  void save(const std::filesystem::path& dir, const std::filesystem::path& source) const;
  /// Restores what save wrote; frozen tensors must be the model's own. Throws errc::bad_input naming what is missing, damaged or of
  /// another model; the trainee is then unchanged.
  void load(const std::filesystem::path& dir);

protected:
  struct update {
    double grad_norm = 0, lr = 0; // the norm before clipping
  };
  /// One optimizer step from the gradients that lie in the model, then the model's values are published.
  /// Throws errc::failed, and nothing is updated, where a gradient is not finite.
  update apply_gradients();
  void end_step(); // after a step's last update
  causal_lm& policy() const { return *policy_; }
  compute& where() const { return where_; }
  const config& options() const { return cfg_; }
  std::string here() const; // "step 3, update 5"

private:
  using work = std::function<void()>;
  void together(const std::string& what, const std::string& bytes, const work& own) const; // all ranks of the model
  void follow();
  double gradient_norm() const;
  config cfg_;
  std::shared_ptr<causal_lm> policy_;
  std::int64_t total_steps_;
  compute& where_;
  std::vector<parameter*> trainable_;
  adamw optimizer_;
  std::int64_t steps_ = 0;
  std::uint32_t incarnation_ = 0;
};

} // namespace troupe
