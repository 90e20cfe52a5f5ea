// Attention on the GPU. Decoding in CUDA graphs: bytes of keys and values / time, against the rate of a device copy (read + written bytes)
// of the same run; caches are rotated so that they do not stay in L2. Prefill: 4 * D operations for each (query, key) pair of a head, half
// the square counted. Backward: 2.5 times that. bench/peer_attention.py prints the same of FlashAttention 2.
#include "model/kernels/cuda/attention.hpp"
#include "model/kernels/cuda/memory.hpp"
#include <algorithm>
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
  std::vector<int> order(std::size_t(batch) * pages), begin(batch), keys(batch, length), key_begin, n_keys, rows, query_begin{0}, queries;
  for (int s = 0; s < batch; ++s) {
    begin[s] = s * length;
    for (int i = 0; i < length; ++i) {
      key_begin.push_back(s * length), n_keys.push_back(i + 1), rows.push_back(s * length + i);
      for (int q = i; q < length; ++q)
        queries.push_back(s * length + q);
      query_begin.push_back(int(queries.size()));
    }
  }
  std::iota(order.begin(), order.end(), 0);
  const auto cache = noise(order.size() * shape.block_elements()), qkv = noise(std::size_t(n) * shape.row());
  const auto blocks = upload(order), d_begin = upload(begin), d_keys = upload(keys);
  const std::size_t width = std::size_t(shape.n_heads) * shape.head_dim;
  device_buffer out(n * width * 2), lse(std::size_t(n) * shape.n_heads * 4), scratch(attention_scratch_bytes(shape, batch, length));
  const attention_plan plan{batch, 0, n, ints(d_begin), ints(d_keys), ints(d_keys), ints(blocks), pages, length, length};
  const double flops = 2. * batch * length * length * width,
               t = graph_seconds(8, [&](int, cuda::stream s) {
                 attend(dtype::bf16, shape, plan, qkv.data(), cache.data(), out.data(), static_cast<float*>(lse.data()), scratch.data(), s);
               });
  const auto d_out = noise(n * width);
  device_buffer d_qkv(std::size_t(n) * shape.row() * 4);
  const auto d_key_begin = upload(key_begin), d_n_keys = upload(n_keys), d_rows = upload(rows), d_query_begin = upload(query_begin),
             d_queries = upload(queries);
  const attention_gradient_plan gradient{n, ints(d_key_begin), ints(d_n_keys), ints(d_rows), ints(d_query_begin), ints(d_queries)};
  const double back = graph_seconds(1, [&](int, cuda::stream s) {
    attend_backward(dtype::bf16, shape, gradient, qkv.data(), out.data(), static_cast<const float*>(lse.data()), d_out.data(),
                    static_cast<float*>(d_qkv.data()), s);
  });
  std::printf("prefill  %2d/%d d %3d  %3d x %5d  %7.1f us  %5.0f TFLOP/s   backward %8.1f us  %5.1f TFLOP/s\n", shape.n_heads,
              shape.n_kv_heads, shape.head_dim, batch, length, t * 1e6, flops / t / 1e12, back * 1e6, 2.5 * flops / back / 1e12);
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
    }
  } catch (const error& e) {
    std::fprintf(stderr, "%s\n", e.what());
    return exit_code(e.code());
  }
}
