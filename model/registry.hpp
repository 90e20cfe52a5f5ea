#pragma once
#include "model/causal_lm.hpp"
#include "model/parallel/communicator.hpp"
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <vector>

namespace troupe {

class compute;

struct weight;

/// One rank's place in a model that several share.
struct rank_setup {
  rank_context ranks;
  bool sequence_parallel = false; // norms and residuals on slices of the rows; counts with ranks.shape.tp > 1
  /// Gives a weight its tensors instead of the model, e.g. as views of tensors that ranks of one process share; may be empty.
  /// copy: as in `parameter`. Such a model has no `parameters()` and is filled by who placed them.
  std::function<void(weight& w, bool copy)> place;
};

struct model_options {
  dtype compute_type = dtype::f32;            // f32 or bf16
  bool training = false;                      // masters and gradients of what is trainable, weights laid out for the backward pass
  std::vector<std::string> trainable = {"*"}; // globs over parameter names; ignored unless training
  std::shared_ptr<const rank_setup> parallel = nullptr; // null: one rank holds the whole model
};

/// Told now and then, on the thread that loads, how many bytes of the weights have been read and how many there are. Must not throw.
using load_progress = std::function<void(std::uint64_t read, std::uint64_t all)>;

struct load_options {
  const compute* where = nullptr; // whose threads read; null: the caller alone
  load_progress progress = {};
};

/// Loads a Hugging Face directory. `where` must outlive the model.
/// Throws errc::bad_input naming the tensor that is missing, superfluous, of another shape or not finite,
/// errc::unsupported for an architecture that is not in `architectures()`.
std::shared_ptr<causal_lm> load_model(const std::filesystem::path& dir, const model_options& options, compute& where,
                                      const load_progress& progress = {});

/// A model of that shape with zero weights, to be filled by weight sync or a checkpoint.
std::shared_ptr<causal_lm> make_model(const model_config& cfg, const model_options& options, compute& where);

/// Reads every parameter's `value` (and `master`, where it has one) from a directory's safetensors; the same checks as load_model. A rank's
/// model reads the byte ranges of its parts alone. Returns the bytes it read.
std::uint64_t load_weights(causal_lm& model, const std::filesystem::path& dir, const load_options& options = {});

/// Known values of config.json's `architectures[0]`.
std::vector<std::string> architectures();

/// Shell-style match of a parameter name: `*` any run, `?` one character.
bool glob_match(std::string_view pattern, std::string_view name);

} // namespace troupe
