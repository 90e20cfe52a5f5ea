// Includes RG_SOURCE once an instruction set, each time in a namespace of its own: v16 (AVX-512), v8 (AVX2 and FMA), v1 (scalar);
// with RG_BF16_UNIT_TOO also v16b, AVX-512 whose results are rounded by the processor's bf16 unit, as beside AMX.
#define RG_W 16
#define RG_TGT __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")))
namespace v16 {
#include RG_SOURCE
} // namespace v16
#undef RG_TGT
#undef OP
#ifdef RG_BF16_UNIT_TOO
#define RG_TGT __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")))
#define RG_BF16_UNIT
namespace v16b {
#include RG_SOURCE
} // namespace v16b
#undef RG_BF16_UNIT
#undef RG_BF16_UNIT_TOO
#undef RG_TGT
#undef OP
#endif
#undef RG_W
#define RG_W 8
#define RG_TGT __attribute__((target("avx2,fma")))
namespace v8 {
#include RG_SOURCE
} // namespace v8
#undef RG_W
#undef RG_TGT
#undef OP
#define RG_W 1
#define RG_TGT
namespace v1 {
#include RG_SOURCE
} // namespace v1
#undef RG_W
#undef RG_TGT
#undef OP
#undef RG_SOURCE

// Calls the kernel of the instruction set.
#define RG_CALL(which, f, ...)                                                                                                             \
  ((which) == isa::scalar ? v1::f(__VA_ARGS__) : (which) == isa::avx2 ? v8::f(__VA_ARGS__) : v16::f(__VA_ARGS__))
