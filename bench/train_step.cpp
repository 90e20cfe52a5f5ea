// A quickstart-sized training step on the CPU, by part: 16 prompts of 44 tokens x 8 samples of 12 tokens, all with an advantage.
// model_gflop = 6 * (linear weights of the layers * rows + head weights * rows that predict) / 1e9: forward 2, backward 4.
// gemm_gflops = 2 * 2048 * 3072 * 576 / seconds of the exact GEMM with all threads: the limit, measured in this run.
// utilisation = model_gflop / (seconds of forward and backward * gemm_gflops); it counts with everything trained.
// train_step [DIR [THREADS [GLOB...]]]: each GLOB is a model.trainable, e.g. "model.adapter.*" of a split model, measured in a process of
// its own. state_mib = 16 bytes a trained weight: float32 master, gradient, Adam's two moments; peak_rss_mib of that process. Ratios: a
// GLOB's step (forward, backward, update: norm, AdamW, rounding, layout), state and peak over those of the last one.
#include "core/allocator.hpp"
#include "learner/optimizer.hpp"
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
#include <sys/wait.h>
#include <unistd.h>

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

// Multiply-adds of a step with everything trained, forward and backward.
double model_gflop(causal_lm& model, const packed_batch& batch) {
  double linear = 0, head = 0;
  for (const parameter& p : model.parameters()) {
    if (p.name.find("_proj") != std::string::npos || p.name.find("model.adapter.") != std::string::npos)
      linear += double(p.numel());
    if (p.name.find("embed") != std::string::npos)
      head = double(p.numel());
  }
  std::vector<std::int32_t> rows = batch.target_rows;
  std::sort(rows.begin(), rows.end());
  const auto predicting = double(std::unique(rows.begin(), rows.end()) - rows.begin());
  return 6e-9 * (linear * double(batch.tokens.ids.size()) + head * predicting);
}

struct figures {
  double step = 1e30, state_mib = 0, peak_mib = 0;
};

figures measure(const std::string& dir, int threads, const std::string& glob) {
  compute where(threads);
  const auto model = load_model(dir, {dtype::bf16, true, {glob}, nullptr}, where);
  const packed_batch batch = quickstart_batch(model->config().vocab_size);
  const double gflop = model_gflop(*model, batch), limit = gemm_gflops(where);
  std::vector<parameter*> trained;
  for (parameter& p : model->parameters())
    if (p.trainable)
      trained.push_back(&p);
  adamw optimizer({}, std::vector<const parameter*>(trained.begin(), trained.end()));
  figures best;
  for (const auto* p : trained)
    best.state_mib += double(p->master.size_bytes() + p->grad.size_bytes()) / (1 << 20);
  for (const auto& m : optimizer.state())
    best.state_mib += double((m.first.size() + m.second.size()) * sizeof(float)) / (1 << 20);
  for (int round = 0; round < 4; ++round) {
    std::unique_ptr<tape> saved;
    target_values values;
    std::vector<float> d(batch.targets.size(), 1e-3f);
    const double forward = seconds([&] { values = model->score(batch, 1.f, true, &saved); });
    const double backward = seconds([&] {
      model->zero_grads();
      model->backward(*saved, d, {});
    });
    const double update = seconds([&] {
      std::vector<std::span<const float>> grads;
      for (const auto* p : trained)
        grads.push_back(p->grad);
      optimizer.step(where.pool(), trained, 1e-6, clip_factor(global_norm(where.pool(), grads), 1));
      model->publish_masters();
    });
    rusage used{};
    getrusage(RUSAGE_SELF, &used);
    best.peak_mib = double(used.ru_maxrss) / 1024;
    best.step = std::min(best.step, forward + backward + update);
    std::printf("{\"bench\": \"train_step\", \"isa\": \"%s\", \"threads\": %d, \"rows\": %zu, \"targets\": %zu, \"forward_s\": %.3f, "
                "\"backward_s\": %.3f, \"update_s\": %.3f, \"model_gflop\": %.0f, \"gemm_gflops\": %.0f, \"utilisation\": %.2f, "
                "\"trainable\": \"%s\", \"state_mib\": %.1f, \"peak_rss_mib\": %.0f}\n",
                std::string(name_of(where.which())).c_str(), where.threads(), batch.tokens.ids.size(), batch.targets.size(), forward,
                backward, update, gflop, limit, gflop / (forward + backward) / limit, glob.c_str(), best.state_mib, best.peak_mib);
  }
  return best;
}

// In a process of its own, so that the peak is this one's.
figures measure_apart(const std::string& dir, int threads, const std::string& glob) {
  int ends[2];
  if (pipe(ends) != 0)
    return {};
  const pid_t child = fork();
  if (child == 0) {
    keep_freed_pages();
    const figures found = measure(dir, threads, glob);
    std::fflush(stdout);
    _exit(write(ends[1], &found, sizeof found) == ssize_t(sizeof found) ? 0 : 1);
  }
  close(ends[1]);
  figures found;
  const bool whole = read(ends[0], &found, sizeof found) == ssize_t(sizeof found);
  close(ends[0]);
  waitpid(child, nullptr, 0);
  return whole ? found : figures{};
}

} // namespace

int main(int argc, char** argv) {
  const std::string dir = argc > 1 ? argv[1] : "models/smollm2-135m";
  const int threads = argc > 2 ? std::stoi(argv[2]) : 0;
  const std::vector<std::string> globs = argc > 3 ? std::vector<std::string>(argv + 3, argv + argc) : std::vector<std::string>{"*"};
  std::vector<figures> all;
  for (const auto& glob : globs)
    all.push_back(measure_apart(dir, threads, glob));
  for (std::size_t i = 0; i + 1 < all.size(); ++i)
    std::printf("{\"bench\": \"train_step\", \"trainable\": \"%s\", \"over\": \"%s\", \"step_ratio\": %.3f, \"state_ratio\": %.4f, "
                "\"peak_rss_ratio\": %.3f}\n",
                globs[i].c_str(), globs.back().c_str(), all[i].step / all.back().step, all[i].state_mib / all.back().state_mib,
                all[i].peak_mib / all.back().peak_mib);
}
