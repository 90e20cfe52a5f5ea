#pragma once
#include "model/kernels/cuda/memory.hpp"
#include <cstdint>

namespace troupe::cuda {

/// A token to be drawn from a row, as rollout/sampler.hpp's sample_token has it.
struct row_draw {
  std::int32_t row = 0;
  std::int32_t edits = -1;       // index of row_edits; -1: the row as it is
  double temperature = 1;        // 0: greedy, the lowest id of equals, whatever follows
  double u = 0;                  // uniform in [0, 1)
  double top_p = 1;              // of what top_k left; 1: off
  double min_p = 0;              // of the most probable's probability; 0: off
  std::int32_t top_k = 0;        // 0: off
  float logprob_temperature = 1; // log-probabilities: softmax of logits / this over the whole row, without edits
  std::int32_t n_top = 0;        // most probable ids of the row without edits that are listed, up to 2048 and the vocabulary
  std::int32_t top_begin = 0;    // their place
};
struct drawn_token {
  std::int32_t id = 0;
  float logprob = 0;
};
inline constexpr std::int32_t not_finite = -1; // ids where nothing was drawn: a logit of the row is not a finite number,
inline constexpr std::int32_t none_left = -2;  // or edits left no token

struct logit_edit {
  std::int32_t id = 0;
  float value = 0;
};
/// Changes of a row before its draw: lists, each one after the other from `begin` and applied in this order, an id at most once in each.
/// Results are clamped to finite numbers; what is masked stays so.
struct row_edits {
  std::int32_t begin = 0;
  std::int32_t allowed_begin = 0; // n_allowed ids; the others are masked
  std::int32_t n_allowed = 0;     // 0: all are allowed
  std::int32_t n_added = 0;       // + value
  std::int32_t n_repeated = 0;    // positive logits / repetition, others * it
  std::int32_t n_penalised = 0;   // - value - presence
  std::int32_t n_masked = 0;
  float repetition = 1, presence = 0;
};

/// The device's arrays of a pass's draws, and which kinds are among them.
struct draw_arrays {
  std::int64_t n = 0;
  const row_draw* draws = nullptr;     // [n]
  const row_edits* edits = nullptr;    // null: no draw has any
  const logit_edit* entries = nullptr; // of all edits' lists
  drawn_token* drawn = nullptr;        // [n]
  drawn_token* top = nullptr;          // null: none is listed
  bool truncated = false;
};
/// Rows that are edited at a time: scratch is [min(n, edited_rows), vocab] f32 where there are edits.
inline constexpr std::int64_t edited_rows = 64;

/// Draws tokens from rows of logits, [rows, vocab] f32, vocab up to 524288. Log-probabilities have the bits of softmax_rows and
/// logprobs_of. Without truncation and allowed ids the sampler's ids, bit for bit. Truncation adds masses as whole numbers, of tokens
/// rounded to 2^-40 of the most probable's; ids then differ from the sampler's only where u or top_p lies within rounding of a border.
void draw_tokens(const float* logits, std::int64_t vocab, const draw_arrays& arrays, float* scratch, stream where);

} // namespace troupe::cuda
