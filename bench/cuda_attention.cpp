// Attention on the GPU. Decoding in CUDA graphs: bytes of keys and values / time, against the rate of a device copy (read + written bytes)
// of the same run; caches are rotated so that they do not stay in L2. Prefill: 4 * D operations for each (query, key) pair of a head, half
// the square counted. Backward: 10 * D. bench/peer_attention.py prints the same of FlashAttention 2.
#include "core/error.hpp"
#include "model/kernels/cuda/attention_tiles.hpp"
#include "model/kernels/cuda/memory.hpp"
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <functional>
#include <numeric>
#include <random>
#include <vector>

namespace {

using namespace troupe;
using namespace troupe::cuda;

/// Median seconds of `calls` captured in one graph, a call.
double graph_seconds(int calls, const std::function<void(int, cuda::stream)>& call) {
  const stream_owner owner;
  const cuda::stream s = owner.get();
  call(0, s);
  begin_capture(s);
  for (int i = 0; i < calls; ++i)
    call(i, s);
  const graph ready = end_capture(s);
  std::vector<float> ms;
  for (int i = 0; i < 18; ++i) {
    event begin, end;
    begin.record(s), ready.launch(s), end.record(s), end.synchronize();
    ms.push_back(end.elapsed_ms(begin));
  }
  std::nth_element(ms.begin() + 3, ms.begin() + 10, ms.end());
  return ms[10] / 1e3 / calls;
}

double copy_rate() {
  const std::size_t n = std::size_t(1) << 31;
  const device_buffer a(n), b(n);
  float best = 1e9f;
  for (int i = 0; i < 10; ++i) {
    event begin, end;
    begin.record(nullptr), copy_async(b.data(), a.data(), n, nullptr), end.record(nullptr), end.synchronize();
    best = std::min(best, end.elapsed_ms(begin));
  }
  return 2 * double(n) / best * 1e3;
}

device_buffer upload(const std::vector<int>& values) {
  device_buffer buffer(values.size() * sizeof(int));
  buffer.upload(values.data());
  return buffer;
}
/// bf16 values of about +-1 with random signs and fractions.
device_buffer noise(std::size_t n) {
  std::mt19937 random(1);
  std::vector<std::uint16_t> some(1 << 20);
  for (auto& v : some)
    v = std::uint16_t(0x3f00 + random() % 256 + (random() % 2 << 15));
  device_buffer buffer(n * 2);
  for (std::size_t i = 0; i < n; i += some.size())
    copy_async(static_cast<std::uint16_t*>(buffer.data()) + i, some.data(), std::min(some.size(), n - i) * 2, nullptr);
  synchronize();
  return buffer;
}
const int* ints(const device_buffer& b) { return static_cast<const int*>(b.data()); }

void decode(const attention_shape& shape, int batch, int context, double copy) {
  const double bytes = double(batch) * context * shape.n_kv_heads * shape.head_dim * 4;
  const int sets = int(std::clamp(4e8 / bytes, 2., 64.)), pages = context / 32;
  std::vector<int> order(std::size_t(sets) * batch * pages), rows(batch), ones(batch, 1), keys(batch, context);
  std::iota(order.begin(), order.end(), 0), std::iota(rows.begin(), rows.end(), 0);
  std::shuffle(order.begin(), order.end(), std::mt19937(2));
  const auto cache = noise(order.size() * shape.block_elements()), qkv = noise(std::size_t(batch) * shape.row());
  const auto blocks = upload(order), d_rows = upload(rows), d_ones = upload(ones), d_keys = upload(keys);
  device_buffer out(std::size_t(batch) * shape.n_heads * shape.head_dim * 2), scratch(attention_scratch_bytes(shape, batch, context));
  fill_zero(scratch.data(), scratch.size(), nullptr);
  synchronize();
  const double t = graph_seconds(sets, [&](int i, cuda::stream s) {
    const attention_plan plan{batch, batch, batch,  ints(d_rows), ints(d_ones), ints(d_keys), ints(blocks) + std::size_t(i) * batch * pages,
                              pages, 1,     context};
    attend(dtype::bf16, shape, plan, qkv.data(), cache.data(), out.data(), nullptr, scratch.data(), s);
  });
  std::printf("decode   %2d/%d d %3d  %3d x %5d  %7.1f us  %5.0f GB/s  %.2f of copy\n", shape.n_heads, shape.n_kv_heads, shape.head_dim,
              batch, context, t * 1e6, bytes / t / 1e9, bytes / t / copy);
}

void prefill(const attention_shape& shape, int batch, int length) {
  const int pages = length / 32, n = batch * length;
  std::vector<int> order(std::size_t(batch) * pages), begin(batch), keys(batch, length);
  for (int s = 0; s < batch; ++s)
    begin[s] = s * length;
  std::iota(order.begin(), order.end(), 0);
  const auto cache = noise(order.size() * shape.block_elements()), qkv = noise(std::size_t(n) * shape.row());
  const auto blocks = upload(order), d_begin = upload(begin), d_keys = upload(keys);
  const std::size_t width = std::size_t(shape.n_heads) * shape.head_dim;
  device_buffer out(n * width * 2), scratch(attention_scratch_bytes(shape, batch, length));
  const attention_plan plan{batch, 0, n, ints(d_begin), ints(d_keys), ints(d_keys), ints(blocks), pages, length, length};
  const double flops = 2. * batch * length * length * width,
               t = graph_seconds(8, [&](int, cuda::stream s) {
                 attend(dtype::bf16, shape, plan, qkv.data(), cache.data(), out.data(), nullptr, scratch.data(), s);
               });
  std::printf("prefill  %2d/%d d %3d  %3d x %5d  %7.1f us  %5.0f TFLOP/s\n", shape.n_heads, shape.n_kv_heads, shape.head_dim, batch, length,
              t * 1e6, flops / t / 1e12);
}

/// A prompt's rows, then those of each response that continues it.
struct tree {
  int prompt;
  std::vector<int> responses;
};

/// Rows of the trees, and how many (query, key) pairs a head has.
struct forest {
  token_batch batch;
  kernels::key_rows keys;
  double pairs = 0;
  explicit forest(const std::vector<tree>& trees) {
    for (const tree& t : trees) {
      add({}, t.prompt);
      const auto prompt = keys.of_segment.back();
      for (const int n : t.responses)
        add(prompt, n);
    }
  }
  void add(std::vector<std::int32_t> rows, int n) {
    const auto begin = std::int32_t(batch.positions.size()), before = std::int32_t(rows.size());
    for (int i = 0; i < n; ++i)
      rows.push_back(begin + i), batch.positions.push_back(before + i), pairs += before + i + .5;
    batch.segments.push_back({begin, begin + n, before, {}});
    keys.of_segment.push_back(std::move(rows));
  }
};

template <class T>
device_buffer copied(const std::vector<T>& values) {
  device_buffer buffer(values.size() * sizeof(T));
  buffer.upload(values.data());
  return buffer;
}

void backward(const attention_shape& shape, const char* what, const std::vector<tree>& trees) {
  const forest f(trees);
  const int n = int(f.batch.positions.size());
  const auto begin = std::chrono::steady_clock::now();
  const attention_tiles t = find_attention_tiles(f.batch, f.keys);
  const std::chrono::duration<double> host = std::chrono::steady_clock::now() - begin;
  const auto tiles = copied(t.tile_begin), positions = copied(t.positions), key_lists = copied(t.key_lists),
             query_lists = copied(t.query_lists), key_entries = copied(t.key_entries), query_entries = copied(t.query_entries),
             masks = copied(t.masks);
  const attention_gradient_plan plan{n,
                                     t.n_pairs(),
                                     ints(tiles),
                                     ints(positions),
                                     static_cast<const attention_list*>(key_lists.data()),
                                     static_cast<const attention_list*>(query_lists.data()),
                                     static_cast<const attention_entry*>(key_entries.data()),
                                     static_cast<const attention_entry*>(query_entries.data()),
                                     static_cast<const std::uint64_t*>(masks.data())};
  const std::size_t width = std::size_t(shape.n_heads) * shape.head_dim;
  const auto qkv = noise(std::size_t(n) * shape.row()), out = noise(n * width), d_out = noise(n * width);
  const auto lse = copied(std::vector<float>(std::size_t(n) * shape.n_heads, 8.f));
  device_buffer d_qkv(std::size_t(n) * shape.row() * 4), scratch(plan.scratch_size(shape) * 4);
  const double flops = 10 * f.pairs * double(width),
               time = graph_seconds(4, [&](int, cuda::stream s) {
                 attend_backward(dtype::bf16, shape, plan, qkv.data(), out.data(), static_cast<const float*>(lse.data()), d_out.data(),
                                 static_cast<float*>(d_qkv.data()), static_cast<float*>(scratch.data()), s);
               });
  std::printf("backward %2d/%d d %3d  %-24s %8.1f us  %5.1f TFLOP/s   plan %.0f us on the host\n", shape.n_heads, shape.n_kv_heads,
              shape.head_dim, what, time * 1e6, flops / time / 1e12, host.count() * 1e6);
}

void backward(const attention_shape& shape) {
  backward(shape, "4 x 2048", std::vector<tree>(4, {2048, {}}));
  backward(shape, "1 x 8192", {{8192, {}}});
  backward(shape, "mixed, 8192 rows",
           {{4096, {}}, {1100, {}}, {1000, {}}, {700, {}}, {500, {}}, {300, {}}, {250, {}}, {150, {}}, {96, {}}});
  backward(shape, "4 x (512 + 8 x 192)", std::vector<tree>(4, {512, std::vector<int>(8, 192)}));
  backward(shape, "16 x (40 + 8 x 9)", std::vector<tree>(16, {40, std::vector<int>(8, 9)}));
}

} // namespace

int main() {
  try {
    const double copy = copy_rate();
    std::printf("device copy %.0f GB/s (read + written)\n", copy / 1e9);
    for (const attention_shape& shape : {attention_shape{32, 8, 128}, attention_shape{9, 3, 64}}) {
      for (const auto& [batch, context] : {std::pair{1, 1024}, {16, 1024}, {64, 1024}, {256, 1024}, {64, 4096}, {1, 16384}})
        decode(shape, batch, context, copy);
      prefill(shape, 4, 2048), prefill(shape, 1, 8192);
      backward(shape);
    }
  } catch (const error& e) {
    std::fprintf(stderr, "%s\n", e.what());
    return exit_code(e.code());
  }
}
