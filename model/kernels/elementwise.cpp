#include "model/kernels/elementwise.hpp"
#include "model/kernels/thread_pool.hpp"
#include <algorithm>
#include <cmath>
#include <cstring>
#include <immintrin.h>
#include <limits>

namespace troupe::kernels {

#define RG_SOURCE "model/kernels/elementwise.inl"
#include "model/kernels/per_isa.inl"

template <class T>
void embed(compute& where, const T* table, const std::int32_t* ids, std::int64_t n, std::int64_t h, T* out) {
  where.pool().split(n, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t r = begin; r < end; ++r)
      if (ids[r] >= 0)
        std::memcpy(out + r * h, table + std::int64_t(ids[r]) * h, std::size_t(h) * sizeof(T));
      else
        std::memset(out + r * h, 0, std::size_t(h) * sizeof(T));
  });
}

void embed_backward(compute& where, const std::int32_t* ids, const float* d_out, std::int64_t n, std::int64_t h, float* grad) {
  // Threads share columns, not rows: equal ids are then added in row order.
  where.pool().split(h, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t r = 0; r < n; ++r) {
      if (ids[r] < 0)
        continue;
      float* g = grad + std::int64_t(ids[r]) * h;
      for (std::int64_t j = begin; j < end; ++j)
        g[j] += d_out[r * h + j];
    }
  });
}

template <class T>
void rms_norm(compute& where, const T* x, const T* w, float eps, std::int64_t n, std::int64_t h, T* y, float* inverse) {
  where.pool().split(n, [&](std::int64_t begin, std::int64_t end) {
    RG_CALL(where.which(), rms_norm_rows, x + begin * h, w, eps, end - begin, h, y + begin * h, inverse ? inverse + begin : nullptr);
  });
}

template <class T>
void rms_norm_backward(compute& where, const float* dy, const T* x, const T* w, const float* inverse, std::int64_t n, std::int64_t h,
                       float* dx, float* dw) {
  if (dw)
    where.pool().split((h + 15) / 16, [&](std::int64_t begin, std::int64_t end) {
      RG_CALL(where.which(), rms_norm_dw_columns, dy, x, inverse, n, h, begin * 16, std::min(h, end * 16), dw);
    });
  if (dx)
    where.pool().split(n, [&](std::int64_t begin, std::int64_t end) {
      RG_CALL(where.which(), rms_norm_dx_rows, dy + begin * h, x + begin * h, w, inverse + begin, end - begin, h, dx + begin * h);
    });
}

template <class T>
void rope(compute& where, T* x, std::int64_t ldx, std::int64_t n, const std::int32_t* positions, std::int64_t heads, std::int64_t head_dim,
          const float* table, bool inverse) {
  where.pool().split(n, [&](std::int64_t begin, std::int64_t end) {
    RG_CALL(where.which(), rope_rows, x + begin * ldx, ldx, end - begin, positions + begin, heads, head_dim, table, inverse ? -1.f : 1.f);
  });
}

template <class T>
void silu_mul(compute& where, const T* gate_up, std::int64_t n, std::int64_t inter, T* act) {
  where.pool().split(n, [&](std::int64_t begin, std::int64_t end) {
    RG_CALL(where.which(), silu_mul_rows, gate_up + begin * ((inter + 15) / 16 * 32), end - begin, inter, act + begin * inter);
  });
}

template <class T>
void silu_mul_backward(compute& where, const T* gate_up, const float* d_act, std::int64_t n, std::int64_t inter, T* d_gate_up) {
  const std::int64_t wide = (inter + 15) / 16 * 32;
  where.pool().split(n, [&](std::int64_t begin, std::int64_t end) {
    RG_CALL(where.which(), silu_mul_backward_rows, gate_up + begin * wide, d_act + begin * inter, end - begin, inter,
            d_gate_up + begin * wide);
  });
}

template <class T>
void convert(compute& where, const float* x, std::int64_t n, T* y) {
  where.pool().split((n + 15) / 16, [&](std::int64_t begin, std::int64_t end) {
    RG_CALL(where.which(), convert_rows, x + begin * 16, std::min(n, end * 16) - begin * 16, y + begin * 16);
  });
}

double log_exact(double x) {
  // x = m 2^e with m in [sqrt(1/2), sqrt(2)); log m = 2 atanh((m - 1) / (m + 1)) as its series.
  int e = 0;
  double m = std::frexp(x, &e);
  if (m < 0.70710678118654752440) {
    m *= 2;
    --e;
  }
  const double s = (m - 1) / (m + 1), s2 = s * s;
  double sum = 0;
  for (int k = 23; k >= 1; k -= 2)
    sum = sum * s2 + 1.0 / k;
  return 2 * s * sum + double(e) * 0.69314718055994530942;
}

float softmax_stats::log_sum() const { return float(log_exact(double(sum))); }

softmax_stats merge(const softmax_stats* slices, int n) {
  softmax_stats all = slices[0];
  if (n == 1)
    return all;
  for (int i = 1; i < n; ++i)
    all.maximum = std::max(all.maximum, slices[i].maximum);
  all.sum = all.moment = 0;
  for (int i = 0; i < n; ++i) {
    const float shift = std::max(-87.f, slices[i].maximum - all.maximum), scale = exp_negative(slices[i].maximum - all.maximum);
    all.sum += slices[i].sum * scale;
    all.moment += (slices[i].moment + shift * slices[i].sum) * scale;
  }
  return all;
}

softmax_stats softmax_row(isa which, const float* logits, std::int64_t vocab, float temperature, bool moment) {
  softmax_stats s{};
  RG_CALL(which, softmax_row, logits, vocab, temperature, moment, &s.maximum, &s.sum, &s.moment);
  return s;
}

void softmax_rows(compute& where, const float* logits, std::int64_t rows, std::int64_t vocab, float temperature, bool moment,
                  softmax_stats* out) {
  where.pool().split(rows, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t r = begin; r < end; ++r)
      out[r] = softmax_row(where.which(), logits + r * vocab, vocab, temperature, moment);
  });
}

template <class T>
void softmax_backward(compute& where, const float* logits, std::int64_t rows, std::int64_t vocab, float temperature,
                      const softmax_stats* stats, const row_gradient* gradients, T* d_logits) {
  where.pool().split(rows, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t r = begin; r < end; ++r) {
      const row_gradient& g = gradients[r];
      float total = g.elsewhere;
      for (const float d : g.d_logprob)
        total += d;
      const float entropy = g.d_entropy != 0 ? stats[r].entropy() : 0.f;
      RG_CALL(where.which(), softmax_backward_row, logits + r * vocab, vocab, temperature, stats[r].maximum, stats[r].log_sum(), entropy,
              g.d_entropy, total, std::int64_t(g.ids.size()), g.ids.data(), g.d_logprob.data(), d_logits + r * vocab);
    }
  });
}

float exp_negative(float x) {
  static const isa which = best_isa();
  return RG_CALL(which, exp_negative_1, x);
}

#define RG_INSTANCE(T)                                                                                                                     \
  template void embed(compute&, const T*, const std::int32_t*, std::int64_t, std::int64_t, T*);                                            \
  template void rms_norm(compute&, const T*, const T*, float, std::int64_t, std::int64_t, T*, float*);                                     \
  template void rms_norm_backward(compute&, const float*, const T*, const T*, const float*, std::int64_t, std::int64_t, float*, float*);   \
  template void rope(compute&, T*, std::int64_t, std::int64_t, const std::int32_t*, std::int64_t, std::int64_t, const float*, bool);       \
  template void silu_mul(compute&, const T*, std::int64_t, std::int64_t, T*);                                                              \
  template void silu_mul_backward(compute&, const T*, const float*, std::int64_t, std::int64_t, T*);                                       \
  template void convert(compute&, const float*, std::int64_t, T*);                                                                         \
  template void softmax_backward(compute&, const float*, std::int64_t, std::int64_t, float, const softmax_stats*, const row_gradient*, T*);
RG_INSTANCE(bf16)
RG_INSTANCE(float)

} // namespace troupe::kernels
