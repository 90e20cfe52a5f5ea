#include "model/kernels/cuda/attention.hpp"
#include "model/kernels/cuda/attention_test_util.hpp"
#include <algorithm>
#include <cmath>
#include <gtest/gtest.h>

namespace {

using namespace troupe::cuda::test;
using troupe::dtype;
using troupe::cuda::attention_gradient_plan;
using troupe::cuda::attention_shape;
using troupe::cuda::device_buffer;

/// Prompts with the responses that continue them, as rows of a batch: a prompt's rows once.
struct tree {
  int prompt;
  std::vector<int> responses;
};

struct config {
  const char* name;
  dtype type;
  attention_shape shape;
  std::vector<tree> trees;
};
void PrintTo(const config& c, std::ostream* to) { *to << c.name; }

/// The lists of attention_gradient_plan.
struct lists {
  std::vector<int> key_begin, n_keys, key_rows, query_begin, query_rows;
  explicit lists(const std::vector<tree>& trees) {
    const auto add_segment = [&](const std::vector<int>& before, int n) {
      const int begin = int(key_rows.size());
      key_rows.insert(key_rows.end(), before.begin(), before.end());
      for (int i = 0; i < n; ++i) {
        key_rows.push_back(int(n_keys.size()));
        key_begin.push_back(begin), n_keys.push_back(int(before.size()) + i + 1);
      }
    };
    for (const auto& t : trees) {
      std::vector<int> prompt(t.prompt);
      for (int i = 0; i < t.prompt; ++i)
        prompt[i] = int(n_keys.size()) + i;
      add_segment({}, t.prompt);
      for (const int n : t.responses)
        add_segment(prompt, n);
    }
    std::vector<std::vector<int>> seen_by(n_keys.size());
    for (int r = 0; r < int(n_keys.size()); ++r)
      for (int k = 0; k < n_keys[r]; ++k)
        seen_by[key_rows[key_begin[r] + k]].push_back(r);
    for (const auto& rows : seen_by) {
      query_begin.push_back(int(query_rows.size()));
      query_rows.insert(query_rows.end(), rows.begin(), rows.end());
    }
    query_begin.push_back(int(query_rows.size()));
  }
  int first(int row, int window) const { return window > 0 ? std::max(0, n_keys[row] - window) : 0; }
};

/// Inputs and, in double, what attention and its gradient are.
struct problem {
  std::vector<float> qkv, d_out, out, lse;
  std::vector<double> d_qkv;

  problem(const config& c, const lists& l) {
    const int n = int(l.n_keys.size()), width = c.shape.n_heads * c.shape.head_dim;
    qkv = noise(c.type, std::size_t(n) * c.shape.row(), 1.f, 1), d_out = noise(c.type, std::size_t(n) * width, 1.f, 2);
    out.resize(std::size_t(n) * width), lse.resize(std::size_t(n) * c.shape.n_heads), d_qkv.resize(qkv.size());
    for (int r = 0; r < n; ++r)
      for (int h = 0; h < c.shape.n_heads; ++h)
        add_row(c, l, r, h);
  }

private:
  void add_row(const config& c, const lists& l, int r, int h) {
    const int D = c.shape.head_dim, H = c.shape.n_heads, KH = c.shape.n_kv_heads, row = c.shape.row(), kv = h / (H / KH);
    const double scale = 1 / std::sqrt(double(D));
    const auto at = [&](int x, int head) { return std::size_t(x) * row + head * D; };
    const int first = l.first(r, c.shape.window), n = l.n_keys[r] - first;
    const int* const keys = l.key_rows.data() + l.key_begin[r] + first;
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
    lse[std::size_t(h) * l.n_keys.size() + r] = float(std::log(sum));
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

std::vector<float> gradients(const config& c, const lists& l, const problem& p) {
  const auto key_begin = upload(l.key_begin), n_keys = upload(l.n_keys), key_rows = upload(l.key_rows), query_begin = upload(l.query_begin),
             query_rows = upload(l.query_rows);
  const attention_gradient_plan plan{int(l.n_keys.size()),   pointer<int>(key_begin),   pointer<int>(n_keys),
                                     pointer<int>(key_rows), pointer<int>(query_begin), pointer<int>(query_rows)};
  const auto qkv = upload(c.type, p.qkv), out = upload(c.type, p.out), d_out = upload(c.type, p.d_out), lse = upload(dtype::f32, p.lse);
  device_buffer d_qkv(p.qkv.size() * 4);
  fill(d_qkv, 0xff);
  troupe::cuda::attend_backward(c.type, c.shape, plan, qkv.data(), out.data(), pointer<float>(lse), d_out.data(), pointer<float>(d_qkv),
                                nullptr);
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
  const lists l(c.trees);
  const problem p(c, l);
  const auto got = gradients(c, l, p);
  EXPECT_EQ(got, gradients(c, l, p));
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

const std::vector<tree> forest = {{64, {30, 1, 70}}, {1, {}}, {97, {5, 33}}, {130, {}}, {32, {0, 65}}};
INSTANTIATE_TEST_SUITE_P(
    shapes, attention_backward,
    testing::Values(config{"h8_2_d128", dtype::bf16, {8, 2, 128}, forest}, config{"h9_3_d64", dtype::bf16, {9, 3, 64}, forest},
                    config{"h2_2_d128_f32", dtype::f32, {2, 2, 128}, forest}, config{"h4_2_d16_f32", dtype::f32, {4, 2, 16}, forest},
                    config{"h4_2_d16_bf16", dtype::bf16, {4, 2, 16}, forest}, config{"h3_1_d12_f32", dtype::f32, {3, 1, 12}, forest},
                    config{"h2_1_d256_f32", dtype::f32, {2, 1, 256}, forest},
                    config{"h4_2_d64_window_5", dtype::bf16, {4, 2, 64, 5}, forest},
                    config{"h4_2_d64_window_70", dtype::f32, {4, 2, 64, 70}, forest}),
    [](const auto& info) { return std::string(info.param.name); });

} // namespace
