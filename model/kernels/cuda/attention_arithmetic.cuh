#pragma once
#include <cstdint>
#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include <math_constants.h>

// What decides the bits of a row of attention; every kernel for bf16 shares it (docs/numerics.md).
// For a query row at position p (keys 0 .. p): keys go in blocks of 64, blocks in splits of 256 keys, both aligned to key 0. In a split:
// online softmax from an empty state, blocks ascending (scores, softmax_row, add_values below). Splits are merged ascending into an empty
// state (merge_factors, merge_value), then finish(). Every multiplication and addition is an intrinsic, so that no flag contracts
// them differently. A block or a split in which a row sees no key leaves the row's state as it was, bit for bit.
namespace troupe::cuda::attention {

using bf16 = __nv_bfloat16;
constexpr int block_keys = 64, split_keys = 256, blocks_per_split = split_keys / block_keys;

__device__ __forceinline__ float ex2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ __forceinline__ float lg2(float x) {
  float y;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ __forceinline__ void load_matrix(std::uint32_t (&r)[4], std::uint32_t a) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(a)
               : "memory");
}
__device__ __forceinline__ void load_matrix_transposed(std::uint32_t (&r)[4], std::uint32_t a) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(a)
               : "memory");
}
__device__ __forceinline__ void mma(float (&c)[4], const std::uint32_t (&a)[4], std::uint32_t b0, std::uint32_t b1) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
__device__ __forceinline__ void copy_16(std::uint32_t dst, const void* src, bool valid) { // not valid: 16 zero bytes
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(dst), "l"(src), "r"(valid ? 16 : 0) : "memory");
}
__device__ __forceinline__ void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int N>
__device__ __forceinline__ void copy_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}
__device__ __forceinline__ std::uint32_t pack(float lo, float hi) {
  __nv_bfloat162 v = __floats2bfloat162_rn(lo, hi);
  return *reinterpret_cast<std::uint32_t*>(&v);
}

// A warp holds 16 rows. Lane: rows g = lane/4 and g+8, columns 8j + 2*(lane%4) + {0,1}.
// A shared-memory tile of R rows is [D/64][R][64] bf16 with 16-byte chunk c of a 128-byte row r at c ^ (r & 7):
// free of bank conflicts for ldmatrix, and what wgmma calls the 128-byte swizzle.
template <int R>
__device__ __forceinline__ std::uint32_t tile_offset(int r, int ch) {
  return (ch >> 3) * (R * 128) + r * 128 + (((ch ^ r) & 7) << 4);
}
template <int D>
struct state {
  float o[D / 8][4], m[2], l[2];
  __device__ __forceinline__ void reset() {
#pragma unroll
    for (int i = 0; i < D / 2; ++i)
      o[i / 4][i % 4] = 0.f;
    m[0] = m[1] = -CUDART_INF_F, l[0] = l[1] = 0.f;
  }
};

// s[j0 .. j0+KS/8) = Q K^T for the KS keys at k_s; sums over D ascend in steps of 16. QR: rows of the whole Q tile.
template <int D, int QR, int KS>
__device__ __forceinline__ void scores(float (&s)[8][4], int j0, std::uint32_t q_s, std::uint32_t k_s, int lane) {
  const std::uint32_t qr = q_s + (lane & 15) * 128, qx = ((lane >> 4) ^ (lane & 7)) << 4;
  const std::uint32_t kr = k_s + ((lane & 7) + ((lane >> 4) << 3)) * 128, kx = (((lane >> 3) & 1) ^ (lane & 7)) << 4;
#pragma unroll
  for (int i = 0; i < KS / 2; ++i)
    s[j0 + i / 4][i % 4] = 0.f;
#pragma unroll
  for (int i = 0; i < D / 16; ++i) {
    std::uint32_t a[4], b[4];
    load_matrix(a, qr + (i >> 2) * QR * 128 + (qx ^ ((i & 3) << 5)));
#pragma unroll
    for (int j = 0; j < KS / 8; j += 2) {
      load_matrix(b, kr + (i >> 2) * KS * 128 + j * 1024 + (kx ^ ((i & 3) << 5)));
      mma(s[j0 + j], a, b[0], b[1]), mma(s[j0 + j + 1], a, b[2], b[3]);
    }
  }
}
// Scores of keys after the row's position become -inf; key0: key of the lane's first column.
__device__ __forceinline__ void mask_scores(float (&s)[8][4], int key0, const int (&pos)[2]) {
#pragma unroll
  for (int i = 0; i < 32; ++i)
    if (key0 + i / 4 * 8 + i % 2 > pos[i % 4 / 2])
      s[i / 4][i % 4] = -CUDART_INF_F;
}
// Largest score of row h (any order gives the same).
__device__ __forceinline__ float row_max(const float (&s)[8][4], int h) {
  float mx = fmaxf(s[0][2 * h], s[0][2 * h + 1]);
#pragma unroll
  for (int j = 1; j < 8; ++j)
    mx = fmaxf(mx, fmaxf(s[j][2 * h], s[j][2 * h + 1]));
  mx = fmaxf(mx, __shfl_xor_sync(~0u, mx, 1));
  return fmaxf(mx, __shfl_xor_sync(~0u, mx, 2));
}
// One online-softmax step of row h over a block of 64 scores with maximum mx; c = scale * log2(e).
// Leaves P in s and returns the factor for O.
__device__ __forceinline__ float softmax_row(float& m, float& l, float (&s)[8][4], int h, float mx, float c) {
  const float mn = fmaxf(m, mx), ms = mn == -CUDART_INF_F ? 0.f : mn;
  const float alpha = ex2(__fmul_rn(__fsub_rn(m, ms), c)); // exactly 1 when the maximum stays
  const float mc = -__fmul_rn(ms, c);
  float sum0 = 0.f, sum1 = 0.f;
#pragma unroll
  for (int j = 0; j < 8; ++j) {
    float &x = s[j][2 * h], &y = s[j][2 * h + 1];
    x = ex2(__fmaf_rn(x, c, mc)), y = ex2(__fmaf_rn(y, c, mc));
    sum0 = __fadd_rn(sum0, x), sum1 = __fadd_rn(sum1, y);
  }
  m = mn, l = __fmaf_rn(l, alpha, __fadd_rn(sum0, sum1)); // l: this lane's columns only
  return alpha;
}
template <int D>
__device__ __forceinline__ void softmax_block(state<D>& st, float (&s)[8][4], float (&alpha)[2], float c, bool mask, int key0,
                                              const int (&pos)[2]) {
  if (mask)
    mask_scores(s, key0, pos);
#pragma unroll
  for (int h = 0; h < 2; ++h)
    alpha[h] = softmax_row(st.m[h], st.l[h], s, h, row_max(s, h), c);
}
// P as bf16, in the layout of an A operand.
__device__ __forceinline__ void pack_probabilities(std::uint32_t (&p)[4][4], const float (&s)[8][4]) {
#pragma unroll
  for (int i = 0; i < 16; ++i)
    p[i / 4][i % 4] = pack(s[i / 2][2 * (i % 2)], s[i / 2][2 * (i % 2) + 1]);
}
// O *= alpha, before add_values.
template <int D>
__device__ __forceinline__ void rescale(state<D>& st, const float (&alpha)[2]) {
#pragma unroll
  for (int i = 0; i < D / 2; ++i)
    st.o[i / 4][i % 4] = __fmul_rn(st.o[i / 4][i % 4], alpha[i % 4 / 2]);
}
// O += P V for the KS keys at v_s and D columns from 16 * n0 on, ascending in steps of 16 keys.
template <int D, int KS>
__device__ __forceinline__ void add_values(state<D>& st, const std::uint32_t (&p)[4][4], int k0, std::uint32_t v_s, int lane, int n0 = 0) {
  const std::uint32_t vr = v_s + (lane & 15) * 128, vx = ((lane >> 4) ^ (lane & 7)) << 4;
#pragma unroll
  for (int k = 0; k < KS / 16; ++k)
#pragma unroll
    for (int n = 0; n < D / 16; ++n) {
      std::uint32_t b[4];
      load_matrix_transposed(b, vr + ((n0 + n) >> 2) * KS * 128 + k * 2048 + (vx ^ (((n0 + n) & 3) << 5)));
      mma(st.o[2 * n], p[k0 + k], b[0], b[1]), mma(st.o[2 * n + 1], p[k0 + k], b[2], b[3]);
    }
}
// Row sum over the four lanes that share a row.
__device__ __forceinline__ float quad_sum(float l) {
  l = __fadd_rn(l, __shfl_xor_sync(~0u, l, 1));
  return __fadd_rn(l, __shfl_xor_sync(~0u, l, 2));
}
// Merge a split (m, l, o) into the running (M, L, O): coefficients and row sum, then each value.
__device__ __forceinline__ void merge_factors(float& M, float& L, float m, float l, float c, float& a, float& b) {
  const float mn = fmaxf(M, m), ms = mn == -CUDART_INF_F ? 0.f : mn;
  a = ex2(__fmul_rn(__fsub_rn(M, ms), c)), b = ex2(__fmul_rn(__fsub_rn(m, ms), c));
  L = __fmaf_rn(l, b, __fmul_rn(L, a)), M = mn;
}
__device__ __forceinline__ float merge_value(float O, float a, float o, float b) { return __fmaf_rn(o, b, __fmul_rn(O, a)); }
// Output value (the + 0 turns -0 into +0) and log-sum-exp.
__device__ __forceinline__ float finish(float O, float inv) { return __fmaf_rn(O, inv, 0.f); }
__device__ __forceinline__ float finish_lse(float M, float L, float scale) { return __fmaf_rn(M, scale, __fmul_rn(lg2(L), CUDART_LN2_F)); }

// The running merge of a prefill warp's 16 rows, and the store of its result.
template <int D>
struct merged {
  float O[D / 8][4], M[2], L[2], a[2], b[2];
  __device__ __forceinline__ merged() {
#pragma unroll
    for (int i = 0; i < D / 2; ++i)
      O[i / 4][i % 4] = 0.f;
    M[0] = M[1] = -CUDART_INF_F, L[0] = L[1] = 0.f;
  }
  __device__ __forceinline__ void factors(const state<D>& st, float c) {
#pragma unroll
    for (int h = 0; h < 2; ++h)
      merge_factors(M[h], L[h], st.m[h], quad_sum(st.l[h]), c, a[h], b[h]);
  }
  __device__ __forceinline__ void values(const state<D>& st) {
#pragma unroll
    for (int i = 0; i < D / 2; ++i)
      O[i / 4][i % 4] = merge_value(O[i / 4][i % 4], a[i % 4 / 2], st.o[i / 4][i % 4], b[i % 4 / 2]);
  }
  // out, lse: of the first row and this head; rows: how many of the 16 exist.
  __device__ __forceinline__ void store(bf16* out, std::int64_t stride, float* lse, float scale, int rows, int lane) const {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int r = h * 8 + lane / 4;
      if (r >= rows)
        continue;
      const float inv = __frcp_rn(L[h]);
      std::uint32_t* const to = reinterpret_cast<std::uint32_t*>(out + r * stride) + (lane & 3);
#pragma unroll
      for (int i = 0; i < D / 8; ++i)
        to[i * 4] = pack(finish(O[i][2 * h], inv), finish(O[i][2 * h + 1], inv));
      if (lse && (lane & 3) == 0)
        lse[r] = finish_lse(M[h], L[h], scale);
    }
  }
};

} // namespace troupe::cuda::attention
