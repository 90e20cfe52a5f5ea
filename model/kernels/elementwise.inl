// Row kernels of one instruction set. Included once a namespace, as vec.inl. Sums over a row: 16 virtual lanes and tree16.
#include "model/kernels/vec.inl"
static constexpr int L = 16 / W; // vectors of 16 virtual lanes

// Elements j .. j+W-1 of a row of n; `fill` past its end.
template <class T> OP V ld_n(const T* p, std::int64_t j, std::int64_t n, float fill = 0.f) {
  if (j + W <= n)
    return load_as(p + j);
  float t[W];
  for (int i = 0; i < W; ++i) {
    if constexpr (sizeof(T) == 2)
      t[i] = j + i < n ? widen(p[j + i]) : fill;
    else
      t[i] = j + i < n ? p[j + i] : fill;
  }
  return ld(t);
}
template <class T> OP void st_n(T* p, std::int64_t j, std::int64_t n, V v) {
  if (j + W <= n) {
    store_as(p + j, v);
    return;
  }
  T t[W];
  store_as(t, v);
  for (int i = 0; j + i < n; ++i)
    p[j + i] = t[i];
}
OP float reduce(const V* lanes) {
  float t[16];
  for (int i = 0; i < L; ++i)
    st(t + i * W, lanes[i]);
  return tree16(t);
}

template <class T>
RG_TGT void rms_norm_rows(const T* x, const T* w, float eps, std::int64_t rows, std::int64_t h, T* y, float* inverse) {
  for (std::int64_t r = 0; r < rows; ++r, x += h, y += h) {
    V acc[L];
    for (int i = 0; i < L; ++i)
      acc[i] = set1(0.f);
    for (std::int64_t j = 0; j < h; j += 16)
      for (int i = 0; i < L; ++i) {
        V v = ld_n(x, j + i * W, h);
        acc[i] = fma(v, v, acc[i]);
      }
    const float inv = 1.f / std::sqrt(reduce(acc) / float(h) + eps);
    if (inverse)
      inverse[r] = inv;
    for (std::int64_t j = 0; j < h; j += W)
      st_n(y, j, h, round_as(y, mul(ld_n(w, j, h), round_as(y, mul(ld_n(x, j, h), set1(inv))))));
  }
}

// dx += gradient of rms_norm with respect to x: inv * (g - xhat * mean(g * xhat)), g = dy * w.
template <class T>
RG_TGT void rms_norm_dx_rows(const float* dy, const T* x, const T* w, const float* inverse, std::int64_t rows, std::int64_t h, float* dx) {
  for (std::int64_t r = 0; r < rows; ++r, x += h, dy += h, dx += h) {
    V acc[L];
    for (int i = 0; i < L; ++i)
      acc[i] = set1(0.f);
    const V inv = set1(inverse[r]);
    for (std::int64_t j = 0; j < h; j += 16)
      for (int i = 0; i < L; ++i)
        acc[i] = fma(mul(ld_n(dy, j + i * W, h), ld_n(w, j + i * W, h)), mul(ld_n(x, j + i * W, h), inv), acc[i]);
    const V mean = set1(reduce(acc) / float(h));
    for (std::int64_t j = 0; j < h; j += W) {
      V g = mul(ld_n(dy, j, h), ld_n(w, j, h)), xhat = mul(ld_n(x, j, h), inv);
      st_n(dx, j, h, add(ld_n(dx, j, h), mul(inv, sub(g, mul(xhat, mean)))));
    }
  }
}

// dw[c] += sum over rows of dy * xhat, for columns c0 .. c1-1.
template <class T>
RG_TGT void rms_norm_dw_columns(const float* dy, const T* x, const float* inverse, std::int64_t rows, std::int64_t h, std::int64_t c0,
                                std::int64_t c1, float* dw) {
  for (std::int64_t r = 0; r < rows; ++r)
    for (std::int64_t j = c0; j < c1; j += W)
      st_n(dw, j, c1, fma(ld_n(dy + r * h, j, c1), mul(ld_n(x + r * h, j, c1), set1(inverse[r])), ld_n(dw, j, c1)));
}

// Rotates the halves of each head: (a, b) -> (a cos - b sin, b cos + a sin). table: [position][head_dim], cosines then sines.
template <class T>
RG_TGT void rope_rows(T* x, std::int64_t ldx, std::int64_t rows, const std::int32_t* positions, std::int64_t heads, std::int64_t d,
                      const float* table, float sign) {
  const std::int64_t half = d / 2;
  for (std::int64_t r = 0; r < rows; ++r, x += ldx) {
    const float *cosines = table + positions[r] * d, *sines = cosines + half;
    for (std::int64_t head = 0; head < heads; ++head) {
      T *a = x + head * d, *b = a + half;
      for (std::int64_t j = 0; j < half; j += W) {
        V va = ld_n(a, j, half), vb = ld_n(b, j, half), c = ld_n(cosines, j, half), s = mul(ld_n(sines, j, half), set1(sign));
        V ra = sub(mul(va, c), mul(vb, s)), rb = add(mul(vb, c), mul(va, s));
        st_n(a, j, half, round_as(a, ra));
        st_n(b, j, half, round_as(b, rb));
      }
    }
  }
}

// gate_up: [rows][ceil(n/16) * 32], 16 of gate then 16 of up in turn. act = silu(gate) rounded, times up, rounded: the GEMM's gating.
template <class T> RG_TGT void silu_mul_rows(const T* gate_up, std::int64_t rows, std::int64_t n, T* act) {
  const std::int64_t ld_in = (n + 15) / 16 * 32;
  for (std::int64_t r = 0; r < rows; ++r, gate_up += ld_in, act += n)
    for (std::int64_t j = 0; j < n; j += W) {
      const T* g = gate_up + j / 16 * 32 + j % 16;
      st_n(act, j, n, round_as(act, mul(round_as(act, silu(load_as(g))), load_as(g + 16))));
    }
}

// d_gate = da * up * s * (1 + g (1 - s)), d_up = da * silu(g), s = sigmoid(g); the same interleaving.
template <class T>
RG_TGT void silu_mul_backward_rows(const T* gate_up, const float* d_act, std::int64_t rows, std::int64_t n, T* d_gate_up) {
  const std::int64_t ld_in = (n + 15) / 16 * 32;
  for (std::int64_t r = 0; r < rows; ++r, gate_up += ld_in, d_act += n, d_gate_up += ld_in)
    for (std::int64_t j = 0; j < ld_in / 2; j += W) { // the padding gets zeros
      const std::int64_t at = j / 16 * 32 + j % 16;
      V g = load_as(gate_up + at), u = load_as(gate_up + at + 16), da = ld_n(d_act, j, n);
      V s = div(set1(1.f), one_plus_exp_minus(g));
      V dg = mul(mul(da, u), mul(s, add(set1(1.f), mul(g, sub(set1(1.f), s)))));
      store_as(d_gate_up + at, round_as(d_gate_up, dg));
      store_as(d_gate_up + at + 16, round_as(d_gate_up, mul(da, mul(g, s))));
    }
}

template <class T> RG_TGT void convert_rows(const float* x, std::int64_t n, T* y) {
  for (std::int64_t j = 0; j < n; j += W)
    st_n(y, j, n, round_as(y, ld_n(x, j, n)));
}

// Largest value, sum of e^(z - max) and sum of e^(z - max) (z - max) of a row, z = logits / temperature. 4 x 16 virtual lanes.
RG_TGT static void softmax_row(const float* logits, std::int64_t n, float temperature, bool moment, float* maximum, float* sum, float* first_moment) {
  const V t = set1(temperature), lowest = set1(-std::numeric_limits<float>::infinity());
  V m = lowest;
  for (std::int64_t j = 0; j < n; j += W)
    m = max(m, ld_n(logits, j, n, -std::numeric_limits<float>::infinity()));
  float lane[W], best = -std::numeric_limits<float>::infinity();
  st(lane, div(m, t));
  for (float v : lane)
    best = v > best ? v : best;
  V acc[4][L], mom[4][L];
  for (auto& a : acc)
    for (auto& v : a)
      v = set1(0.f);
  for (auto& a : mom)
    for (auto& v : a)
      v = set1(0.f);
  const V b = set1(best);
  for (std::int64_t j = 0; j < n; j += 64)
    for (int q = 0; q < 4; ++q)
      for (int i = 0; i < L; ++i) {
        V z = sub(div(ld_n(logits, j + q * 16 + i * W, n, -std::numeric_limits<float>::infinity()), t), b);
        V e = exp_negative(z);
        acc[q][i] = add(acc[q][i], e);
        if (moment)
          mom[q][i] = fma(e, clamp(z, -87.f, 87.f), mom[q][i]);
      }
  for (int i = 0; i < L; ++i) {
    acc[0][i] = add(add(acc[0][i], acc[1][i]), add(acc[2][i], acc[3][i]));
    mom[0][i] = add(add(mom[0][i], mom[1][i]), add(mom[2][i], mom[3][i]));
  }
  *maximum = best;
  *sum = reduce(acc[0]);
  *first_moment = reduce(mom[0]);
}

// d loss / d logits of one row: (sum_t d_t (onehot_t - p) - d_entropy p (log p + H)) / temperature, log p = z - max - log_sum.
// ids must differ; total = sum of d.
template <class T>
RG_TGT void softmax_backward_row(const float* logits, std::int64_t n, float temperature, float maximum, float log_sum, float entropy,
                                 float d_entropy, float total, std::int64_t n_targets, const std::int32_t* ids, const float* d, T* d_logits) {
  const V t = set1(temperature), shift = set1(maximum), ls = set1(log_sum);
  const V dl = set1(-total), de = set1(-d_entropy), h = set1(entropy);
  for (std::int64_t j = 0; j < n; j += W) {
    V lp = sub(sub(div(ld_n(logits, j, n), t), shift), ls), p = exp_negative(lp);
    V g = mul(p, fma(de, add(clamp(lp, -87.f, 0.f), h), dl));
    st_n(d_logits, j, n, round_as(d_logits, div(g, t)));
  }
  for (std::int64_t i = 0; i < n_targets; ++i) { // these elements again, with their onehot term, before rounding
    V lp = sub(sub(div(set1(logits[ids[i]]), t), shift), ls), p = exp_negative(lp);
    V g = add(set1(d[i]), mul(p, fma(de, add(clamp(lp, -87.f, 0.f), h), dl)));
    T rounded[W];
    store_as(rounded, round_as(rounded, div(g, t)));
    d_logits[ids[i]] = rounded[0];
  }
}

// Scalar access to the shared e^x, for callers outside.
RG_TGT static float exp_negative_1(float x) {
  float t[W];
  st(t, exp_negative(set1(x)));
  return t[0];
}
