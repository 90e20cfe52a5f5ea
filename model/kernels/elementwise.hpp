#pragma once
#include "model/compute.hpp"
#include "model/kernels/gemm.hpp"
#include <cstdint>
#include <vector>

namespace troupe::kernels {

// Row kernels. T is the compute type, bf16 or float; sums and gradients of the residual stream are float. Each row's bits
// depend on that row alone. Threads and instruction set come from `where` and change no bit. Row-major, no padding.

/// out [n, h] = table [vocab, h] at ids; zeros where an id is negative (another rank's).
template <class T>
void embed(compute& where, const T* table, const std::int32_t* ids, std::int64_t n, std::int64_t h, T* out);
/// grad [vocab, h] += d_out [n, h] at ids, rows in order; negative ids are left out.
void embed_backward(compute& where, const std::int32_t* ids, const float* d_out, std::int64_t n, std::int64_t h, float* grad);

/// y = w * round(x / sqrt(mean(x^2) + eps)), rounded; x, y [n, h]. inverse: [n] the 1/sqrt, may be null.
template <class T>
void rms_norm(compute& where, const T* x, const T* w, float eps, std::int64_t n, std::int64_t h, T* y, float* inverse);
/// dx [n, h] += ..., dw [h] += ... (dw may be null).
template <class T>
void rms_norm_backward(compute& where, const float* dy, const T* x, const T* w, const float* inverse, std::int64_t n, std::int64_t h,
                       float* dx, float* dw);

/// Rotates the first `heads` heads of each row (stride ldx) in place by its position; inverse: the other way (gradients).
template <class T>
void rope(compute& where, T* x, std::int64_t ldx, std::int64_t n, const std::int32_t* positions, std::int64_t heads, std::int64_t head_dim,
          const float* table, bool inverse);

/// gate_up [n, ceil(inter/16)*32] as an ungated gated GEMM leaves it -> act [n, inter].
template <class T>
void silu_mul(compute& where, const T* gate_up, std::int64_t n, std::int64_t inter, T* act);
template <class T>
void silu_mul_backward(compute& where, const T* gate_up, const float* d_act, std::int64_t n, std::int64_t inter, T* d_gate_up);

/// y = x rounded to T.
template <class T>
void convert(compute& where, const float* x, std::int64_t n, T* y);

/// What log-probabilities of a row of logits need; z = logits / temperature.
struct softmax_stats {
  float maximum, sum, moment; // max z, sum e^(z - max), sum e^(z - max) (z - max)
  float log_sum() const;
  float logprob(float logit, float temperature) const { return (logit / temperature - maximum) - log_sum(); }
  float entropy() const { return log_sum() - moment / sum; }
};
/// Of a whole row from those of its slices, in order. One slice: itself.
softmax_stats merge(const softmax_stats* slices, int n);
softmax_stats softmax_row(isa which, const float* logits, std::int64_t vocab, float temperature, bool moment);
void softmax_rows(compute& where, const float* logits, std::int64_t rows, std::int64_t vocab, float temperature, bool moment,
                  softmax_stats* out);

/// Gradients that reach one row of logits: of the log-probs of `ids` (which differ) and of the entropy. Of a slice of the
/// vocabulary `ids` count from its beginning, and `elsewhere` is the sum of the other slices' d_logprob.
struct row_gradient {
  std::vector<std::int32_t> ids;
  std::vector<float> d_logprob;
  float d_entropy = 0;
  float elsewhere = 0;
};
/// d_logits [rows, vocab] from them.
template <class T>
void softmax_backward(compute& where, const float* logits, std::int64_t rows, std::int64_t vocab, float temperature,
                      const softmax_stats* stats, const row_gradient* gradients, T* d_logits);

/// e^x for x <= 0 with the kernels' arithmetic: 0 below -87. Any thread.
float exp_negative(float x);
/// Natural logarithm in plain double arithmetic, the same on every processor; x > 0 and finite.
double log_exact(double x);

} // namespace troupe::kernels
