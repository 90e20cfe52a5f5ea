#include "model/kernels/cuda/attention.hpp"
#include "model/kernels/cuda/attention_test_util.hpp"
#include "model/kernels/cuda/attention_tiles.hpp"
#include "model/kernels/cuda/attention_tree_util.hpp"
#include <algorithm>
#include <cmath>
#include <gtest/gtest.h>

namespace {

using namespace troupe::cuda::test;
using troupe::dtype;
using troupe::cuda::attention_gradient_plan;
using troupe::cuda::attention_shape;
using troupe::cuda::device_buffer;

struct config {
  const char* name;
  dtype type;
  attention_shape shape;
  std::vector<tree> trees;
};
void PrintTo(const config& c, std::ostream* to) { *to << c.name; }

/// Inputs and, in double, what attention and its gradient are.
struct problem {
  std::vector<float> qkv, d_out, out, lse;
  std::vector<double> d_qkv;

  problem(const config& c, const forest& f) {
    const int n = f.n_rows(), width = c.shape.n_heads * c.shape.head_dim;
    qkv = noise(c.type, std::size_t(n) * c.shape.row(), 1.f, 1), d_out = noise(c.type, std::size_t(n) * width, 1.f, 2);
    out.resize(std::size_t(n) * width), lse.resize(std::size_t(n) * c.shape.n_heads), d_qkv.resize(qkv.size());
    for (std::size_t s = 0; s < f.batch.segments.size(); ++s)
      for (int r = f.batch.segments[s].row_begin; r < f.batch.segments[s].row_end; ++r)
        for (int h = 0; h < c.shape.n_heads; ++h)
          add_row(c, f.keys.of_segment[s], f.batch.positions[r], r, h);
  }

private:
  void add_row(const config& c, const std::vector<int>& rows, int position, int r, int h) {
    const int D = c.shape.head_dim, H = c.shape.n_heads, KH = c.shape.n_kv_heads, row = c.shape.row(), kv = h / (H / KH);
    const double scale = 1 / std::sqrt(double(D));
    const auto at = [&](int x, int head) { return std::size_t(x) * row + head * D; };
    const int first = c.shape.window > 0 ? std::max(0, position + 1 - c.shape.window) : 0, n = position + 1 - first;
    const int* const keys = rows.data() + first;
    std::vector<double> p(n), o(D);
    double sum = 0, delta = 0;
    for (int k = 0; k < n; ++k) {
      for (int d = 0; d < D; ++d)
        p[k] += double(qkv[at(r, h) + d]) * qkv[at(keys[k], H + kv) + d];
      p[k] = std::exp(p[k] * scale), sum += p[k];
    }
    for (int k = 0; k < n; ++k) {
      p[k] /= sum;
      for (int d = 0; d < D; ++d)
        o[d] += p[k] * qkv[at(keys[k], H + KH + kv) + d];
    }
    const float* const g = d_out.data() + (std::size_t(r) * H + h) * D;
    for (int d = 0; d < D; ++d)
      out[(std::size_t(r) * H + h) * D + d] = round_to(c.type, float(o[d])), delta += o[d] * g[d];
    lse[std::size_t(h) * (qkv.size() / row) + r] = float(std::log(sum));
    for (int k = 0; k < n; ++k) {
      double dp = 0;
      for (int d = 0; d < D; ++d)
        dp += double(g[d]) * qkv[at(keys[k], H + KH + kv) + d];
      const double ds = p[k] * (dp - delta) * scale;
      for (int d = 0; d < D; ++d) {
        d_qkv[at(r, h) + d] += ds * qkv[at(keys[k], H + kv) + d];
        d_qkv[at(keys[k], H + kv) + d] += ds * qkv[at(r, h) + d];
        d_qkv[at(keys[k], H + KH + kv) + d] += p[k] * g[d];
      }
    }
  }
};

template <class T>
device_buffer copied(const std::vector<T>& values) {
  device_buffer buffer(values.size() * sizeof(T));
  buffer.upload(values.data());
  return buffer;
}

std::vector<float> gradients(const config& c, const forest& f, const problem& p) {
  const auto tiles = troupe::cuda::find_attention_tiles(f.batch, f.keys);
  const auto tile_begin = copied(tiles.tile_begin), positions = copied(tiles.positions), key_lists = copied(tiles.key_lists),
             query_lists = copied(tiles.query_lists), key_entries = copied(tiles.key_entries), query_entries = copied(tiles.query_entries),
             masks = copied(tiles.masks);
  using troupe::cuda::attention_entry;
  using troupe::cuda::attention_list;
  const attention_gradient_plan plan{f.n_rows(),
                                     tiles.n_pairs(),
                                     pointer<int>(tile_begin),
                                     pointer<int>(positions),
                                     pointer<attention_list>(key_lists),
                                     pointer<attention_list>(query_lists),
                                     pointer<attention_entry>(key_entries),
                                     pointer<attention_entry>(query_entries),
                                     pointer<std::uint64_t>(masks)};
  const auto qkv = upload(c.type, p.qkv), out = upload(c.type, p.out), d_out = upload(c.type, p.d_out), lse = upload(dtype::f32, p.lse);
  device_buffer d_qkv(p.qkv.size() * 4), scratch(plan.scratch_size(c.shape) * 4);
  fill(d_qkv, 0xff), fill(scratch, 0xff);
  troupe::cuda::attend_backward(c.type, c.shape, plan, qkv.data(), out.data(), pointer<float>(lse), d_out.data(), pointer<float>(d_qkv),
                                pointer<float>(scratch), nullptr);
  troupe::cuda::synchronize();
  return download(dtype::f32, d_qkv);
}

class attention_backward : public testing::TestWithParam<config> {
protected:
  void SetUp() override {
    if (troupe::cuda::device_count() == 0)
      GTEST_SKIP() << "no GPU";
  }
};

TEST_P(attention_backward, agrees_with_double_and_repeats_its_bits) {
  const config& c = GetParam();
  const forest f(c.trees);
  const problem p(c, f);
  const auto got = gradients(c, f, p);
  EXPECT_EQ(got, gradients(c, f, p));
  const int ends[] = {0, c.shape.n_heads, c.shape.n_heads + c.shape.n_kv_heads, c.shape.n_heads + 2 * c.shape.n_kv_heads};
  const char* const names[] = {"queries", "keys", "values"};
  for (int part = 0; part < 3; ++part) {
    double error = 0, size = 0;
    for (std::size_t i = 0; i < got.size(); ++i) {
      const int head = int(i % c.shape.row()) / c.shape.head_dim;
      if (head >= ends[part] && head < ends[part + 1])
        error += std::pow(got[i] - p.d_qkv[i], 2), size += std::pow(p.d_qkv[i], 2);
    }
    EXPECT_LT(std::sqrt(error / size), c.type == dtype::bf16 ? 5e-3 : 1e-5) << names[part];
  }
}

const std::vector<tree> trees = {{64, {30, 1, 70}}, {1, {}}, {97, {5, 33}}, {130, {}}, {32, {65}}};
const std::vector<tree> long_trees = {{700, {}}, {300, {200, 7, 64, 1, 1, 90}}};
const std::vector<tree> short_trees(5, {11, std::vector<int>(12, 3)});
INSTANTIATE_TEST_SUITE_P(
    shapes, attention_backward,
    testing::Values(
        config{"h8_2_d128", dtype::bf16, {8, 2, 128}, trees}, config{"h9_3_d64", dtype::bf16, {9, 3, 64}, trees},
        config{"h8_2_d128_long", dtype::bf16, {8, 2, 128}, long_trees}, config{"h9_3_d64_long", dtype::bf16, {9, 3, 64}, long_trees},
        config{"h16_1_d64_long", dtype::bf16, {16, 1, 64}, long_trees}, config{"h2_2_d128_short", dtype::bf16, {2, 2, 128}, short_trees},
        config{"h9_3_d64_short", dtype::bf16, {9, 3, 64}, short_trees}, config{"h2_2_d128_f32", dtype::f32, {2, 2, 128}, trees},
        config{"h4_2_d16_f32", dtype::f32, {4, 2, 16}, trees}, config{"h4_2_d16_bf16", dtype::bf16, {4, 2, 16}, trees},
        config{"h3_1_d12_f32", dtype::f32, {3, 1, 12}, trees}, config{"h2_1_d256_f32", dtype::f32, {2, 1, 256}, trees},
        config{"h4_2_d64_window_5", dtype::bf16, {4, 2, 64, 5}, trees}, config{"h4_2_d64_window_70", dtype::f32, {4, 2, 64, 70}, trees}),
    [](const auto& info) { return std::string(info.param.name); });

} // namespace
