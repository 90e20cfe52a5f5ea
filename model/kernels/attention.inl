// Row kernels of attention for one instruction set. Included once a namespace, as vec.inl.
#include "model/kernels/vec.inl"
static constexpr int L = 16 / W;

OP float reduce(const V* lanes) {
  float t[16];
  for (int i = 0; i < L; ++i)
    st(t + i * W, lanes[i]);
  return tree16(t);
}

// Scores of one row, in pieces of 32 keys `stride` floats apart -> e^(scale s - max) in out, pieces alike, rounded to its type; out may
// be S. Returns their sum before rounding: 16 virtual lanes over keys ascending, then tree16. Keys before `first` and from n_keys on
// become 0, which is what the same row in whole blocks would hold.
// The maximum may be taken in any order.
template <class T>
RG_TGT static float softmax_scores(float* S, std::int64_t n_blocks, std::int64_t stride, std::int64_t first, std::int64_t n_keys, float scale, T* out) {
  const std::int64_t used = (n_keys + 31) / 32;
  float* last = S + (used - 1) * stride;
  for (std::int64_t j = n_keys - (used - 1) * 32; j < 32; ++j)
    last[j] = -std::numeric_limits<float>::infinity();
  for (std::int64_t j = 0; j < first; ++j)
    S[j / 32 * stride + j % 32] = -std::numeric_limits<float>::infinity();
  V m = set1(-std::numeric_limits<float>::infinity());
  for (std::int64_t b = 0; b < used; ++b)
    for (int j = 0; j < 32; j += W)
      m = max(m, mul(ld(S + b * stride + j), set1(scale)));
  float lane[W], best = -std::numeric_limits<float>::infinity();
  st(lane, m);
  for (float v : lane)
    best = v > best ? v : best;
  V acc[L];
  for (int i = 0; i < L; ++i)
    acc[i] = set1(0.f);
  const V shift = set1(best);
  for (std::int64_t b = 0; b < used; ++b)
    for (int j = 0; j < 32; j += 16)
      for (int i = 0; i < L; ++i) {
        const std::int64_t at = b * stride + j + i * W;
        V p = exp_negative(sub(mul(ld(S + at), set1(scale)), shift));
        store_as(out + at, round_as(out, p));
        acc[i] = add(acc[i], p);
      }
  for (std::int64_t b = used; b < n_blocks; ++b)
    std::memset(out + b * stride, 0, 32 * sizeof(T));
  return reduce(acc);
}

template <class T> RG_TGT void divide_row(const float* sums, float l, std::int64_t d, T* out) {
  const V by = set1(l);
  std::int64_t j = 0;
  for (; j + W <= d; j += W)
    store_as(out + j, round_as(out, div(ld(sums + j), by)));
  for (; j < d; ++j) {
    float t[W] = {};
    t[0] = sums[j];
    T o[W];
    store_as(o, round_as(o, div(ld(t), by)));
    out[j] = o[0];
  }
}

// 32 probabilities of a row, rounded to T's values, as the micro-kernel's left operand: column r of [32][rows] floats.
template <class T> RG_TGT void round_scores(const float* p, float* out) {
  const T* type = nullptr;
  for (int j = 0; j < 32; j += W)
    st(out + j, round_as(type, ld(p + j)));
}

// y[0..n) += a * x, n a multiple of 16.
[[maybe_unused]] RG_TGT static void axpy(float a, const float* x, std::int64_t n, float* y) {
  const V va = set1(a);
  for (std::int64_t j = 0; j < n; j += W)
    st(y + j, fma(va, ld(x + j), ld(y + j)));
}
[[maybe_unused]] RG_TGT static float dot(const float* x, const float* y, std::int64_t n) {
  V acc[L];
  for (int i = 0; i < L; ++i)
    acc[i] = set1(0.f);
  for (std::int64_t j = 0; j < n; j += 16)
    for (int i = 0; i < L; ++i)
      acc[i] = fma(ld(x + j + i * W), ld(y + j + i * W), acc[i]);
  return reduce(acc);
}
// From scores and dO V^T of one row: p (normalised) and dS = p (dP - delta) scale, both in place; keys before `first` and from n_keys on
// are 0.
[[maybe_unused]] RG_TGT static void backward_scores(float* s, float* dp, std::int64_t padded, std::int64_t first, std::int64_t n_keys, float scale,
                                                       float delta) {
  for (std::int64_t j = 0; j < first; ++j)
    s[j] = -std::numeric_limits<float>::infinity();
  for (std::int64_t j = n_keys; j < padded; ++j)
    s[j] = -std::numeric_limits<float>::infinity();
  float best = -std::numeric_limits<float>::infinity();
  for (std::int64_t j = first; j < n_keys; ++j)
    best = s[j] > best ? s[j] : best;
  V acc[L];
  for (int i = 0; i < L; ++i)
    acc[i] = set1(0.f);
  const V shift = set1(best * scale), sc = set1(scale);
  for (std::int64_t j = 0; j < padded; j += 16)
    for (int i = 0; i < L; ++i) {
      V p = exp_negative(sub(mul(ld(s + j + i * W), sc), shift));
      st(s + j + i * W, p);
      acc[i] = add(acc[i], p);
    }
  const V inverse = set1(1.f / reduce(acc));
  for (std::int64_t j = 0; j < padded; j += W) {
    V p = mul(ld(s + j), inverse);
    st(s + j, p);
    st(dp + j, mul(mul(p, sub(ld(dp + j), set1(delta))), sc));
  }
}
