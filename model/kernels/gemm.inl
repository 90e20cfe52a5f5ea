// GEMM kernels of one instruction set: rows x one panel of 32 columns. Included once a namespace, as vec.inl.
#include "model/kernels/vec.inl"

// float32: one chain of FMA an output, k ascending. A: [k][MR] floats, B: [k][32] floats.
template <int MR>
RG_TGT void f32_rows(int, const char* A, std::int64_t, const char* B, std::int64_t nk, float* C, bool first, const char* pf, std::int64_t pfs) {
  constexpr int NV = (MR > 3 && W == 8) ? 2 : W == 1 ? 4 : 32 / W;
  for (int h = 0; h < 32; h += W * NV) {
    V c[MR][NV];
    for (int r = 0; r < MR; r++)
      for (int j = 0; j < NV; j++)
        c[r][j] = first ? set1(0) : ld(C + r * 32 + h + j * W);
    const float *a = (const float*)A, *b = (const float*)B + h;
    for (std::int64_t k = nk * 32; k; k--, a += MR, b += 32) {
      if (h == 0) {
        _mm_prefetch(pf, _MM_HINT_T1);
        _mm_prefetch(pf + 64, _MM_HINT_T1);
        pf += pfs / 32;
      }
      V w[NV];
      for (int j = 0; j < NV; j++)
        w[j] = ld(b + j * W);
      for (int r = 0; r < MR; r++) {
        V x = set1(a[r]);
        for (int j = 0; j < NV; j++)
          c[r][j] = fma(x, w[j], c[r][j]);
      }
    }
    for (int r = 0; r < MR; r++)
      for (int j = 0; j < NV; j++)
        st(C + r * 32 + h + j * W, c[r][j]);
  }
}

// bf16 weights in TDPBF16PS's order with FMA: an even and an odd chain over 32 k. A: [k][MR] floats (X widened), B: AMX tiles.
template <int MR>
RG_TGT void b32_rows(int, const char* A, std::int64_t, const char* B, std::int64_t nk, float* C, bool first, const char* pf, std::int64_t pfs) {
  constexpr int NV = W == 8 ? 1 : 2;
  const float* a = (const float*)A;
  for (; nk; nk--, a += 32 * MR, B += 2048, pf += pfs, first = false) {
    for (std::int64_t o = 0; o < pfs; o += 64)
      _mm_prefetch(pf + o, _MM_HINT_T1);
    for (int h = 0; h < 32; h += W * NV) {
      V e[MR][NV], o[MR][NV];
      for (int r = 0; r < MR; r++)
        for (int j = 0; j < NV; j++)
          e[r][j] = o[r][j] = set1(0);
      for (int kp = 0; kp < 16; kp++) {
        V we[NV], wo[NV];
        for (int j = 0; j < NV; j++) {
          int n = h + j * W;
          I w = ldi(B + (n / 16) * 1024 + kp * 64 + (n % 16) * 4);
          we[j] = low(w);
          wo[j] = high(w);
        }
        for (int r = 0; r < MR; r++) {
          V xe = set1(a[2 * kp * MR + r]), xo = set1(a[(2 * kp + 1) * MR + r]);
          for (int j = 0; j < NV; j++) {
            e[r][j] = fma(xe, we[j], e[r][j]);
            o[r][j] = fma(xo, wo[j], o[r][j]);
          }
        }
      }
      for (int r = 0; r < MR; r++)
        for (int j = 0; j < NV; j++) {
          float* c = C + r * 32 + h + j * W;
          st(c, add(first ? set1(0) : ld(c), add(e[r][j], o[r][j])));
        }
    }
  }
}

// C [rows][32] -> Y: + bias, round to TO, (silu(first 16) * last 16, rounded), (+ residual, rounded).
template <class TO>
RG_TGT void epilogue(int rows, const float* C, TO* Y, std::int64_t ldy, int cols, const float* bias, const TO* res, std::int64_t ldr, bool gated) {
  const int full = gated ? 16 : 32;
  float bt[32] = {};
  if (bias)
    std::memcpy(bt, bias, sizeof(float) * (gated ? 32 : cols));
  TO rt[32] = {}, yt[32];
  for (int r = 0; r < rows; r++, C += 32, Y += ldy, res += res ? ldr : 0) {
    const TO* rp = res;
    TO* y = Y;
    if (cols < full) {
      y = yt;
      if (res)
        rp = (const TO*)std::memcpy(rt, res, cols * sizeof(TO));
    }
    for (int j = 0; j < full; j += W) {
      V v = ld(C + j);
      if (bias)
        v = add(v, ld(bt + j));
      v = round_as(Y, v);
      if (gated) {
        V u = ld(C + 16 + j);
        if (bias)
          u = add(u, ld(bt + 16 + j));
        v = round_as(Y, mul(round_as(Y, silu(v)), round_as(Y, u)));
      }
      if (res)
        v = round_as(Y, add(v, load_as(rp + j)));
      store_as(y + j, v);
    }
    if (cols < full)
      std::memcpy(Y, yt, cols * sizeof(TO));
  }
}
