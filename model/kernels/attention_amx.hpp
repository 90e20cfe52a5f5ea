#pragma once
#include "model/kernels/attention.hpp"

namespace troupe::kernels {

/// Rows row0 .. row1-1 of the segment for one kv head, as `attend` defines them, on AMX tiles: the same bits.
/// head_dim must be a multiple of 32. Leaves tiles configured: end a thread's run of calls with release_attention_tiles().
void attend_amx(const attention_shape& shape, const segment& seg, std::int32_t kv_head, std::int32_t row0, std::int32_t row1,
                const bf16* qkv, const bf16* cache, bf16* out);
void release_attention_tiles();

} // namespace troupe::kernels
