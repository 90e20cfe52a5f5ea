#pragma once
#include "core/dtype.hpp"
#include "model/kernels/cuda/memory.hpp"
#include "model/kernels/elementwise.hpp"
#include <cstdint>

namespace troupe::cuda {

/// Softmax of rows of logits on the GPU; kernels::softmax_stats as on the CPU, sums in an order of their own: of each block of 256 columns
/// lane l of 32 adds the columns l, l + 32, ... ascending, then a butterfly; of the blocks' sums likewise. A row's bits depend on that row
/// alone. logits [rows, vocab] f32, vocab up to 524288. moment false: it is left 0.
void softmax_rows(const float* logits, std::int64_t rows, std::int64_t vocab, float temperature, bool moment, kernels::softmax_stats* stats,
                  stream where);
/// The same bits on the host.
kernels::softmax_stats softmax_row_host(const float* logits, std::int64_t vocab, float temperature, bool moment);

/// logprobs[i] of id ids[i] in row rows[i]: softmax_stats::logprob's bits. -> [n] f32
void logprobs_of(const float* logits, std::int64_t vocab, float temperature, const kernels::softmax_stats* stats, const std::int32_t* rows,
                 const std::int32_t* ids, std::int64_t n, float* logprobs, stream where);

/// d_logits [rows, vocab] of `type`: for row r the ids entry_ids[begin[r]] .. (which differ) with d_logprob, and d_entropy[r] (may be
/// null).
void softmax_backward(dtype type, const float* logits, std::int64_t rows, std::int64_t vocab, float temperature,
                      const kernels::softmax_stats* stats, const std::int32_t* begin, const std::int32_t* entry_ids, const float* d_logprob,
                      const float* d_entropy, void* d_logits, stream where);

/// A token to be drawn from a row, as rollout/sampler.hpp's sample_token has it.
struct row_draw {
  std::int32_t row = 0;
  double temperature = 1; // 0: greedy, the lowest id of equals, whatever follows
  double u = 0;           // uniform in [0, 1)
  std::int32_t top_k = 0; // 0: off
  double top_p = 1;       // of what top_k left; 1: off
  double min_p = 0;       // of the most probable's probability; 0: off
};
struct drawn_token {
  std::int32_t id = 0; // -1: a logit of the row is not finite
  float logprob = 0;   // softmax of logits / logprob_temperature over the whole row
};
/// The draws without truncation, ids bit for bit the sampler's; others are left alone. draws, drawn: [n], the device's; logits and vocab
/// as above. The log-probability has the bits of softmax_rows and logprobs_of.
void draw_tokens(const float* logits, std::int64_t vocab, const row_draw* draws, std::int64_t n, float logprob_temperature,
                 drawn_token* drawn, stream where);
/// The draws with truncation; others are left alone. Masses are whole numbers: what is kept is exact for a token's mass rounded to 2^-40 of
/// the most probable's, and ids differ from the sampler's where u or top_p lies within rounding of a border.
void draw_truncated(const float* logits, std::int64_t vocab, const row_draw* draws, std::int64_t n, float logprob_temperature,
                    drawn_token* drawn, stream where);

} // namespace troupe::cuda
