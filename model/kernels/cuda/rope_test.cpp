#include "model/kernels/cuda/elementwise.hpp"
#include "model/kernels/cuda/test_support.hpp"
#include "model/kernels/elementwise.hpp"

namespace troupe::cuda {
namespace {

constexpr std::int64_t n_positions = 50;

struct layout {
  dtype type;
  int n_heads, n_kv_heads, head_dim;
};

class rotation : public gpu_table<layout> {
protected:
  attention_shape shape() const { return {GetParam().n_heads, GetParam().n_kv_heads, GetParam().head_dim, 0}; }
  // Not of a real rope, but numbers in -1 .. 1 do as well.
  std::vector<float> angles() const {
    auto values = noise(dtype::f32, n_positions * shape().head_dim, 9);
    for (auto& v : values)
      v /= 4;
    return values;
  }
  // The CPU's kernel on the first `heads` heads of rows.
  std::vector<float> on_host(std::vector<float> x, const std::vector<std::int32_t>& positions, std::int64_t heads, bool inverse) const {
    compute where(1);
    const auto table = angles();
    const auto ld = std::int64_t(x.size() / positions.size());
    if (GetParam().type == dtype::f32) {
      kernels::rope(where, x.data(), ld, std::int64_t(positions.size()), positions.data(), heads, shape().head_dim, table.data(), inverse);
      return x;
    }
    std::vector<kernels::bf16> halves;
    for (const float v : x)
      halves.push_back(kernels::narrow(v));
    kernels::rope(where, halves.data(), ld, std::int64_t(positions.size()), positions.data(), heads, shape().head_dim, table.data(),
                  inverse);
    for (std::size_t i = 0; i < x.size(); ++i)
      x[i] = kernels::widen(halves[i]);
    return x;
  }
};

TEST_P(rotation, has_the_bits_of_the_cpu) {
  const auto type = GetParam().type;
  const std::vector<std::int32_t> positions{0, 7, 49, 3};
  const std::int64_t ld = shape().row(), heads = shape().n_heads;
  const auto x = noise(type, 4 * ld, 1);
  const auto table = to_device(angles()), p = to_device(positions);
  for (const bool inverse : {false, true}) {
    const auto rows = upload(type, x);
    rope(type, rows.data(), ld, 4, as<std::int32_t>(p), heads, shape().head_dim, as<float>(table), inverse, nullptr);
    EXPECT_EQ(download(type, rows), on_host(x, positions, heads, inverse));
  }
}

TEST_P(rotation, writes_keys_and_values_where_they_belong) {
  const auto type = GetParam().type;
  const attention_shape s = shape();
  const std::vector<std::int32_t> positions{0, 7, 49, 3}, slots{32 + 5, -1, 0, 31}, copy_rows{1, 3, 0}, copy_slots{64, 95, -1};
  const auto qkv = noise(type, 4 * s.row(), 1), before = noise(type, 3 * s.block_elements(), 2);
  const auto rows = upload(type, qkv), cache = upload(type, before), table = to_device(angles()), p = to_device(positions),
             to = to_device(slots), from = to_device(copy_rows), copies = to_device(copy_slots);
  rope_write(type, s, rows.data(), 4, as<std::int32_t>(p), as<float>(table), as<std::int32_t>(to), cache.data(), 3, as<std::int32_t>(from),
             as<std::int32_t>(copies), nullptr);
  const auto rotated = on_host(qkv, positions, s.n_heads + s.n_kv_heads, false);
  EXPECT_EQ(download(type, rows), rotated);
  auto want = before;
  const auto write = [&](int row, int slot) {
    for (int kv = 0; kv < 2 * s.n_kv_heads; ++kv)
      std::copy_n(rotated.begin() + row * s.row() + (s.n_heads + kv) * s.head_dim, s.head_dim,
                  want.begin() + slot / 32 * s.block_elements() + (kv * 32 + slot % 32) * s.head_dim);
  };
  write(0, 37), write(2, 0), write(3, 31), write(1, 64), write(3, 95);
  EXPECT_EQ(download(type, cache), want);
}

INSTANTIATE_TEST_SUITE_P(layouts, rotation,
                         testing::Values(layout{dtype::f32, 9, 3, 64}, layout{dtype::bf16, 9, 3, 64}, layout{dtype::bf16, 32, 8, 128},
                                         layout{dtype::f32, 2, 1, 6}, layout{dtype::bf16, 2, 2, 10}, layout{dtype::bf16, 4, 4, 80}));

} // namespace
} // namespace troupe::cuda
