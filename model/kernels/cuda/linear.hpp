#pragma once
#include "core/dtype.hpp"
#include "model/kernels/cuda/memory.hpp"
#include <cstdint>
#include <memory>

namespace troupe::cuda {

/// Matrix products on one GPU through cuBLASLt without workspace (so without split-K), or by kernels of our own: few_rows.hpp's, and one
/// for float32 and for shapes that are no multiples of 16 bytes. A row's bits depend on that row, the matrix, m and k alone, not on n
/// (docs/numerics.md). One thread at a time; calls may be captured in a graph.
class matmul {
public:
  /// exact false: what the library thinks fastest, bits as they come; only to measure what exactness costs.
  explicit matmul(bool exact = true);
  bool exact() const;
  ~matmul();
  matmul(const matmul&) = delete;
  matmul& operator=(const matmul&) = delete;
  /// y [n, m] = x [n, k] w^T (w [m, k]) + bias [m] (may be null). x, w, bias of `type`, y of `out` (type, or f32); sums in f32, rounded
  /// once.
  void forward(dtype type, const void* x, const void* w, const void* bias, std::int64_t n, std::int64_t m, std::int64_t k, void* y,
               dtype out, stream where);
  /// dx [n, k] f32 = dy [n, m] w [m, k].
  void backward_input(dtype type, const void* dy, const void* w, std::int64_t n, std::int64_t m, std::int64_t k, float* dx, stream where);
  /// dw [m, k] f32 += dy^T x. Deterministic.
  void backward_weight(dtype type, const void* dy, const void* x, std::int64_t n, std::int64_t m, std::int64_t k, float* dw, stream where);

private:
  struct impl;
  std::unique_ptr<impl> impl_;
};

} // namespace troupe::cuda
