#pragma once
#include "model/causal_lm.hpp"
#include <cstdint>
#include <memory>
#include <vector>

namespace troupe {

/// Input in rows of one length, as Transformers takes it: exactly one of ids and embeds; padding left, right or anywhere.
struct padded_input {
  std::int64_t rows = 0, columns = 0;
  std::vector<std::int32_t> ids;            // [rows, columns]
  std::vector<float> embeds;                // [rows, columns, width of the embedding], in place of ids
  std::vector<std::uint8_t> attention_mask; // [rows, columns], 0: padding; empty: none of it is
};

/// A padded input without its padding: a row's tokens are one sequence, positions are counted by the mask.
struct unpadded {
  packed_batch batch;               // a target for every token: its own row
  std::vector<std::int64_t> places; // [n_tokens] in [rows * columns]
  std::vector<std::int32_t> last;   // [rows] index of a row's last token; -1: the row is all padding
};

/// Throws errc::bad_shape when not exactly one of ids and embeds is there or a size is another; width: of the embedding.
unpadded unpad(const padded_input& input, std::int64_t width);

/// packed [n_tokens, width] -> [rows * columns, width], zero at padding.
std::vector<float> pad(const std::vector<float>& packed, const unpadded& where, const padded_input& shape, std::int64_t width);

/// A model behind padded input: callers never see segments.
class padded_model {
public:
  explicit padded_model(std::shared_ptr<causal_lm> model) : model_(std::move(model)) {}
  causal_lm& packed() { return *model_; }
  /// What the head gives, padded again: logits, values or hidden states [rows, columns, width], zero at padding; of a reward
  /// model the scores [rows], each of its row's last token, zero for an empty one. save: as in causal_lm::outputs.
  std::vector<float> forward(const padded_input& input, std::unique_ptr<tape>* save = nullptr);
  /// Adds gradients; d_outputs has the shape that forward gave. What lies at padding is not read.
  void backward(tape& saved, const std::vector<float>& d_outputs);

private:
  struct padded_tape;
  std::shared_ptr<causal_lm> model_;
};

} // namespace troupe
