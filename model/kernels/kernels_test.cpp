#include "model/kernels/attention.hpp"
#include "model/kernels/elementwise.hpp"
#include "model/kernels/thread_pool.hpp"
#include <cmath>
#include <cstring>
#include <gtest/gtest.h>
#include <random>
#include <xmmintrin.h>

namespace troupe::kernels {
namespace {

std::vector<isa> available() {
  std::vector<isa> all;
  for (isa which : {isa::scalar, isa::avx2, isa::avx512, isa::amx})
    if (supported(which))
      all.push_back(which);
  return all;
}

std::vector<float> random_floats(std::size_t n, std::uint32_t seed, float scale = 1.f) {
  std::mt19937 rng(seed);
  std::normal_distribution<float> normal(0.f, scale);
  std::vector<float> v(n);
  for (auto& x : v)
    x = normal(rng);
  return v;
}
template <class T>
std::vector<T> as(const std::vector<float>& v) {
  std::vector<T> out(v.size());
  for (std::size_t i = 0; i < v.size(); ++i) {
    if constexpr (sizeof(T) == 2)
      out[i] = narrow(v[i]);
    else
      out[i] = v[i];
  }
  return out;
}
float value(bf16 x) { return widen(x); }
float value(float x) { return x; }

// The definition of docs/numerics.md in scalar code.
float defined_sum(const bf16* x, const bf16* w, std::int64_t k) {
  float acc = 0;
  for (std::int64_t b = 0; b < k; b += 32) {
    float e = 0, o = 0;
    for (std::int64_t i = b; i < std::min(k, b + 32); i += 2) {
      e = std::fmaf(widen(x[i]), widen(w[i]), e);
      if (i + 1 < k)
        o = std::fmaf(widen(x[i + 1]), widen(w[i + 1]), o);
    }
    acc = acc + (e + o);
  }
  return acc;
}
float defined_sum(const float* x, const float* w, std::int64_t k) {
  float acc = 0;
  for (std::int64_t i = 0; i < k; ++i)
    acc = std::fmaf(x[i], w[i], acc);
  return acc;
}

template <class T>
class Gemm : public testing::Test {};
using types = testing::Types<bf16, float>;
TYPED_TEST_SUITE(Gemm, types);

TYPED_TEST(Gemm, IsItsDefinitionOnEveryInstructionSetForAnyRowsAndThreads) {
  using T = TypeParam;
  struct shape {
    std::int64_t n, k;
  };
  for (const auto [n, k] : {shape{1, 1}, {17, 33}, {33, 40}, {48, 64}, {70, 576}, {40, 1030}}) {
    const auto w = as<T>(random_floats(std::size_t(n * k), 1)), x = as<T>(random_floats(std::size_t(70 * k), 2));
    std::vector<float> expected(std::size_t(70 * n));
    for (std::int64_t m = 0; m < 70; ++m)
      for (std::int64_t c = 0; c < n; ++c)
        expected[std::size_t(m * n + c)] = defined_sum(&x[std::size_t(m * k)], &w[std::size_t(c * k)], k);
    for (const isa which : available())
      for (const int threads : {1, 2}) {
        thread_pool pool(threads);
        packed_weight<T> packed(n, k);
        pack(pool, packed, w.data(), k, n);
        for (const std::int64_t M : {1, 2, 5, 16, 17, 31, 33, 70}) {
          std::vector<float> y(std::size_t(M * n));
          gemm(pool, which, x.data(), k, M, packed, y.data(), n);
          ASSERT_EQ(0, std::memcmp(y.data(), expected.data(), y.size() * 4)) << n << "x" << k << " M " << M << " " << name_of(which);
        }
      }
  }
}

TYPED_TEST(Gemm, ManyRowsAndSlicesOfKChangeNoBit) {
  using T = TypeParam;
  const std::int64_t n = 96, k = 4096, M = 600;
  const auto w = as<T>(random_floats(std::size_t(n * k), 3)), x = as<T>(random_floats(std::size_t(M * k), 4));
  for (const isa which : available()) {
    if (which == isa::scalar)
      continue;
    thread_pool pool(2);
    packed_weight<T> packed(n, k);
    pack(pool, packed, w.data(), k, n);
    std::vector<float> y(std::size_t(M * n));
    gemm(pool, which, x.data(), k, M, packed, y.data(), n);
    for (const std::int64_t m : {0, 1, 255, 256, 511, 599})
      for (std::int64_t c = 0; c < n; ++c)
        ASSERT_EQ(y[std::size_t(m * n + c)], defined_sum(&x[std::size_t(m * k)], &w[std::size_t(c * k)], k))
            << m << " " << c << " " << name_of(which);
  }
}

TYPED_TEST(Gemm, FusedGatingAndResidualAreTheSeparateSteps) {
  using T = TypeParam;
  compute where(2);
  const std::int64_t n = 40, k = 48, M = 9;
  const auto g = as<T>(random_floats(n * k, 5)), u = as<T>(random_floats(n * k, 6)), x = as<T>(random_floats(M * k, 7, 3.f)),
             r = as<T>(random_floats(M * n, 8));
  packed_weight<T> gated(n, k, true);
  pack(where.pool(), gated, g.data(), k, n, 0, 0);
  pack(where.pool(), gated, u.data(), k, n, 0, 1);
  for (const isa which : available()) {
    compute w(1, which);
    std::vector<T> fused(M * n), raw(std::size_t(M * gated.ungated().n())), act(M * n);
    gemm(w.pool(), which, x.data(), k, M, gated, fused.data(), n, {nullptr, r.data(), n});
    gemm(w.pool(), which, x.data(), k, M, gated.ungated(), raw.data(), gated.ungated().n());
    silu_mul(w, raw.data(), M, n, act.data());
    for (std::size_t i = 0; i < act.size(); ++i) {
      const float sum = value(act[i]) + value(r[i]);
      ASSERT_EQ(value(fused[i]), sizeof(T) == 2 ? widen(narrow(sum)) : sum);
    }
    for (std::int64_t i = 0; i < M * n; ++i) {
      const auto place = std::size_t(i / n * 96 + i % n / 16 * 32 + i % n % 16);
      const float a = value(raw[place]), b = value(raw[place + 16]);
      ASSERT_NEAR(value(act[std::size_t(i)]), a / (1 + std::exp(-a)) * b, (sizeof(T) == 2 ? 2e-2 : 1e-6) * (1 + std::abs(a * b)));
    }
  }
}

TYPED_TEST(Gemm, PackedRowsSumOverRows) {
  using T = TypeParam;
  thread_pool pool(2);
  const std::int64_t rows = 45, n = 37, M = 5;
  const auto s = as<T>(random_floats(rows * n, 9)), x = as<T>(random_floats(M * rows, 10));
  packed_weight<T> packed(n, rows);
  pack_rows(pool, packed, s.data(), n, 0, rows);
  for (const isa which : available()) {
    std::vector<float> y(M * n);
    gemm(pool, which, x.data(), rows, M, packed, y.data(), n);
    for (std::int64_t m = 0; m < M; ++m)
      for (std::int64_t c = 0; c < n; ++c) {
        std::vector<T> column(rows);
        for (std::int64_t r = 0; r < rows; ++r)
          column[std::size_t(r)] = s[std::size_t(r * n + c)];
        ASSERT_EQ(y[std::size_t(m * n + c)], defined_sum(&x[std::size_t(m * rows)], column.data(), rows));
      }
  }
}

// ---- attention ----

struct sequence_case {
  std::vector<std::int32_t> lengths;
}; // rows of each whole sequence

template <class T>
class Attention : public testing::Test {};
TYPED_TEST_SUITE(Attention, types);

token_batch whole(const std::vector<std::int32_t>& lengths) {
  token_batch b;
  for (const auto n : lengths) {
    segment s{std::int32_t(b.ids.size()), std::int32_t(b.ids.size()) + n, 0, {}};
    for (std::int32_t i = 0; i < n; ++i) {
      b.ids.push_back(0);
      b.positions.push_back(i);
    }
    for (std::int32_t i = 0; i * 32 < n; ++i)
      s.blocks.push_back(b.n_blocks++);
    b.segments.push_back(s);
  }
  return b;
}

TYPED_TEST(Attention, IsSoftmaxAttentionAndItsBitsDependOnTheSequenceAlone) {
  using T = TypeParam;
  for (const auto& sh : {attention_shape{6, 2, 64}, attention_shape{4, 1, 12}, attention_shape{2, 2, 40}}) {
    const std::vector<std::int32_t> lengths = {70, 1, 32, 33};
    const token_batch all = whole(lengths);
    const std::size_t n = all.ids.size();
    const auto qkv = as<T>(random_floats(n * std::size_t(sh.row()), 11, 2.f));
    const std::int64_t width = sh.n_heads * sh.head_dim;
    std::vector<T> expected;
    for (const isa which : available()) {
      compute where(2, which);
      std::vector<T> cache(std::size_t(all.n_blocks * sh.block_elements()), T(0x7fc0)), out(n * std::size_t(width));
      write_keys_values(where, sh, all, qkv.data(), cache.data());
      attend(where, sh, all, qkv.data(), cache.data(), out.data());
      if (expected.empty())
        expected = out;
      ASSERT_EQ(0, std::memcmp(out.data(), expected.data(), out.size() * sizeof(T))) << name_of(which);
      // In chunks of unequal size, alone, over scattered blocks that held something else.
      std::size_t row = 0;
      for (const auto length : lengths) {
        std::vector<T> other(std::size_t(5 * sh.block_elements()), T(77)), piece(std::size_t(length) * std::size_t(width));
        for (std::int32_t begin = 0, size = 1; begin < length; begin += size, size = size * 3 + 1) {
          token_batch b;
          const std::int32_t end = std::min(begin + size, length);
          segment s{0, end - begin, begin, {4, 1, 3}};
          b.ids.resize(std::size_t(end - begin));
          b.positions.resize(b.ids.size());
          b.segments = {s};
          b.n_blocks = 5;
          const T* rows = qkv.data() + (row + std::size_t(begin)) * std::size_t(sh.row());
          write_keys_values(where, sh, b, rows, other.data());
          attend(where, sh, b, rows, other.data(), piece.data() + std::size_t(begin) * std::size_t(width));
        }
        ASSERT_EQ(0, std::memcmp(piece.data(), expected.data() + row * std::size_t(width), piece.size() * sizeof(T)))
            << length << " " << name_of(which);
        row += std::size_t(length);
      }
    }
    // Against float64.
    std::size_t row0 = 0;
    for (const auto length : lengths) {
      for (std::int32_t i = 0; i < length; ++i)
        for (std::int64_t h = 0; h < sh.n_heads; ++h) {
          const auto at = [&](std::size_t r, std::int64_t head, std::int64_t j) {
            return double(value(qkv[r * std::size_t(sh.row()) + std::size_t(head * sh.head_dim + j)]));
          };
          std::vector<double> p;
          double total = 0, best = -1e300;
          for (std::int32_t k = 0; k <= i; ++k) {
            double s = 0;
            for (std::int64_t j = 0; j < sh.head_dim; ++j)
              s += at(row0 + std::size_t(i), h, j) * at(row0 + std::size_t(k), sh.n_heads + h / sh.group(), j);
            p.push_back(s / std::sqrt(double(sh.head_dim)));
            best = std::max(best, p.back());
          }
          for (auto& s : p)
            total += s = std::exp(s - best);
          for (std::int64_t j = 0; j < sh.head_dim; ++j) {
            double o = 0;
            for (std::int32_t k = 0; k <= i; ++k)
              o += p[std::size_t(k)] / total * at(row0 + std::size_t(k), sh.n_heads + sh.n_kv_heads + h / sh.group(), j);
            ASSERT_NEAR(value(expected[(row0 + std::size_t(i)) * std::size_t(width) + std::size_t(h * sh.head_dim + j)]), o,
                        sizeof(T) == 2 ? 4e-2 : 1e-5);
          }
        }
      row0 += std::size_t(length);
    }
  }
}

// ---- row kernels ----

template <class T>
class Rows : public testing::Test {};
TYPED_TEST_SUITE(Rows, types);

TYPED_TEST(Rows, EveryInstructionSetGivesTheSameBits) {
  using T = TypeParam;
  for (const std::int64_t h : {1, 7, 16, 40, 64, 100, 576}) {
    const std::int64_t n = 5;
    const auto x = as<T>(random_floats(std::size_t(n * h), 12, 4.f)), w = as<T>(random_floats(std::size_t(h), 13));
    const auto dy = random_floats(std::size_t(n * h), 14), logits = random_floats(std::size_t(n * h), 15, 8.f);
    const auto gate_up = as<T>(random_floats(std::size_t(n * ((h + 15) / 16 * 32)), 16, 3.f));
    std::vector<std::vector<float>> first;
    for (const isa which : available())
      for (const int threads : {1, 2}) {
        compute where(threads, which);
        std::vector<T> y(x.size()), act(x.size()), dgu(gate_up.size()), dl(x.size()), rounded(x.size());
        std::vector<float> inverse(std::size_t(n), 0.f), dx(x.size(), .5f), dw(std::size_t(h), .25f), moments;
        rms_norm(where, x.data(), w.data(), 1e-5f, n, h, y.data(), inverse.data());
        rms_norm_backward(where, dy.data(), x.data(), w.data(), inverse.data(), n, h, dx.data(), dw.data());
        silu_mul(where, gate_up.data(), n, h, act.data());
        silu_mul_backward(where, gate_up.data(), dy.data(), n, h, dgu.data());
        convert(where, dy.data(), n * h, rounded.data());
        std::vector<softmax_stats> stats(n);
        softmax_rows(where, logits.data(), n, h, 0.7f, true, stats.data());
        std::vector<row_gradient> gradients(n);
        for (std::int64_t r = 0; r < n; ++r) {
          gradients[std::size_t(r)] = {{std::int32_t(r % h)}, {0.5f}, 0.25f};
          moments.insert(moments.end(), {stats[std::size_t(r)].maximum, stats[std::size_t(r)].sum, stats[std::size_t(r)].moment});
        }
        softmax_backward(where, logits.data(), n, h, 0.7f, stats.data(), gradients.data(), dl.data());
        std::vector<std::vector<float>> results = {inverse, dx, dw, moments};
        for (const auto* v : {&y, &act, &dgu, &dl, &rounded}) {
          results.emplace_back();
          for (const T e : *v)
            results.back().push_back(value(e));
        }
        if (first.empty())
          first = results;
        for (std::size_t i = 0; i < results.size(); ++i)
          ASSERT_EQ(0, std::memcmp(results[i].data(), first[i].data(), results[i].size() * 4))
              << "result " << i << " width " << h << " " << name_of(which);
      }
    for (std::int64_t r = 0; r < n; ++r) { // and the right ones
      double best = -1e300, sum = 0;
      for (std::int64_t j = 0; j < h; ++j)
        best = std::max(best, double(logits[std::size_t(r * h + j)]) / 0.7);
      for (std::int64_t j = 0; j < h; ++j)
        sum += std::exp(double(logits[std::size_t(r * h + j)]) / 0.7 - best);
      ASSERT_NEAR(first[3][std::size_t(3 * r)], best, 1e-4);
      ASSERT_NEAR(first[3][std::size_t(3 * r + 1)], sum, 1e-5 * sum);
    }
  }
}

TEST(Math, LogAndExpAreAccurate) {
  for (double x : {1e-300, 1e-9, 0.3, 0.70710678, 1.0, 1.4142136, 2.0, 49152.0, 1e30})
    EXPECT_NEAR(log_exact(x), std::log(x), 1e-15 * std::max(1.0, std::abs(std::log(x)))) << x;
  for (int i = 0; i < 6343; ++i) {
    const float x = -86.9f + 0.0137f * float(i);
    ASSERT_NEAR(exp_negative(x), std::exp(double(x)), 3e-7 * std::exp(double(x))) << x;
  }
  EXPECT_EQ(exp_negative(-88.f), 0.f);
  EXPECT_EQ(exp_negative(-std::numeric_limits<float>::infinity()), 0.f);
  EXPECT_EQ(exp_negative(0.f), 1.f);
}

TEST(Isa, NamesAreKnownAndOthersRefused) {
  for (isa which : {isa::scalar, isa::avx2, isa::avx512, isa::amx})
    EXPECT_EQ(isa_from_name(name_of(which)), which);
  EXPECT_ANY_THROW(isa_from_name("sse"));
}

TEST(ThreadPool, CallsEveryPartOnceAndFlushesSubnormals) {
  thread_pool pool(3);
  for (int round = 0; round < 200; ++round) {
    std::vector<int> seen(100, 0);
    pool.split(100, [&](std::int64_t b, std::int64_t e) {
      for (; b < e; ++b)
        ++seen[std::size_t(b)];
    });
    ASSERT_EQ(std::count(seen.begin(), seen.end(), 1), 100);
    std::vector<int> items(7, 0);
    pool.each(7, [&](std::int64_t i) { ++items[std::size_t(i)]; });
    ASSERT_EQ(std::count(items.begin(), items.end(), 1), 7);
  }
  const unsigned before = _mm_getcsr();
  std::vector<unsigned> inside(3);
  pool.run([&](int t) { inside[std::size_t(t)] = _mm_getcsr() & 0x8040; });
  EXPECT_EQ(inside, std::vector<unsigned>(3, 0x8040));
  EXPECT_EQ(_mm_getcsr(), before);
}

} // namespace
} // namespace troupe::kernels
