#include "model/kernels/cuda/attention_kernels.hpp"
#include "model/kernels/cuda/attention_test_util.hpp"
#include <algorithm>
#include <cmath>
#include <gtest/gtest.h>
#include <map>
#include <numeric>
#include <random>

namespace {

using namespace troupe::cuda::test;
using troupe::dtype;
using troupe::cuda::attention_plan;
using troupe::cuda::attention_shape;
using troupe::cuda::device_buffer;

/// Rows of a sequence that a pass computes; n_rows 0: a padding segment.
struct span_of_rows {
  int sequence, position, n_rows;
};
/// What attention gave for rows, by (sequence, position): the heads' outputs and log-sum-exps as bits.
using results = std::map<std::pair<int, int>, std::vector<float>>;

enum class how { attend, reference, mma_prefill };

/// Sequences with random queries, keys and values, and a cache whose pages are in random order, NaN wherever nothing was written.
class world {
public:
  world(dtype type, attention_shape shape, std::vector<int> lengths, float gain, unsigned seed)
      : type_(type), shape_(shape), lengths_(std::move(lengths)), random_(seed) {
    for (const int length : lengths_) {
      rows_.push_back(noise(type, std::size_t(length) * shape.row(), 1.f, unsigned(random_())));
      for (int t = 0; t < length; ++t) // queries
        for (int i = 0; i < shape.n_heads * shape.head_dim; ++i)
          rows_.back()[std::size_t(t) * shape.row() + i] = round_to(type, gain * rows_.back()[std::size_t(t) * shape.row() + i]);
    }
    shuffle_pages();
  }
  int n_sequences() const { return int(lengths_.size()); }
  int length(int sequence) const { return lengths_[sequence]; }
  const attention_shape& shape() const { return shape_; }

  void shuffle_pages() {
    max_blocks_ = (*std::max_element(lengths_.begin(), lengths_.end()) + 31) / 32;
    pages_.resize(std::size_t(n_sequences() * max_blocks_ + 3));
    std::iota(pages_.begin(), pages_.end(), 0);
    std::shuffle(pages_.begin(), pages_.end(), random_);
    written_.clear();
  }

  /// Every row of every sequence.
  std::vector<span_of_rows> all() const {
    std::vector<span_of_rows> spans;
    for (int s = 0; s < n_sequences(); ++s)
      spans.push_back({s, 0, length(s)});
    return spans;
  }

  /// One pass; the first n_single spans have one row. Only keys up to the last position of each sequence's spans are in the cache.
  results run(const std::vector<span_of_rows>& spans, int n_single, how way = how::attend, int loose = 0) {
    std::vector<int> row_begin, n_rows, n_keys, blocks, written(lengths_.size(), 0);
    std::vector<float> qkv;
    attention_plan plan{.n_segments = int(spans.size()), .n_single = n_single, .max_blocks = max_blocks_ + loose};
    for (const auto& span : spans) {
      const bool padding = span.n_rows == 0, single = int(n_keys.size()) < n_single;
      const int rows = padding && single ? 1 : span.n_rows;
      row_begin.push_back(padding ? -7 : plan.n_tokens), n_rows.push_back(rows);
      n_keys.push_back(padding ? 0 : span.position + rows);
      plan.n_tokens += rows, plan.max_rows = std::max(plan.max_rows, rows), plan.max_keys = std::max(plan.max_keys, n_keys.back());
      if (padding) {
        qkv.resize(qkv.size() + std::size_t(rows) * shape_.row(), std::nanf(""));
      } else {
        const auto from = rows_[span.sequence].begin() + std::ptrdiff_t(span.position) * shape_.row();
        qkv.insert(qkv.end(), from, from + std::ptrdiff_t(rows) * shape_.row());
        written[span.sequence] = std::max(written[span.sequence], span.position + rows);
      }
      for (int b = 0; b < plan.max_blocks; ++b) // entries without keys lead far outside
        blocks.push_back(b * 32 < n_keys.back() ? pages_[span.sequence * max_blocks_ + b] : 1 << 28);
    }
    write_cache(written);
    const auto d_row_begin = upload(row_begin), d_n_rows = upload(n_rows), d_n_keys = upload(n_keys), d_blocks = upload(blocks);
    plan.row_begin = pointer<int>(d_row_begin), plan.n_rows = pointer<int>(d_n_rows), plan.n_keys = pointer<int>(d_n_keys);
    plan.blocks = pointer<int>(d_blocks), plan.max_rows += 40 * loose, plan.max_keys += 700 * loose;
    return collect(spans, plan, upload(type_, qkv), way);
  }

  /// In double. head's output, then its log-sum-exp last.
  std::vector<double> expected(int sequence, int position, int head) const {
    const int D = shape_.head_dim, kv = head / (shape_.n_heads / shape_.n_kv_heads), row = shape_.row();
    const float* const rows = rows_[sequence].data();
    const int first = shape_.window > 0 ? std::max(0, position + 1 - shape_.window) : 0;
    std::vector<double> scores, out(std::size_t(D) + 1, 0.);
    for (int k = first; k <= position; ++k) {
      double s = 0;
      for (int d = 0; d < D; ++d)
        s += double(rows[std::size_t(position) * row + head * D + d]) * rows[std::size_t(k) * row + (shape_.n_heads + kv) * D + d];
      scores.push_back(s / std::sqrt(double(D)));
    }
    const double largest = *std::max_element(scores.begin(), scores.end());
    double sum = 0;
    for (std::size_t k = 0; k < scores.size(); ++k) {
      const double p = std::exp(scores[k] - largest);
      sum += p;
      for (int d = 0; d < D; ++d)
        out[d] += p * rows[(first + k) * row + (shape_.n_heads + shape_.n_kv_heads + kv) * D + d];
    }
    for (int d = 0; d < D; ++d)
      out[d] /= sum;
    out[D] = largest + std::log(sum);
    return out;
  }

private:
  void write_cache(const std::vector<int>& written) {
    if (written == written_)
      return;
    const int D = shape_.head_dim, KH = shape_.n_kv_heads;
    std::vector<float> cache(pages_.size() * std::size_t(shape_.block_elements()), std::nanf(""));
    for (int s = 0; s < n_sequences(); ++s)
      for (int t = 0; t < written[s]; ++t)
        for (int h = 0; h < 2 * KH; ++h) {
          const auto from = rows_[s].begin() + std::ptrdiff_t(t) * shape_.row() + (shape_.n_heads + h) * D;
          const std::int64_t block = pages_[s * max_blocks_ + t / 32];
          std::copy_n(from, D, cache.begin() + block * shape_.block_elements() + (h * 32 + t % 32) * D);
        }
    cache_ = upload(type_, cache);
    written_ = written;
  }

  results collect(const std::vector<span_of_rows>& spans, const attention_plan& plan, const device_buffer& qkv, how way) {
    namespace cuda = troupe::cuda;
    const int width = shape_.n_heads * shape_.head_dim;
    device_buffer out(std::size_t(plan.n_tokens) * width * troupe::size_of(type_)), lse(std::size_t(plan.n_tokens) * shape_.n_heads * 4);
    fill(out, 0xff), fill(lse, 0xff);
    const auto n_scratch = cuda::attention_scratch_bytes(shape_, plan.n_segments, plan.max_keys);
    if (scratch_.size() < n_scratch) {
      scratch_ = device_buffer(n_scratch);
      fill(scratch_, 0);
    }
    float* const l = pointer<float>(lse);
    if (way == how::attend)
      cuda::attend(type_, shape_, plan, qkv.data(), cache_.data(), out.data(), l, scratch_.data(), nullptr);
    else if (way == how::reference)
      cuda::attend_reference(type_, shape_, plan, qkv.data(), cache_.data(), out.data(), l, nullptr);
    else
      cuda::attention::prefill_mma({.shape = shape_,
                                    .plan = plan,
                                    .qkv = qkv.data(),
                                    .cache = cache_.data(),
                                    .out = out.data(),
                                    .lse = l,
                                    .scale = 1.f / std::sqrt(float(shape_.head_dim)),
                                    .row = shape_.row()},
                                   nullptr);
    cuda::synchronize();
    const auto values = download(type_, out), sums = download(dtype::f32, lse);
    results found;
    int row = 0;
    for (std::size_t i = 0; i < spans.size(); ++i) {
      const bool padding = spans[i].n_rows == 0 && int(i) < plan.n_single;
      for (int r = 0; r < (padding ? 1 : spans[i].n_rows); ++r, ++row) {
        auto& at = padding ? found[{-1, int(i)}] : found[{spans[i].sequence, spans[i].position + r}];
        const auto before =
            std::exchange(at, {values.begin() + std::ptrdiff_t(row) * width, values.begin() + std::ptrdiff_t(row + 1) * width});
        for (int h = 0; h < shape_.n_heads; ++h)
          at.push_back(sums[std::size_t(h) * plan.n_tokens + row]);
        EXPECT_TRUE(before.empty() || std::memcmp(before.data(), at.data(), at.size() * 4) == 0) << "a row twice in a pass, row " << row;
      }
    }
    return found;
  }

  dtype type_;
  attention_shape shape_;
  std::vector<int> lengths_, pages_, written_;
  std::mt19937 random_;
  std::vector<std::vector<float>> rows_;
  int max_blocks_ = 0;
  device_buffer cache_, scratch_;
};

/// Every row of `some` is in `all`, with the same bits.
void expect_same(const results& some, const results& all, const std::string& what) {
  int different = 0;
  for (const auto& [at, values] : some) {
    const auto& want = all.at(at);
    ASSERT_EQ(values.size(), want.size());
    if (std::memcmp(values.data(), want.data(), values.size() * 4) != 0 && ++different < 4)
      ADD_FAILURE() << what << ": sequence " << at.first << ", position " << at.second;
  }
  EXPECT_EQ(different, 0) << what << ": rows of " << some.size();
}

struct config {
  const char* name;
  dtype type;
  attention_shape shape;
  std::vector<int> lengths;
  float gain = 1.f;
};
void PrintTo(const config& c, std::ostream* to) { *to << c.name; }

class attention : public testing::TestWithParam<config> {
protected:
  void SetUp() override {
    if (troupe::cuda::device_count() == 0)
      GTEST_SKIP() << "no GPU";
  }
  world make() { return world(GetParam().type, GetParam().shape, GetParam().lengths, GetParam().gain, 7); }
};

/// Positions worth a look: all of the first, then around each block and the end.
std::vector<int> positions(int length, int all_below) {
  std::vector<int> found;
  for (int p = 0; p < length; ++p)
    if (p < all_below || (p + 2) % 64 < 4 || p + 3 > length)
      found.push_back(p);
  return found;
}

TEST_P(attention, agrees_with_double) {
  world w = make();
  const auto got = w.run(w.all(), 0), slow = w.run(w.all(), 0, how::reference);
  const bool bf16 = GetParam().type == dtype::bf16;
  const int D = w.shape().head_dim;
  for (const auto* result : {&got, &slow}) {
    double error = 0, size = 0, lse_error = 0;
    for (int s = 0; s < w.n_sequences(); ++s)
      for (const int p : positions(w.length(s), 3)) {
        if (p % 128 > 1 && p + 1 < w.length(s))
          continue;
        for (const int h : {0, w.shape().n_heads - 1}) {
          const auto want = w.expected(s, p, h);
          const auto& row = result->at({s, p});
          for (int d = 0; d < D; ++d)
            error += std::pow(row[std::size_t(h) * D + d] - want[d], 2), size += want[d] * want[d];
          lse_error = std::max(lse_error, std::abs(row[std::size_t(w.shape().n_heads) * D + h] - want[D]));
        }
      }
    EXPECT_LT(std::sqrt(error / size), bf16 ? 3e-3 : 3e-6);
    EXPECT_LT(lse_error, 5e-5);
  }
}

TEST_P(attention, chunks_change_no_bit) {
  world w = make();
  const auto whole = w.run(w.all(), 0);
  for (const int chunk : {1, 3, 16, 31, 32, 33, 64, 100}) {
    std::vector<span_of_rows> spans;
    for (int s = 0; s < w.n_sequences(); ++s)
      for (int p = 0; p < w.length(s); p += chunk)
        spans.push_back({s, p, std::min(chunk, w.length(s) - p)});
    expect_same(w.run(spans, 0), whole, "chunks of " + std::to_string(chunk));
  }
  expect_same(w.run(w.all(), 0, how::attend, 2), whole, "loose bounds");
  w.shuffle_pages();
  expect_same(w.run(w.all(), 0), whole, "other pages");
}

TEST_P(attention, later_slots_are_not_read) {
  world w = make();
  const auto whole = w.run(w.all(), 0);
  for (const int upto : {1, 31, 33, 70, 255, 300}) { // the cache holds NaN from there on
    std::vector<span_of_rows> chunk, single;
    for (int s = 0; s < w.n_sequences(); ++s) {
      const int end = std::min(upto, w.length(s)), begin = std::max(0, end - 20);
      chunk.push_back({s, begin, end - begin}), single.push_back({s, end - 1, 1});
    }
    expect_same(w.run(chunk, 0), whole, "up to " + std::to_string(upto));
    expect_same(w.run(single, int(single.size())), whole, "decoding up to " + std::to_string(upto));
  }
}

TEST_P(attention, decoding_changes_no_bit) {
  world w = make();
  const auto whole = w.run(w.all(), 0);
  std::vector<span_of_rows> spans;
  for (int s = 0; s < w.n_sequences(); ++s)
    for (const int p : positions(w.length(s), 130))
      spans.push_back({s, p, 1});
  std::mt19937 random(3);
  std::shuffle(spans.begin(), spans.end(), random);
  for (std::size_t i = 0, n = 1; i < spans.size(); i += n, n = n % 40 * 2 + 1) { // batches of many sizes
    const std::vector<span_of_rows> some(spans.begin() + std::ptrdiff_t(i), spans.begin() + std::ptrdiff_t(std::min(spans.size(), i + n)));
    expect_same(w.run(some, int(some.size()), how::attend, int(i % 2)), whole, "a batch of " + std::to_string(some.size()));
  }
}

TEST_P(attention, company_and_padding_change_no_bit) {
  world w = make();
  const auto whole = w.run(w.all(), 0);
  std::vector<span_of_rows> spans;
  for (int s = 0; s < w.n_sequences(); ++s)
    spans.push_back({s, w.length(s) - 1, 1}), spans.push_back({s, 0, 0});
  const int n_single = int(spans.size());
  for (int s = 0; s < w.n_sequences(); ++s) {
    const int half = w.length(s) / 2;
    if (s % 3 == 1)
      spans.push_back({s, 0, 0});
    if (half > 0)
      spans.push_back({s, w.length(s) - half, half});
  }
  auto mixed = w.run(spans, n_single);
  for (auto at = mixed.begin(); at != mixed.end() && at->first.first < 0; at = mixed.erase(at))
    EXPECT_TRUE(std::all_of(at->second.begin(), at->second.end(), [](float v) { return v == 0; }))
        << "padding segment " << at->first.second;
  expect_same(mixed, whole, "a mixed pass");
}

TEST_P(attention, mma_and_wgmma_give_the_same_bits) {
  if (!troupe::cuda::attention::has_fast_kernels(GetParam().type, GetParam().shape))
    GTEST_SKIP() << "no such kernels";
  world w = make();
  expect_same(w.run(w.all(), 0, how::mma_prefill), w.run(w.all(), 0), "mma.sync");
}

const std::vector<int> few = {1, 65, 256, 513, 700}, tiny = {1, 2, 63, 64, 65, 200};
INSTANTIATE_TEST_SUITE_P(
    shapes, attention,
    testing::Values(config{"h32_8_d128", dtype::bf16, {32, 8, 128}, {1, 2, 4, 64, 129, 257, 1025, 2100}},
                    config{"h9_3_d64", dtype::bf16, {9, 3, 64}, {1, 3, 63, 65, 128, 511, 1537, 4500}},
                    config{"h16_2_d64", dtype::bf16, {16, 2, 64}, few}, config{"h16_1_d128", dtype::bf16, {16, 1, 128}, few, 20.f},
                    config{"h8_8_d128", dtype::bf16, {8, 8, 128}, few, 6.f}, config{"h4_2_d16_bf16", dtype::bf16, {4, 2, 16}, few},
                    config{"h4_2_d16_f32", dtype::f32, {4, 2, 16}, few}, config{"h3_1_d12_f32", dtype::f32, {3, 1, 12}, few},
                    config{"h2_1_d256_f32", dtype::f32, {2, 1, 256}, tiny}, config{"h34_2_d64_bf16", dtype::bf16, {34, 2, 64}, tiny},
                    config{"h4_2_d64_window_5", dtype::bf16, {4, 2, 64, 5}, few},
                    config{"h4_2_d64_window_70", dtype::f32, {4, 2, 64, 70}, few}),
    [](const auto& info) { return std::string(info.param.name); });

} // namespace
