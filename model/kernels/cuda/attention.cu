#include "model/kernels/cuda/attention_kernels.hpp"
#include "model/kernels/cuda/check.cuh"
#include <algorithm>
#include <cmath>
#include <cstring>

namespace troupe::cuda {
namespace {

using attention::arguments;

constexpr std::size_t counter_bytes = attention::max_units * sizeof(int);
constexpr int split_keys = 256;

std::int64_t n_splits(int max_keys) { return (std::int64_t(max_keys) + split_keys - 1) / split_keys; }

arguments checked(dtype type, const attention_shape& shape, const attention_plan& plan, const void* qkv, const void* cache, void* out,
                  float* lse) {
  attention::check_attention(type, shape);
  if (plan.n_single > plan.n_segments || plan.n_single > plan.n_tokens)
    throw error(errc::bad_shape, "attention: " + std::to_string(plan.n_single) + " segments of one row, but there are " +
                                     std::to_string(plan.n_segments) + " segments and " + std::to_string(plan.n_tokens) + " rows");
  return {.shape = shape,
          .plan = plan,
          .qkv = qkv,
          .cache = cache,
          .out = out,
          .lse = lse,
          .scale = 1.f / std::sqrt(float(shape.head_dim)),
          .row = shape.row()};
}

} // namespace

namespace attention {

void check_attention(dtype type, const attention_shape& shape) {
  if (type != dtype::f32 && type != dtype::bf16)
    throw error(errc::unsupported, "attention on the GPU takes F32 and BF16, not " + std::string(name_of(type)));
  if (shape.head_dim < 1 || shape.head_dim > 256)
    throw error(errc::unsupported, "attention on the GPU: head_dim is " + std::to_string(shape.head_dim) + "; it takes 1 to 256");
  if (shape.n_kv_heads < 1 || shape.n_heads < 1 || shape.n_heads % shape.n_kv_heads != 0)
    throw error(errc::bad_shape, "attention: " + std::to_string(shape.n_heads) + " heads are no multiple of " +
                                     std::to_string(shape.n_kv_heads) + " key/value heads");
}

bool has_fast_kernels(dtype type, const attention_shape& shape) {
  return type == dtype::bf16 && (shape.head_dim == 64 || shape.head_dim == 128) && shape.n_heads <= 16 * shape.n_kv_heads &&
         shape.window == 0;
}

} // namespace attention

std::size_t attention_scratch_bytes(const attention_shape& shape, int max_segments, int max_keys) {
  return counter_bytes + std::size_t(max_segments) * shape.n_heads * n_splits(max_keys) * (shape.head_dim + 2) * sizeof(float);
}

void attend(dtype type, const attention_shape& shape, const attention_plan& plan, const void* qkv, const void* cache, void* out, float* lse,
            void* scratch, stream where) {
  arguments args = checked(type, shape, plan, qkv, cache, out, lse);
  if (!attention::has_fast_kernels(type, shape))
    return attention::simple(type, args, where);
  const std::int64_t units = std::int64_t(plan.n_single) * shape.n_kv_heads;
  if (units > attention::max_units)
    throw error(errc::unsupported, "attention: " + std::to_string(plan.n_single) + " sequences decode at once; it takes " +
                                       std::to_string(attention::max_units / shape.n_kv_heads));
  args.counters = static_cast<int*>(scratch);
  args.parts = reinterpret_cast<float*>(static_cast<std::byte*>(scratch) + counter_bytes);
  args.ml = args.parts + units * n_splits(plan.max_keys) * (shape.n_heads / shape.n_kv_heads) * shape.head_dim;
  if (plan.n_single > 0)
    attention::decode(args, where);
  if (plan.n_segments > plan.n_single && plan.max_rows > 0) {
#ifdef TROUPE_WGMMA
    attention::prefill_wgmma(args, where);
#else
    attention::prefill_mma(args, where);
#endif
  }
}

void attend_reference(dtype type, const attention_shape& shape, const attention_plan& plan, const void* qkv, const void* cache, void* out,
                      float* lse, stream where) {
  attention::simple(type, checked(type, shape, plan, qkv, cache, out, lse), where);
}

} // namespace troupe::cuda
