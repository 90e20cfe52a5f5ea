// Generation on one GPU with random weights of a true shape, against what the GPU's memory and matrix units allow.
//   bench_cuda_generate [SHAPE [BATCH CONTEXT]...]     SHAPE: 8b 1b 135m split; default: 8b 1 64 64 1024 256 1024
// decode: median time of a step of `generator` after prefill; pass: the model's part of it. roofline = (weights + cache that a step reads)
// / copy rate, share = roofline / step. prefill: one pass of 8192 tokens; share = flops / (time * rate of an 8192^3 product). flops: 2 a
// weight of a layer and token, and 2 * 2 * heads
// * head_dim a key and query, half of the square. Copy and product are measured in the same run; bytes of a copy: read + written.
#include "model/compute.hpp"
#include "model/kernels/cuda/linear.hpp"
#include "model/kernels/cuda/memory.hpp"
#include "model/kernels/gemm.hpp"
#include "model/layout.hpp"
#include "model/registry.hpp"
#include "rollout/generator.hpp"
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>
#include <vector>

using namespace troupe;
using steady = std::chrono::steady_clock;

namespace {

double since(steady::time_point begin) { return std::chrono::duration<double>(steady::now() - begin).count(); }

layer_config layer(std::int64_t hidden, std::int64_t intermediate, std::int64_t heads, std::int64_t kv_heads, std::int64_t head_dim) {
  layer_config l;
  l.hidden = hidden, l.intermediate = intermediate, l.n_heads = heads, l.n_kv_heads = kv_heads, l.head_dim = head_dim;
  l.rms_norm_eps = 1e-5;
  l.rope.theta = 500000;
  return l;
}

model_config shape(const std::string& name) {
  model_config c;
  c.architecture = "LlamaForCausalLM";
  c.vocab_size = 128256;
  c.max_position_embeddings = 32768;
  c.layer = layer(4096, 14336, 32, 8, 128);
  c.n_layers = 32;
  if (name == "1b") {
    c.layer = layer(2048, 8192, 32, 8, 64);
    c.n_layers = 16, c.tie_word_embeddings = true;
  } else if (name == "135m") {
    c.layer = layer(576, 1536, 9, 3, 64);
    c.n_layers = 30, c.vocab_size = 49152, c.tie_word_embeddings = true;
  } else if (name == "split") { // the front half of an 8B, four layers of a 70B's width
    c.architecture = "CustomSplitLLamaForCausalLM";
    split_config s;
    s.n_layers_8 = s.whole_8 = 16, s.n_layers_70 = s.whole_70 = 4;
    s.layer_70 = layer(8192, 28672, 64, 8, 128);
    c.split = s;
    c.n_layers = 20;
  } else if (name != "8b") {
    std::fprintf(stderr, "unknown shape %s; one of 8b 1b 135m split\n", name.c_str());
    std::exit(2);
  }
  return c;
}

// The same random numbers again and again, straight to the GPU: matrices of deviation 0.02, norms of ones.
void fill(causal_lm& model) {
  constexpr std::size_t n = std::size_t{16} << 20;
  std::vector<kernels::bf16> noise(n), ones(16384, kernels::narrow(1.0f));
  std::mt19937 rng(1);
  std::normal_distribution<float> normal(0, 0.02f);
  for (auto& v : noise)
    v = kernels::narrow(normal(rng));
  for (const parameter& p : model.parameters()) {
    const auto& from = p.shape.size() > 1 ? noise : ones;
    for (std::size_t at = 0; at < p.numel(); at += from.size())
      cuda::copy_async(static_cast<kernels::bf16*>(p.device_value) + at, from.data(), std::min(from.size(), p.numel() - at) * 2, nullptr);
  }
  cuda::synchronize();
}

template <class F>
double best_ms(int times, const F& work) {
  double best = 1e30;
  for (int i = 0; i < times; ++i) {
    cuda::event begin, end;
    begin.record(nullptr);
    work();
    end.record(nullptr);
    end.synchronize();
    best = std::min(best, double(end.elapsed_ms(begin)));
  }
  return best;
}

double copy_rate() {
  const std::size_t bytes = std::size_t{4} << 30;
  const cuda::device_buffer a(bytes), b(bytes);
  return 2 * double(bytes) / (best_ms(5, [&] { cuda::copy_async(b.data(), a.data(), bytes, nullptr); }) * 1e-3);
}

double product_rate() {
  constexpr std::int64_t n = 8192;
  cuda::device_buffer x(n * n * 2), w(n * n * 2), y(n * n * 2);
  std::vector<kernels::bf16> noise(std::size_t(n * n));
  std::mt19937 rng(2);
  for (auto& v : noise)
    v = kernels::narrow(float(int(rng() % 2001) - 1000) * 1e-3f);
  x.upload(noise.data());
  w.upload(noise.data());
  cuda::matmul m;
  const auto run = [&] { m.forward(dtype::bf16, x.data(), w.data(), nullptr, n, n, n, y.data(), dtype::bf16, nullptr); };
  run();
  return 2.0 * n * n * n / (best_ms(10, run) * 1e-3);
}

struct sizes {
  double weight_bytes = 0;      // that a step reads: all but the embedding where the head is another tensor
  double layer_weights = 0;     // elements
  double cache_bytes_token = 0; // keys and values of a token
  double attention = 0;         // heads * head_dim over the layers
};
sizes sizes_of(const model_config& c) {
  sizes s;
  for (const auto& b : layout_of(c)) {
    double n = 0;
    for (const auto& t : b.tensors)
      n += double(t.numel());
    if (b.kind == block_kind::decoder || b.kind == block_kind::adapter)
      s.layer_weights += n;
    if (b.kind == block_kind::decoder) {
      s.cache_bytes_token += 2.0 * 2 * double(b.layer.n_kv_heads * b.layer.head_dim);
      s.attention += double(b.layer.n_heads * b.layer.head_dim);
    }
    if (b.kind != block_kind::embedding || c.tie_word_embeddings)
      s.weight_bytes += 2 * n;
  }
  return s;
}

// A decoding pass by itself, the host's share of a step left out: seconds, the best of 20.
double pass_seconds(causal_lm& model, std::int64_t batch, std::int64_t context) {
  const auto each = std::int32_t((context + 32) / kv_block_tokens);
  const auto cache = model.make_cache(std::int32_t(batch) * each);
  token_batch b;
  b.n_blocks = std::int32_t(batch) * each;
  std::vector<std::int32_t> rows;
  std::vector<token_draw> draws;
  for (std::int32_t i = 0; i < batch; ++i) {
    segment s{i, i + 1, std::int32_t(context), {}};
    for (std::int32_t p = 0; p < each; ++p)
      s.blocks.push_back(i * each + p);
    b.ids.push_back(i);
    b.positions.push_back(std::int32_t(context));
    b.segments.push_back(std::move(s));
    rows.push_back(i);
    draws.push_back({i, 1.0, 0.5});
  }
  std::vector<drawn_token> drawn(draws.size());
  double best = 1e30;
  for (int i = 0; i < 20; ++i) {
    const auto t = steady::now();
    model.forward_draw(b, *cache, rows, draws, drawn.data());
    best = std::min(best, since(t));
  }
  return best;
}

void decode(const std::shared_ptr<causal_lm>& model, std::int64_t batch, std::int64_t context, double copy) {
  constexpr std::int64_t steps = 64;
  const double pass = pass_seconds(*model, batch, context);
  generator g(model, nullptr,
              {.max_num_seqs = batch, .max_batch_tokens = 8192, .max_sequence = context + steps + 32, .eos_token_ids = {{}}});
  std::mt19937 rng(3);
  for (std::int64_t i = 0; i < batch; ++i) {
    generation_request r;
    r.id = std::uint64_t(i);
    for (std::int64_t t = 0; t < context; ++t)
      r.prompt_ids.push_back(std::int32_t(rng() % std::uint32_t(model->config().vocab_size)));
    r.params.max_tokens = steps + 16;
    r.key = {.seed = 1, .domain = draw::generate, .index = std::uint32_t(i)};
    g.add(std::move(r));
  }
  const auto begin = steady::now();
  while (g.counts().rows < batch * context)
    g.step();
  const double prefill = since(begin);
  for (int i = 0; i < 8; ++i)
    g.step();
  std::vector<double> times;
  for (std::int64_t i = 0; i < steps - 8; ++i) {
    const auto t = steady::now();
    g.step();
    times.push_back(since(t));
  }
  std::nth_element(times.begin(), times.begin() + std::ptrdiff_t(times.size() / 2), times.end());
  const double step = times[times.size() / 2];
  const sizes s = sizes_of(model->config());
  const double floor = (s.weight_bytes + double(batch) * (double(context) + double(steps) / 2) * s.cache_bytes_token) / copy;
  std::printf("decode  batch %4lld context %5lld: prefill %.2f s, step %.3f ms (pass %.3f), %.0f tokens/s, roofline %.3f ms, share %.3f\n",
              (long long)batch, (long long)context, prefill, step * 1e3, pass * 1e3, double(batch) / step, floor * 1e3, floor / step);
  std::fflush(stdout);
}

void prefill(causal_lm& model, double peak) {
  constexpr std::int32_t n = 8192;
  const auto cache = model.make_cache(n / kv_block_tokens);
  token_batch b;
  b.n_blocks = n / kv_block_tokens;
  segment s{0, n, 0, {}};
  for (std::int32_t i = 0; i < n; ++i) {
    b.ids.push_back(std::int32_t(std::int64_t(i) * 7919 % model.config().vocab_size));
    b.positions.push_back(i);
  }
  for (std::int32_t i = 0; i < b.n_blocks; ++i)
    s.blocks.push_back(i);
  b.segments.push_back(std::move(s));
  std::vector<float> logits(std::size_t(model.config().vocab_size));
  const std::vector<std::int32_t> last = {n - 1};
  double best = 1e30;
  for (int i = 0; i < 4; ++i) {
    const auto t = steady::now();
    model.forward(b, *cache, last, logits.data());
    best = std::min(best, since(t));
  }
  const sizes z = sizes_of(model.config());
  const double flops = 2 * z.layer_weights * n + 2 * 2 * z.attention * double(n) * n / 2;
  std::printf("prefill %d tokens: %.1f ms, %.0f tokens/s, %.0f TFLOP/s, share of the product's rate %.3f\n", n, best * 1e3, n / best,
              flops / best * 1e-12, flops / best / peak);
}

} // namespace

int main(int argc, char** argv) {
  std::vector<std::string> arguments(argv + 1, argv + argc);
  if (arguments.empty())
    arguments = {"8b", "1", "64", "64", "1024", "256", "1024"};
  const double copy = copy_rate(), peak = product_rate();
  std::printf("copy %.0f GB/s, product %.0f TFLOP/s\n", copy * 1e-9, peak * 1e-12);
  compute where(0, best_isa(), 0);
  const auto begin = steady::now();
  const auto model = make_model(shape(arguments[0]), {.compute_type = dtype::bf16}, where);
  fill(*model);
  std::printf("%s: %.2f GiB of weights, made and filled in %.2f s\n", arguments[0].c_str(),
              sizes_of(model->config()).weight_bytes / double(1 << 30), since(begin));
  for (std::size_t i = 1; i + 1 < arguments.size(); i += 2)
    decode(model, std::stoll(arguments[i]), std::stoll(arguments[i + 1]), copy);
  prefill(*model, peak);
  return 0;
}
