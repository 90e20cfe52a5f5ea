#pragma once
#include "core/dtype.hpp"
#include "core/error.hpp"
#include "model/batch.hpp"
#include "model/config.hpp"
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

namespace troupe {

class process_ranks;

/// A named tensor of a model, under its Hugging Face name, row-major; of a rank's model, the rank's part of it.
struct parameter {
  std::string name;
  std::vector<std::int64_t> shape; // of the part
  bool trainable = false;
  std::span<float> master;                     // fp32; empty unless trainable
  std::span<float> grad;                       // fp32 sums; empty unless trainable
  std::span<std::byte> value;                  // in the compute dtype; what the forward pass multiplies, and what weight sync sends
  std::vector<std::int64_t> global_shape = {}; // the part is [begin, begin + shape[dim]) of it along dim; empty: it is the whole
  int dim = 0;
  std::int64_t begin = 0;
  bool copy = false;            // another rank holds the same part, and is the one that counts in norms and saves it
  void* device_value = nullptr; // the value on the GPU, contiguous, in the compute dtype, where the model is there
  std::size_t numel() const {
    std::size_t n = 1;
    for (auto d : shape)
      n *= std::size_t(d);
    return n;
  }
};

/// Cached keys and values: `n_blocks` blocks of 32 tokens for every layer. Made by the model that reads it.
class kv_cache {
public:
  virtual ~kv_cache() = default;
  virtual std::int32_t n_blocks() const = 0;
  /// Copies a whole block, all layers (copy on write).
  virtual void copy_block(std::int32_t from, std::int32_t to) = 0;
};

/// What a training pass keeps for its backward pass.
class tape {
public:
  virtual ~tape() = default;
};

struct logit_edit {
  std::int32_t id = 0;
  float value = 0;
};
/// Changes of a row's logits before a draw: one list after the other, an id at most once in each. Results are clamped to finite numbers;
/// what cannot be drawn stays so.
struct logit_edits {
  std::span<const std::int32_t> allowed; // the others cannot be drawn; empty: all can
  std::vector<logit_edit> added;         // + value
  std::vector<std::int32_t> repeated;    // positive logits / repetition, others * it
  std::vector<logit_edit> penalised;     // - value - presence
  std::vector<std::int32_t> masked;      // cannot be drawn
  float repetition = 1, presence = 0;
};

struct drawn_token {
  std::int32_t id = 0;
  float logprob = 0; // softmax of logits / logprob_temperature over the whole vocabulary, without edits
};
inline constexpr std::int32_t not_finite = -1; // ids where nothing was drawn: a logit of the row is not a finite number,
inline constexpr std::int32_t none_left = -2;  // or edits left no token

/// A token that the model itself draws from a row of its logits; fields as in sampling_params.
struct token_draw {
  std::int32_t row = 0;   // index into forward's logit_rows
  double temperature = 1; // 0: greedy, the lowest id of equals
  double u = 0;           // uniform in [0, 1): the place in the cumulative distribution
  double top_p = 1, min_p = 0;
  std::int32_t top_k = 0; // 0: off
  float logprob_temperature = 1;
  const logit_edits* edits = nullptr; // null: none
  drawn_token* top = nullptr;         // [n_top] where the most probable ids go, without edits
  std::int32_t n_top = 0;             // at most the vocabulary, and 2048
};

/// Results of a scoring pass, one value a target.
struct target_values {
  std::vector<float> logprobs; // natural log, softmax of logits / temperature over the whole vocabulary
  std::vector<float> entropy;  // of the same softmax; empty unless asked for
};

/// A causal language model: ONE forward for training, scoring, prefill and decode. One caller at a time.
/// A row's results depend on its sequence's tokens and the weights alone, to the last bit.
class causal_lm {
public:
  virtual ~causal_lm() = default;
  virtual const model_config& config() const = 0;
  virtual dtype compute_type() const = 0; // f32 or bf16

  /// Parameters in a fixed order; a tied head is not among them.
  virtual std::span<parameter> parameters() = 0;
  /// Trainable tensors: value = master rounded once, then laid out for the kernels. After an optimizer step.
  virtual void publish_masters() = 0;
  /// `value`s were written from outside (weight sync): lays them out. Only those named by index; empty: all.
  virtual void publish_values(std::span<const std::size_t> indices = {}) = 0;

  virtual std::unique_ptr<kv_cache> make_cache(std::int32_t n_blocks) = 0;
  virtual std::size_t cache_block_bytes() const = 0;
  /// Runs `batch` against `cache`. logit_rows: rows of the pass whose logits are wanted, ascending.
  /// logits: [logit_rows.size(), vocab_size] f32, untempered.
  virtual void forward(const token_batch& batch, kv_cache& cache, std::span<const std::int32_t> logit_rows, float* logits) = 0;

  /// Whether forward_draw may be called: the logits stay where the model is.
  virtual bool draws() const { return false; }
  /// forward, with tokens drawn from its rows: drawn [draws.size()]; the ids that sampling the same logits on the host gives (with
  /// truncation or allowed ids: but where rounding decides).
  virtual void forward_draw(const token_batch&, kv_cache&, std::span<const std::int32_t> logit_rows, std::span<const token_draw>,
                            drawn_token* drawn) {
    (void)logit_rows, (void)drawn;
    throw error{errc::unsupported, "model: this one does not draw tokens"};
  }
  /// Bytes that a cache may take where the model computes; negative: ask the system.
  virtual std::int64_t cache_memory() const { return -1; }

  /// Log-probabilities of the batch's targets. `save` non-null: keeps what `backward` needs.
  virtual target_values score(const packed_batch& batch, float temperature, bool entropy, std::unique_ptr<tape>* save) = 0;
  /// Adds d loss / d parameter to `grad`s. d_logprob, d_entropy: [n_targets]; d_entropy may be empty.
  virtual void backward(tape& saved, std::span<const float> d_logprob, std::span<const float> d_entropy) = 0;
  virtual void zero_grads() = 0;
  /// Once between the last `backward` and the update: `grad`s of ranks that shared the batches become their sums.
  virtual void sum_gradients() {}
  /// The processes that share the model, of whose tensors `parameters` are this rank's parts; null: one process holds all.
  virtual process_ranks* ranks() { return nullptr; }

  /// What the head gives at the batch's target rows, [n_targets, width] f32: logits (untempered), values, scores, or normalised
  /// hidden states; width: the last block's `out`. The targets' ids do not count. save: as in score.
  virtual std::vector<float> outputs(const packed_batch&, std::unique_ptr<tape>* save) {
    (void)save;
    throw error{errc::unsupported, "model: this one gives log-probabilities alone"};
  }
  /// Adds gradients from those of `outputs`, of the same shape.
  virtual void backward_outputs(tape&, std::span<const float>) {
    throw error{errc::unsupported, "model: this one gives log-probabilities alone"};
  }

  /// The log-probability that `score` gives for `id`, from a row of `forward`'s logits: the same bits.
  virtual float logprob(const float* logits, std::int32_t id, float temperature) const = 0;
};

} // namespace troupe
