// Vector operations, included by each *.inl under RG_W = 16 (AVX-512), 8 (AVX2 and FMA) or 1 (scalar twin).
// Explicit intrinsics only, so that no compiler option decides what is fused. No include guard: once a namespace.
#define OP RG_TGT static inline __attribute__((always_inline, unused))
static constexpr int W = RG_W;
#if RG_W == 16
using V = __m512;
using I = __m512i;
OP V ld(const float* p) { return _mm512_loadu_ps(p); }
OP void st(float* p, V v) { _mm512_storeu_ps(p, v); }
OP V set1(float x) { return _mm512_set1_ps(x); }
OP V add(V a, V b) { return _mm512_add_ps(a, b); }
OP V sub(V a, V b) { return _mm512_sub_ps(a, b); }
OP V mul(V a, V b) { return _mm512_mul_ps(a, b); }
OP V div(V a, V b) { return _mm512_div_ps(a, b); }
OP V fma(V a, V b, V c) { return _mm512_fmadd_ps(a, b, c); }
OP V max(V a, V b) { return _mm512_max_ps(a, b); }
OP V clamp(V x, float lo, float hi) { return _mm512_min_ps(_mm512_max_ps(x, set1(lo)), set1(hi)); }
OP V rint(V x) { return _mm512_roundscale_ps(x, 0); }
OP V pow2(V n) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127)), 23)); }
OP V zero_below(V test, float limit, V v) { return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(test, set1(limit), _CMP_GE_OQ), v); }
OP I ldi(const void* p) { return _mm512_loadu_si512(p); }
OP V low(I w) { return _mm512_castsi512_ps(_mm512_slli_epi32(w, 16)); }                         // even element of a bf16 pair
OP V high(I w) { return _mm512_castsi512_ps(_mm512_and_si512(w, _mm512_set1_epi32(~0xffff))); } // odd element
OP V ldb(const bf16* p) { return low(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p))); }
#ifdef RG_BF16_UNIT
// The processor's own rounding; it takes subnormals as zero, so it is for results of arithmetic only.
OP V rnd(V v) { return low(_mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(v))); }
#else
OP V rnd(V v) { // to bf16 (nearest even), as float; NaN stays NaN
  I u = _mm512_castps_si512(v), odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
  V r = high(_mm512_add_epi32(u, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff))));
  return _mm512_mask_mov_ps(r, _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q), _mm512_castsi512_ps(_mm512_set1_epi32(0x7fc00000)));
}
#endif
OP void stb(bf16* p, V v) { _mm256_storeu_si256((__m256i*)p, _mm512_cvtepi32_epi16(_mm512_srli_epi32(_mm512_castps_si512(v), 16))); }
#elif RG_W == 8
using V = __m256;
using I = __m256i;
OP V ld(const float* p) { return _mm256_loadu_ps(p); }
OP void st(float* p, V v) { _mm256_storeu_ps(p, v); }
OP V set1(float x) { return _mm256_set1_ps(x); }
OP V add(V a, V b) { return _mm256_add_ps(a, b); }
OP V sub(V a, V b) { return _mm256_sub_ps(a, b); }
OP V mul(V a, V b) { return _mm256_mul_ps(a, b); }
OP V div(V a, V b) { return _mm256_div_ps(a, b); }
OP V fma(V a, V b, V c) { return _mm256_fmadd_ps(a, b, c); }
OP V max(V a, V b) { return _mm256_max_ps(a, b); }
OP V clamp(V x, float lo, float hi) { return _mm256_min_ps(_mm256_max_ps(x, set1(lo)), set1(hi)); }
OP V rint(V x) { return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
OP V pow2(V n) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23)); }
OP V zero_below(V test, float limit, V v) { return _mm256_and_ps(_mm256_cmp_ps(test, set1(limit), _CMP_GE_OQ), v); }
OP I ldi(const void* p) { return _mm256_loadu_si256((const __m256i*)p); }
OP V low(I w) { return _mm256_castsi256_ps(_mm256_slli_epi32(w, 16)); }
OP V high(I w) { return _mm256_castsi256_ps(_mm256_and_si256(w, _mm256_set1_epi32(~0xffff))); }
OP V ldb(const bf16* p) { return low(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p))); }
OP V rnd(V v) {
  I u = _mm256_castps_si256(v), odd = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
  V r = high(_mm256_add_epi32(u, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff))));
  return _mm256_blendv_ps(r, _mm256_castsi256_ps(_mm256_set1_epi32(0x7fc00000)), _mm256_cmp_ps(v, v, _CMP_UNORD_Q));
}
OP void stb(bf16* p, V v) {
  I u = _mm256_srli_epi32(_mm256_castps_si256(v), 16);
  _mm_storeu_si128((__m128i*)p, _mm_packus_epi32(_mm256_castsi256_si128(u), _mm256_extracti128_si256(u, 1)));
}
#else
using V = float;
using I = std::uint32_t;
OP std::uint32_t bits(float x) { std::uint32_t u; std::memcpy(&u, &x, 4); return u; }
OP float from_bits(std::uint32_t u) { float x; std::memcpy(&x, &u, 4); return x; }
OP V ld(const float* p) { return *p; }
OP void st(float* p, V v) { *p = v; }
OP V set1(float x) { return x; }
OP V add(V a, V b) { return a + b; }
OP V sub(V a, V b) { return a - b; }
OP V mul(V a, V b) { return a * b; }
OP V div(V a, V b) { return a / b; }
OP V fma(V a, V b, V c) { return std::fmaf(a, b, c); }
OP V max(V a, V b) { return a > b ? a : b; } // as MAXPS: the second where they do not compare
OP V clamp(V x, float lo, float hi) { float y = x > lo ? x : lo; return y < hi ? y : hi; }
OP V rint(V x) { return std::nearbyintf(x); }
OP V pow2(V n) { return from_bits(std::uint32_t(int(n) + 127) << 23); }
OP V zero_below(V test, float limit, V v) { return test >= limit ? v : 0.f; }
OP I ldi(const void* p) { std::uint32_t u; std::memcpy(&u, p, 4); return u; }
OP V low(I w) { return from_bits(w << 16); }
OP V high(I w) { return from_bits(w & 0xffff0000u); }
OP V ldb(const bf16* p) { return from_bits(std::uint32_t(*p) << 16); }
OP V rnd(V v) {
  if (v != v)
    return from_bits(0x7fc00000u);
  const std::uint32_t u = bits(v);
  return from_bits((u + ((u >> 16) & 1u) + 0x7fffu) & 0xffff0000u);
}
OP void stb(bf16* p, V v) { *p = bf16(bits(v) >> 16); }
#endif
OP V load_as(const float* p) { return ld(p); }
OP V load_as(const bf16* p) { return ldb(p); }
OP V round_as(const float*, V v) { return v; }
OP V round_as(const bf16*, V v) { return rnd(v); }
OP void store_as(float* p, V v) { st(p, v); }
OP void store_as(bf16* p, V v) { stb(p, v); } // v must be rounded

// e^x for -87 <= x <= 87: 2^n times a polynomial of degree 6; its coefficients and order are part of the definition.
OP V exp_core(V z) {
  V n = rint(mul(z, set1(1.44269504f)));
  V r = fma(n, set1(-1.42860677e-6f), fma(n, set1(-0.693145752f), z)), p = set1(1.f / 720);
  p = fma(p, r, set1(1.f / 120));
  p = fma(p, r, set1(1.f / 24));
  p = fma(p, r, set1(1.f / 6));
  p = fma(p, r, set1(.5f));
  p = fma(p, r, set1(1.f));
  p = fma(p, r, set1(1.f));
  return mul(p, pow2(n));
}
// e^x for x <= 0 (softmax); exactly 0 below -87, and for -inf.
OP V exp_negative(V x) { return zero_below(x, -87.f, exp_core(clamp(x, -87.f, 87.f))); }
// 1 / (1 + e^-x)'s denominator
OP V one_plus_exp_minus(V x) { return add(set1(1.f), exp_core(clamp(mul(x, set1(-1.f)), -87.f, 87.f))); }
OP V silu(V x) { return div(x, one_plus_exp_minus(x)); }

// Sum of 16 virtual lanes in a fixed tree: (l, l+8), (l, l+4), (l, l+2), (l, l+1).
OP float tree16(const float* t) {
  float a[8];
  for (int i = 0; i < 8; ++i)
    a[i] = t[i] + t[i + 8];
  for (int n = 4; n; n /= 2)
    for (int i = 0; i < n; ++i)
      a[i] += a[i + n];
  return a[0];
}
