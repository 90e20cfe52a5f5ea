#pragma once
#include "model/kernels/gemm.hpp"
#include "model/parallel/communicator.hpp"
#include <cstdint>
#include <string_view>

namespace troupe {

// Sums over ranks, built once on the communicator, so that every transport gives the same bits: parts travel in T (bf16 or
// float), are added in float32 in rank order and rounded once to T. The same bits on every rank.

/// out [count] = sum of parts [n_parts][count] in that order; `out` may be one of the parts.
template <class T>
void sum_parts(thread_pool& pool, const T* parts, int n_parts, std::int64_t count, T* out);

/// parts: [size][count], one for each rank -> out [count]: the sum of all ranks' part for this one.
template <class T>
void reduce_scatter(communicator& group, thread_pool& pool, const T* parts, std::int64_t count, T* out, std::string_view what);

/// data [count] becomes the sum over all ranks.
template <class T>
void all_reduce(communicator& group, thread_pool& pool, T* data, std::int64_t count, std::string_view what);

/// y [count] += x [count], rounded to T: a residual after a sum over ranks.
template <class T>
void add_rounded(thread_pool& pool, const T* x, std::int64_t count, T* y);

} // namespace troupe
