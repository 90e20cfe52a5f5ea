// Decoding on the CPU: output tokens a second at batch 1, 16, 64, 128, beside the model's matrix products alone and the memory's rate.
// tokens_per_second = batch * 64 / seconds of the fastest of three runs (40 prompt tokens, 64 new ones, temperature 1).
// gemm_tokens_per_second = batch / seconds of one step's matrix products, each layer's weights apart.
// read_gb_per_second = bytes / seconds of reading 512 MB with all threads.
#include "model/compute.hpp"
#include "model/config.hpp"
#include "model/kernels/gemm.hpp"
#include "model/kernels/thread_pool.hpp"
#include "model/registry.hpp"
#include "rollout/generate_all.hpp"
#include <chrono>
#include <cstdio>
#include <string>

using namespace troupe;

namespace {

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

double decode_seconds(const std::shared_ptr<causal_lm>& model, compute& where, std::int64_t batch) {
  return fastest(3, [&] {
    generator_options options{.max_num_seqs = batch, .max_sequence = 40 + 64};
    options.parallel_for = [&](std::int64_t n, const std::function<void(std::int64_t)>& f) { where.pool().each(n, f); };
    generator g(model, nullptr, options);
    std::vector<generation_request> requests;
    for (std::int64_t b = 0; b < batch; ++b) {
      generation_request r;
      for (std::int32_t p = 0; p < 40; ++p)
        r.prompt_ids.push_back(std::int32_t((100 + 7 * b + 31 * p) % model->config().vocab_size));
      r.params.max_tokens = 64;
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
  const std::int64_t attention = l.n_heads * l.head_dim;
  std::vector<kernels::packed_weight<T>> weights;
  for (std::int64_t i = 0; i < cfg.n_layers; ++i) {
    weights.emplace_back(attention + 2 * l.n_kv_heads * l.head_dim, l.hidden);
    weights.emplace_back(l.hidden, attention);
    weights.emplace_back(2 * l.intermediate, l.hidden);
    weights.emplace_back(l.hidden, l.intermediate);
  }
  weights.emplace_back(cfg.vocab_size, l.hidden);
  std::int64_t widest = cfg.vocab_size;
  for (const auto& w : weights)
    widest = std::max({widest, w.k(), w.n()});
  std::vector<T> x(std::size_t(batch * widest));
  std::vector<float> y(std::size_t(batch * widest));
  const auto step = [&] {
    for (const auto& w : weights)
      kernels::gemm<T, float>(where.pool(), where.which(), x.data(), w.k(), batch, w, y.data(), w.n());
  };
  step();
  return fastest(5, step);
}

double read_rate(compute& where) {
  std::vector<std::uint64_t> words(std::size_t(64) << 20, 1);
  std::vector<std::uint64_t> sums(std::size_t(where.threads()) * 8);
  const double seconds = fastest(5, [&] {
    where.pool().run([&](int t) {
      const auto n = words.size() / std::size_t(where.threads());
      std::uint64_t s = 0;
      for (std::size_t i = n * std::size_t(t); i < n * std::size_t(t + 1); ++i)
        s += words[i];
      sums[std::size_t(t) * 8] += s;
    });
  });
  return sums[0] == 0 ? 0.0 : double(words.size() * 8) / seconds / 1e9;
}

void measure(const std::string& dir, dtype type) {
  compute where;
  const auto model = load_model(dir, {.compute_type = type}, where);
  std::printf("{\"dtype\": \"%s\", \"threads\": %d, \"isa\": \"%s\", \"read_gb_per_second\": %.1f}\n", std::string(name_of(type)).c_str(),
              where.threads(), std::string(name_of(where.which())).c_str(), read_rate(where));
  for (const std::int64_t batch : {1, 16, 64, 128}) {
    const double limit = type == dtype::bf16 ? gemm_seconds<kernels::bf16>(model->config(), where, batch)
                                             : gemm_seconds<float>(model->config(), where, batch);
    std::printf("{\"dtype\": \"%s\", \"batch\": %d, \"tokens_per_second\": %.1f, \"gemm_tokens_per_second\": %.1f}\n",
                std::string(name_of(type)).c_str(), int(batch), double(batch) * 64 / decode_seconds(model, where, batch),
                double(batch) / limit);
    std::fflush(stdout);
  }
}

} // namespace

int main(int argc, char** argv) {
  const std::string dir = argc > 1 ? argv[1] : "models/smollm2-135m";
  const std::string which = argc > 2 ? argv[2] : "bfloat16";
  measure(dir, which == "float32" ? dtype::f32 : dtype::bf16);
  return 0;
}
