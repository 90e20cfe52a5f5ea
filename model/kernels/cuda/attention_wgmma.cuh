#pragma once
#include <cstdint>

// Hopper's wgmma on bf16 tiles of 64 rows as tile_offset() lays them out.
namespace troupe::cuda::attention {

// Accumulators of m64nNk16: a warp's 16 rows, laid out as in state<D>, so that everything else is shared.
__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int N>
__device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}
template <int N>
__device__ __forceinline__ void keep(float (&x)[N][4]) { // the values exist only from here on
#pragma unroll
  for (int i = 0; i < N; ++i)
    asm volatile("" : "+f"(x[i][0]), "+f"(x[i][1]), "+f"(x[i][2]), "+f"(x[i][3])::"memory");
}
__device__ __forceinline__ void keep(std::uint32_t (&x)[4][4]) { // an operand: its registers are read up to here
#pragma unroll
  for (int i = 0; i < 4; ++i)
    asm volatile("" : "+r"(x[i][0]), "+r"(x[i][1]), "+r"(x[i][2]), "+r"(x[i][3])::"memory");
}
// Descriptor of a 128-byte-swizzled tile; between: bytes between groups of 64 columns (only read for V).
__device__ __forceinline__ std::uint64_t descriptor(std::uint32_t a, std::uint32_t between) {
  return std::uint64_t((a & 0x3ffff) >> 4) | std::uint64_t(between >> 4) << 16 | std::uint64_t(1024 >> 4) << 32 | 1ull << 62;
}

// clang-format off
#define F4(x, i) "+f"(x[i][0]), "+f"(x[i][1]), "+f"(x[i][2]), "+f"(x[i][3])
#define F32(x, i) F4(x, i), F4(x, i + 1), F4(x, i + 2), F4(x, i + 3), F4(x, i + 4), F4(x, i + 5), F4(x, i + 6), F4(x, i + 7)
#define R32 "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
__device__ __forceinline__ void wgmma_scores(float (&s)[8][4], std::uint64_t a, std::uint64_t b, int add) { // A, B from shared memory
  asm volatile("{.reg .pred p; setp.ne.b32 p, %34, 0; wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 " R32 "}, %32, %33, p, 1, 1, 0, 0;}"
               : F32(s, 0) : "l"(a), "l"(b), "r"(add));
}
__device__ __forceinline__ void wgmma_values(float (&o)[8][4], const std::uint32_t (&a)[4], std::uint64_t b) { // A from registers
  asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 " R32 "}, {%32,%33,%34,%35}, %36, 1, 1, 1, 1;"
               : F32(o, 0) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}
__device__ __forceinline__ void wgmma_values(float (&o)[16][4], const std::uint32_t (&a)[4], std::uint64_t b) {
  asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 " R32
               ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63}, "
               "{%64,%65,%66,%67}, %68, 1, 1, 1, 1;"
               : F32(o, 0), F32(o, 8) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}
#undef F4
#undef F32
#undef R32
// clang-format on

// s = Q K^T, as scores() computes it.
template <int D>
__device__ __forceinline__ void issue_scores(float (&s)[8][4], std::uint64_t q, std::uint64_t k) {
  wgmma_fence();
#pragma unroll
  for (int i = 0; i < D / 16; ++i)
    wgmma_scores(s, q + (i >> 2) * 64 * 8 + (i & 3) * 2, k + (i >> 2) * 64 * 8 + (i & 3) * 2, i > 0);
  wgmma_commit();
}
// O += P V, as add_values() computes it.
template <int N>
__device__ __forceinline__ void issue_values(float (&o)[N][4], const std::uint32_t (&p)[4][4], std::uint64_t v) {
  wgmma_fence();
#pragma unroll
  for (int k = 0; k < 4; ++k)
    wgmma_values(o, p[k], v + k * 128);
  wgmma_commit();
}

} // namespace troupe::cuda::attention
