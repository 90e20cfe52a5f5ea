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

} // namespace troupe::cuda
