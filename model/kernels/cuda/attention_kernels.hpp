#pragma once
#include "model/kernels/cuda/attention.hpp"

// The kernels behind attend(); which one computes a row changes none of its bits within one (dtype, shape).
namespace troupe::cuda::attention {

inline constexpr int page_tokens = 32;
inline constexpr int max_units = 65536; // (decode segment, kv head) pairs of a pass

struct arguments {
  attention_shape shape;
  attention_plan plan;
  const void *qkv = nullptr, *cache = nullptr;
  void* out = nullptr;
  float* lse = nullptr; // may be null
  float scale = 0.f;
  std::int64_t row = 0;                  // shape.row()
  int* counters = nullptr;               // [max_units], 0 between passes
  float *parts = nullptr, *ml = nullptr; // [n_single][n_kv_heads][splits of max_keys][group][head_dim] and [..][group][2]
};

/// Throws errc::unsupported and errc::bad_shape for what no kernel here takes.
void check_attention(dtype type, const attention_shape& shape);

/// What the tensor cores take: bf16, head_dim 64 or 128, up to 16 heads a kv head, no window.
bool has_fast_kernels(dtype type, const attention_shape& shape);

/// Segments 0 .. n_single-1, a row each.
void decode(const arguments& args, stream where);
/// Segments n_single .. n_segments-1, with Hopper's wgmma and with mma.sync.
void prefill_wgmma(const arguments& args, stream where);
void prefill_mma(const arguments& args, stream where);
/// All segments; any head_dim up to 256, f32 and bf16, windows.
void simple(dtype type, const arguments& args, stream where);

struct gradient_arguments;
/// Gradients where has_fast_kernels, with Hopper's wgmma; `terms` are there.
void gradients_wgmma(const gradient_arguments& args, stream where);

} // namespace troupe::cuda::attention
