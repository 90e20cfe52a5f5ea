// A quickstart-sized training step on the CPU, by part: 16 prompts of 44 tokens x 8 samples of 12 tokens, all with an advantage.
// model_gflop = 6 * (linear weights of the layers * rows + head weights * rows that predict) / 1e9: forward 2, backward 4.
// gemm_gflops = 2 * 2048 * 3072 * 576 / seconds of the exact GEMM with all threads: the limit, measured in this run.
// utilisation = model_gflop / (seconds of forward and backward * gemm_gflops); it counts with everything trained.
// train_step [DIR [THREADS [GLOB]]]: GLOB: model.trainable, e.g. "model.adapter.*" of a split model. state_mib = 12 bytes a trained weight
// (gradient and Adam's two moments); peak_rss_mib of the process so far, moments not among it.
#include "core/allocator.hpp"
#include "model/compute.hpp"
#include "model/kernels/gemm.hpp"
#include "model/kernels/thread_pool.hpp"
#include "model/registry.hpp"
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <random>
#include <string>
#include <sys/resource.h>

using namespace troupe;

namespace {

template <class F>
double seconds(F&& f) {
  const auto begin = std::chrono::steady_clock::now();
  f();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

double gemm_gflops(compute& where) {
  const std::int64_t m = 2048, n = 3072, k = 576;
  std::vector<kernels::bf16> x(std::size_t(m * k), 0x3f80), y(std::size_t(m * n));
  kernels::packed_weight<kernels::bf16> w(n, k);
  double best = 1e30;
  for (int i = 0; i < 5; ++i)
    best = std::min(best, seconds([&] { kernels::gemm(where.pool(), where.which(), x.data(), k, m, w, y.data(), n); }));
  return 2e-9 * double(m * n * k) / best;
}

packed_batch quickstart_batch(std::int64_t vocab) {
  std::mt19937 rng(1);
  const auto ids = [&](int n) {
    std::vector<std::int32_t> v;
    for (int i = 0; i < n; ++i)
      v.push_back(std::int32_t(rng() % std::uint32_t(vocab)));
    return v;
  };
  batch_builder builder;
  for (int g = 0; g < 16; ++g) {
    std::vector<std::vector<std::int32_t>> responses;
    for (int s = 0; s < 8; ++s)
      responses.push_back(ids(12));
    builder.add_group(ids(44), responses);
  }
  return builder.take();
}

} // namespace

int main(int argc, char** argv) {
  keep_freed_pages();
  const std::string dir = argc > 1 ? argv[1] : "models/smollm2-135m";
  compute where(argc > 2 ? std::stoi(argv[2]) : 0);
  const std::string glob = argc > 3 ? argv[3] : "*";
  const auto model = load_model(dir, {dtype::bf16, true, {glob}}, where);
  const packed_batch batch = quickstart_batch(model->config().vocab_size);
  double linear = 0, head = 0, trained = 0;
  for (const parameter& p : model->parameters()) {
    if (p.name.find("_proj") != std::string::npos)
      linear += double(p.numel());
    if (p.name.find("embed") != std::string::npos)
      head = double(p.numel());
    trained += double(p.grad.size());
  }
  std::vector<std::int32_t> rows = batch.target_rows;
  std::sort(rows.begin(), rows.end());
  const auto predicting = double(std::unique(rows.begin(), rows.end()) - rows.begin());
  const double gflop = 6e-9 * (linear * double(batch.tokens.ids.size()) + head * predicting);
  for (int round = 0; round < 3; ++round) {
    std::unique_ptr<tape> saved;
    target_values values;
    std::vector<float> d(batch.targets.size(), 1e-3f);
    const double forward = seconds([&] { values = model->score(batch, 1.f, true, &saved); });
    const double backward = seconds([&] {
      model->zero_grads();
      model->backward(*saved, d, {});
    });
    const double publish = seconds([&] { model->publish_masters(); });
    const double limit = gemm_gflops(where);
    rusage used{};
    getrusage(RUSAGE_SELF, &used);
    std::printf("{\"bench\": \"train_step\", \"isa\": \"%s\", \"threads\": %d, \"rows\": %zu, \"targets\": %zu, \"forward_s\": %.3f, "
                "\"backward_s\": %.3f, "
                "\"publish_s\": %.3f, \"model_gflop\": %.0f, \"gemm_gflops\": %.0f, \"utilisation\": %.2f, \"trainable\": \"%s\", "
                "\"state_mib\": %.1f, \"peak_rss_mib\": %ld}\n",
                std::string(name_of(where.which())).c_str(), where.threads(), batch.tokens.ids.size(), batch.targets.size(), forward,
                backward, publish, gflop, limit, gflop / (forward + backward) / limit, glob.c_str(), trained * 12 / (1 << 20),
                used.ru_maxrss / 1024);
  }
}
