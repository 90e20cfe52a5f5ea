// Decoding on the CPU: output tokens a second beside the model's matrix products alone and the memory's rate.
//   bench_decode [DIR [DTYPE [CONTEXT [BATCH...]]]]      default: models/smollm2-135m bfloat16 40 1 16 64 128
// tokens_per_second = batch * 64 / seconds of the fastest of three runs (CONTEXT prompt tokens, 64 new ones, temperature 1).
// prefill_s = seconds until every sequence has its first token; decode_step_ms = (seconds - prefill_s) / 63.
// gemm_step_ms: one step's matrix products as the model makes them (SiLU and residuals fused), each layer's weights apart.
// cache_step_ms = bytes of keys and values that a step reads, on average over the run / read rate.
// share = (gemm_step_ms + cache_step_ms) / decode_step_ms.
#include "core/allocator.hpp"
#include "model/compute.hpp"
#include "model/config.hpp"
#include "model/kernels/gemm.hpp"
#include "model/kernels/thread_pool.hpp"
#include "model/registry.hpp"
#include "rollout/generate_all.hpp"
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

using namespace troupe;

namespace {

constexpr std::int64_t new_tokens = 64;

template <class F>
double fastest(int times, F&& f) {
  double best = 1e30;
  for (int i = 0; i < times; ++i) {
    const auto begin = std::chrono::steady_clock::now();
    f();
    best = std::min(best, std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
  }
  return best;
}

double generate_seconds(const std::shared_ptr<causal_lm>& model, compute& where, std::int64_t batch, std::int64_t context,
                        std::int64_t tokens) {
  return fastest(3, [&] {
    generator_options options{.max_num_seqs = batch, .max_sequence = context + new_tokens};
    options.parallel_for = [&](std::int64_t n, const std::function<void(std::int64_t)>& f) { where.pool().each(n, f); };
    generator g(model, nullptr, options);
    std::vector<generation_request> requests;
    for (std::int64_t b = 0; b < batch; ++b) {
      generation_request r;
      for (std::int64_t p = 0; p < context; ++p)
        r.prompt_ids.push_back(std::int32_t((100 + 7 * b + 31 * p) % model->config().vocab_size));
      r.params.max_tokens = tokens;
      r.params.ignore_eos = true;
      r.key.index = std::uint32_t(b);
      requests.push_back(std::move(r));
    }
    generate_all(g, std::move(requests), [](generation_output&&) {});
  });
}

template <class T>
double gemm_seconds(const model_config& cfg, compute& where, std::int64_t batch) {
  const auto& l = cfg.layer;
  const std::int64_t attention = l.n_heads * l.head_dim, qkv = attention + 2 * l.n_kv_heads * l.head_dim;
  struct layer {
    kernels::packed_weight<T> qkv, out, gate_up, down;
  };
  std::vector<layer> layers;
  for (std::int64_t i = 0; i < cfg.n_layers; ++i)
    layers.push_back({{qkv, l.hidden}, {l.hidden, attention}, {l.intermediate, l.hidden, true}, {l.hidden, l.intermediate}});
  const kernels::packed_weight<T> head(cfg.vocab_size, l.hidden);
  std::vector<T> x(std::size_t(batch * l.hidden)), q(std::size_t(batch * qkv)), a(std::size_t(batch * attention)),
      act(std::size_t(batch * l.intermediate));
  std::vector<float> logits(std::size_t(batch * cfg.vocab_size));
  const kernels::gemm_epilogue<T> residual{nullptr, x.data(), l.hidden};
  const auto step = [&] {
    for (const auto& w : layers) {
      kernels::gemm(where.pool(), where.which(), x.data(), l.hidden, batch, w.qkv, q.data(), qkv);
      kernels::gemm(where.pool(), where.which(), a.data(), attention, batch, w.out, x.data(), l.hidden, residual);
      kernels::gemm(where.pool(), where.which(), x.data(), l.hidden, batch, w.gate_up, act.data(), l.intermediate);
      kernels::gemm(where.pool(), where.which(), act.data(), l.intermediate, batch, w.down, x.data(), l.hidden, residual);
    }
    kernels::gemm(where.pool(), where.which(), x.data(), l.hidden, batch, head, logits.data(), cfg.vocab_size);
  };
  step();
  return fastest(5, step);
}

// Eight sums and early asking, which a plain loop lacks: the rate that the memory gives, not what one chain of additions takes.
[[gnu::target("avx2")]] std::int64_t read_all(const char* p, std::int64_t bytes) {
  using words = std::int64_t __attribute__((vector_size(32)));
  words sums[8] = {};
  for (std::int64_t i = 0; i + 256 <= bytes; i += 256)
    for (int j = 0; j < 8; ++j) {
      words w;
      std::memcpy(&w, p + i + j * 32, 32);
      sums[j] += w;
      __builtin_prefetch(p + i + j * 32 + 4096);
    }
  std::int64_t total = 0;
  for (const auto& s : sums)
    total += s[0] + s[1] + s[2] + s[3];
  return total;
}

double read_rate(compute& where) {
  const std::int64_t bytes = std::int64_t{512} << 20;
  const std::vector<char> memory(std::size_t(bytes), 1);
  std::atomic<std::int64_t> sum{0};
  const double seconds = fastest(5, [&] {
    where.pool().run([&](int t) {
      const std::int64_t n = bytes / where.threads();
      sum += read_all(memory.data() + n * t, n);
    });
  });
  return sum == 0 ? 0.0 : double(bytes) / seconds / 1e9;
}

void measure(const std::string& dir, dtype type, std::int64_t context, const std::vector<std::int64_t>& batches) {
  compute where;
  const auto model = load_model(dir, {.compute_type = type}, where);
  const double rate = read_rate(where);
  const std::string name{name_of(type)};
  std::printf("{\"dtype\": \"%s\", \"threads\": %d, \"isa\": \"%s\", \"read_gb_per_second\": %.1f}\n", name.c_str(), where.threads(),
              std::string(name_of(where.which())).c_str(), rate);
  for (const std::int64_t batch : batches) {
    const double gemm = type == dtype::bf16 ? gemm_seconds<kernels::bf16>(model->config(), where, batch)
                                            : gemm_seconds<float>(model->config(), where, batch);
    const double cache =
        double(batch) * (double(context) + double(new_tokens) / 2) * double(model->cache_block_bytes()) / kv_block_tokens / (rate * 1e9);
    const double prefill = generate_seconds(model, where, batch, context, 1),
                 total = generate_seconds(model, where, batch, context, new_tokens);
    const double step = (total - prefill) / double(new_tokens - 1);
    std::printf(
        "{\"dtype\": \"%s\", \"context\": %d, \"batch\": %d, \"tokens_per_second\": %.1f, \"prefill_s\": %.3f, \"decode_step_ms\": %.2f, "
        "\"gemm_step_ms\": %.2f, \"cache_step_ms\": %.2f, \"share\": %.2f}\n",
        name.c_str(), int(context), int(batch), double(batch) * new_tokens / total, prefill, 1e3 * step, 1e3 * gemm, 1e3 * cache,
        (gemm + cache) / step);
    std::fflush(stdout);
  }
}

} // namespace

int main(int argc, char** argv) {
  keep_freed_pages();
  const std::string dir = argc > 1 ? argv[1] : "models/smollm2-135m";
  const std::string type = argc > 2 ? argv[2] : "bfloat16";
  std::vector<std::int64_t> batches;
  for (int i = 4; i < argc; ++i)
    batches.push_back(std::stoll(argv[i]));
  if (batches.empty())
    batches = {1, 16, 64, 128};
  measure(dir, type == "float32" ? dtype::f32 : dtype::bf16, argc > 3 ? std::stoll(argv[3]) : 40, batches);
  return 0;
}
