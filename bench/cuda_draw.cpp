// Draws from rows of 128256 logits on one GPU, by rows and options: microseconds a call, of ten in a graph.
//   bench_cuda_draw
// rows: like a language model's, 40 tokens of a row far above the others. GB/s = rows * vocabulary * 4 bytes / time: a plain draw reads a
// row twice, the second time from a cache where few rows are drawn from.
#include "model/kernels/cuda/draw.hpp"
#include <cstdio>
#include <random>
#include <vector>

using namespace troupe::cuda;

namespace {

constexpr std::int64_t vocab = 128256, most_rows = 256;
constexpr std::int32_t edits_a_row = 1000;

template <class F>
double microseconds(const F& work) {
  const stream_owner where;
  work(where.get());
  synchronize(where.get());
  begin_capture(where.get());
  for (int i = 0; i < 10; ++i)
    work(where.get());
  const graph recorded = end_capture(where.get());
  recorded.launch(where.get());
  event begin, end;
  begin.record(where.get());
  recorded.launch(where.get());
  end.record(where.get());
  end.synchronize();
  return end.elapsed_ms(begin) * 1e3 / 10;
}

device_buffer make_logits() {
  std::mt19937 rng(1);
  std::normal_distribution<float> normal;
  std::vector<float> row(vocab);
  device_buffer logits(std::size_t(most_rows * vocab) * sizeof(float));
  for (std::int64_t r = 0; r < most_rows; ++r) {
    if (r < 8)
      for (auto& v : row)
        v = normal(rng);
    for (int i = 0; i < 40; ++i)
      row[rng() % vocab] = 8 + float(rng() % 1000) * 0.01f;
    copy_async(static_cast<float*>(logits.data()) + r * vocab, row.data(), row.size() * sizeof(float), nullptr);
    synchronize();
  }
  return logits;
}

struct option {
  const char* name;
  row_draw draw;
};

} // namespace

int main() {
  const auto logits = make_logits();
  device_buffer draws(most_rows * sizeof(row_draw)), drawn(most_rows * sizeof(drawn_token)), top(most_rows * 20 * sizeof(drawn_token));
  device_buffer edits(most_rows * sizeof(row_edits)), entries(std::size_t(most_rows) * edits_a_row * sizeof(logit_edit));
  device_buffer scratch(std::size_t(edited_rows * vocab) * sizeof(float));
  std::vector<row_edits> lists;
  std::vector<logit_edit> all;
  for (std::int32_t r = 0; r < most_rows; ++r) {
    lists.push_back({.begin = r * edits_a_row, .n_penalised = edits_a_row});
    for (std::int32_t i = 0; i < edits_a_row; ++i)
      all.push_back({i * 100 + r % 100, 0.5f});
  }
  edits.upload(lists.data());
  entries.upload(all.data());
  const option options[] = {{"plain", {}},
                            {"top-k 50", {.top_k = 50}},
                            {"top-p 0.95", {.top_p = 0.95}},
                            {"min-p 0.05", {.min_p = 0.05}},
                            {"top-k 50, top-p 0.95", {.top_p = 0.95, .top_k = 50}},
                            {"1000 penalties", {.edits = 0}},
                            {"20 alternatives", {.n_top = 20}}};
  for (const auto& o : options)
    for (const std::int32_t rows : {1, 16, 64, 256}) {
      std::vector<row_draw> each(most_rows, o.draw);
      for (std::int32_t r = 0; r < most_rows; ++r)
        each[std::size_t(r)].row = r, each[std::size_t(r)].u = 0.37, each[std::size_t(r)].edits = o.draw.edits < 0 ? -1 : r,
        each[std::size_t(r)].top_begin = r * o.draw.n_top;
      draws.upload(each.data());
      const draw_arrays arrays{.n = rows,
                               .draws = static_cast<row_draw*>(draws.data()),
                               .edits = o.draw.edits < 0 ? nullptr : static_cast<row_edits*>(edits.data()),
                               .entries = static_cast<logit_edit*>(entries.data()),
                               .drawn = static_cast<drawn_token*>(drawn.data()),
                               .top = o.draw.n_top == 0 ? nullptr : static_cast<drawn_token*>(top.data()),
                               .truncated = o.draw.top_k > 0 || o.draw.top_p < 1 || o.draw.min_p > 0};
      const double us = microseconds([&](stream where) {
        draw_tokens(static_cast<float*>(logits.data()), vocab, arrays, static_cast<float*>(scratch.data()), where);
      });
      std::printf("%-22s rows %3d: %7.1f us, %6.0f GB/s\n", o.name, rows, us, double(rows) * double(vocab) * 4 / us / 1e3);
    }
}
