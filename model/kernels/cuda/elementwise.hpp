#pragma once
#include "core/dtype.hpp"
#include "model/kernels/cuda/attention.hpp"
#include "model/kernels/cuda/memory.hpp"
#include <cstdint>

namespace troupe::cuda {

// Row kernels on the GPU, the twins of model/kernels/elementwise.hpp. A row's bits depend on that row and its width alone.
// Pointers are the device's, row-major, no padding; the work is queued on `where` and the call returns.

/// residual [n, h] += x [n, h], rounded; then y [n, h] = w [h] * round(residual / sqrt(mean(residual^2) + eps)), rounded.
/// All of type `type`, f32 or bf16, 16-byte aligned. x null: nothing is added. y may be x; no other overlap.
/// Throws errc::bad_shape for h < 1 or > 16384 (bf16: 32768; rows that are no multiple of 16 bytes: 4096), errc::unsupported for other
/// types.
void add_rms_norm(dtype type, const void* x, void* residual, const void* w, float eps, std::int64_t n, std::int64_t h, void* y,
                  stream where);

/// out [n, h] = table [vocab, h] at ids [n]; zeros where an id is negative.
void embed(dtype type, const void* table, const std::int32_t* ids, std::int64_t n, std::int64_t h, void* out, stream where);
/// grad [vocab, h] f32 += d_out [n, h] f32: for each of the n_ids different ids the rows order[begin[i]] .. order[begin[i+1]-1], in that
/// order.
void embed_backward(const std::int32_t* ids, const std::int32_t* begin, const std::int32_t* order, std::int64_t n_ids, const float* d_out,
                    std::int64_t h, float* grad, stream where);

/// y [n, h] = w * round(x / sqrt(mean(x^2) + eps)), rounded, of rows of x that lie ldx elements apart and of y ldy apart: the arithmetic of
/// add_rms_norm. y may be x. For heads: n rows of `heads` heads each, h = head_dim, head i of a row at i * h.
void rms_norm_heads(dtype type, const void* x, std::int64_t ldx, const void* w, float eps, std::int64_t n, std::int64_t heads,
                    std::int64_t h, void* y, std::int64_t ldy, stream where);
/// dx [n, h] f32 += and dw [h] f32 += (may be null) from dy [n, h] f32; x of `type` before the norm. Deterministic. scratch: n + 256 * h
/// floats. Strides as above, for dy, x and dx; heads = 1 for whole rows. add false: dx is overwritten.
void rms_norm_backward(dtype type, const float* dy, std::int64_t lddy, const void* x, std::int64_t ldx, const void* w, float eps,
                       std::int64_t n, std::int64_t heads, std::int64_t h, float* dx, std::int64_t lddx, bool add, float* dw,
                       float* scratch, stream where);

/// Rotates the first `heads` heads of rows of x (ld apart) in place by positions [n]; table: model/rope.hpp's, on the device. inverse:
/// back.
void rope(dtype type, void* x, std::int64_t ld, std::int64_t n, const std::int32_t* positions, std::int64_t heads, std::int64_t head_dim,
          const float* table, bool inverse, stream where);
/// The same for queries and keys of qkv, and the keys and values written to the cache: row r to slots[r] (block * 32 + place; negative:
/// nowhere), then copies: row copy_rows[i] to copy_slots[i] as well. cache as attention_shape says.
void rope_write(dtype type, const attention_shape& shape, void* qkv, std::int64_t n, const std::int32_t* positions, const float* table,
                const std::int32_t* slots, void* cache, std::int64_t n_copies, const std::int32_t* copy_rows,
                const std::int32_t* copy_slots, stream where);

/// gate_up [n, 2 * inter] (gate, then up) -> act [n, inter] = round(silu(gate)) * up ... with the CPU kernel's roundings.
void silu_mul(dtype type, const void* gate_up, std::int64_t n, std::int64_t inter, void* act, stream where);
void silu_mul_backward(dtype type, const void* gate_up, const float* d_act, std::int64_t n, std::int64_t inter, void* d_gate_up,
                       stream where);
/// x [n, h] of `type`: max(x, 0) in place; and d [n, h] f32 zeroed where y (the result) is 0.
void relu(dtype type, void* x, std::int64_t count, stream where);
void relu_backward(dtype type, const void* y, float* d, std::int64_t count, stream where);

/// out [rows, h] = x at row numbers `rows`; and the other way: out rows written, others untouched.
void gather_rows(dtype type, const void* x, const std::int32_t* rows, std::int64_t n_rows, std::int64_t h, void* out, stream where);
void scatter_rows(dtype type, const void* x, const std::int32_t* rows, std::int64_t n_rows, std::int64_t h, void* out, stream where);
/// y = x rounded to `type` / widened from it; y += x.
void convert(const float* x, std::int64_t count, dtype type, void* y, stream where);
void widen(dtype type, const void* x, std::int64_t count, float* y, stream where);
void add(dtype type, void* y, const void* x, std::int64_t count, stream where);
/// dbias [m] f32 += column sums of dy [n, m] of `type`, in a fixed order.
void bias_backward(dtype type, const void* dy, std::int64_t n, std::int64_t m, float* dbias, stream where);

} // namespace troupe::cuda
