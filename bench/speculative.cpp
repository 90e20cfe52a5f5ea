// Speculative decoding of the long tail: samples of one prompt, plain and with drafts, the same tokens in fewer passes.
//   bench_speculative [DIR [DTYPE [TEMPERATURE [TOKENS [BATCH...]]]]]      default: models/smollm2-135m bfloat16 1.0 256 1 2 4 8
// Three prompts, one after the other, BATCH samples each, at most TOKENS new tokens, num_speculative_tokens 8. Two epochs: the second's
// draws are others, and its drafts come from the first's responses too; the weights stay, so the second is the best case.
// acceptance = accepted / drafted tokens; pass_ratio = plain passes / passes; speedup = plain seconds / drafted seconds, and cpu_speedup
// the same of the process's CPU seconds, which other work on the machine changes less (with one thread: taskset -c 0). Every result is
// compared with the plain one; a difference ends the program.
#include "core/allocator.hpp"
#include "model/compute.hpp"
#include "model/kernels/thread_pool.hpp"
#include "model/registry.hpp"
#include "model/tokenizer/tokenizer.hpp"
#include "rollout/generate_all.hpp"
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <ctime>
#include <string>
#include <vector>

using namespace troupe;

namespace {

const std::vector<std::string> prompts = {
    "Natalia sold 48 clips in April and half as many in May. How many clips did she sell altogether? Think step by step.",
    "Write a Python function that returns the n-th Fibonacci number, then explain each line.",
    "List the planets of the solar system in order, with one sentence about each.",
};

struct work {
  std::vector<std::vector<std::int32_t>> prompt_ids;
  double temperature = 1;
  std::int64_t tokens = 0;
};

struct outcome {
  std::vector<sample> samples;
  double seconds = 0, cpu_seconds = 0;
  std::int64_t tokens = 0, passes = 0, drafted = 0, accepted = 0;
};

outcome epoch(generator& g, const work& w, std::int64_t batch, std::uint32_t step) {
  outcome out;
  const auto before = g.counts();
  const auto begin = std::chrono::steady_clock::now();
  const auto cpu_begin = std::clock();
  for (std::size_t i = 0; i < w.prompt_ids.size(); ++i) {
    generation_request r;
    r.prompt_ids = w.prompt_ids[i];
    r.n = batch;
    r.params.temperature = w.temperature;
    r.params.max_tokens = w.tokens;
    r.key = {.seed = 1, .domain = draw::generate, .step = step, .index = std::uint32_t(i)};
    generate_all(g, {r}, [&](generation_output&& o) {
      out.tokens += std::int64_t(o.result.output_ids.size());
      out.samples.push_back(std::move(o.result));
    });
  }
  out.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  out.cpu_seconds = double(std::clock() - cpu_begin) / CLOCKS_PER_SEC;
  const auto after = g.counts();
  out.passes = after.passes - before.passes;
  out.drafted = after.drafted - before.drafted;
  out.accepted = after.accepted - before.accepted;
  return out;
}

bool measure(const std::shared_ptr<causal_lm>& model, compute& where, const std::vector<std::int32_t>& ends, const work& w,
             std::int64_t batch) {
  generator_options options{.max_num_seqs = batch, .max_sequence = 128 + w.tokens, .eos_token_ids = ends};
  options.parallel_for = [&](std::int64_t n, const std::function<void(std::int64_t)>& f) { where.pool().each(n, f); };
  generator plain(model, nullptr, options);
  options.speculative.num_speculative_tokens = 8;
  generator drafting(model, nullptr, options);
  for (const std::uint32_t step : {1u, 2u}) {
    const auto want = epoch(plain, w, batch, step), got = epoch(drafting, w, batch, step);
    if (got.samples != want.samples) {
      std::fprintf(stderr, "batch %d, epoch %u: drafts changed a result\n", int(batch), step);
      return false;
    }
    const double acceptance = double(got.accepted) / double(std::max<std::int64_t>(1, got.drafted));
    std::printf(
        "{\"batch\": %d, \"epoch\": %u, \"temperature\": %g, \"output_tokens\": %d, \"plain_passes\": %d, \"passes\": %d, \"pass_ratio\": "
        "%.2f, \"drafted\": %d, \"acceptance\": %.2f, \"plain_tokens_per_second\": %.1f, \"tokens_per_second\": %.1f, \"speedup\": %.2f, "
        "\"cpu_speedup\": %.2f}\n",
        int(batch), step, w.temperature, int(got.tokens), int(want.passes), int(got.passes), double(want.passes) / double(got.passes),
        int(got.drafted), acceptance, double(want.tokens) / want.seconds, double(got.tokens) / got.seconds, want.seconds / got.seconds,
        want.cpu_seconds / got.cpu_seconds);
    std::fflush(stdout);
  }
  return true;
}

} // namespace

int main(int argc, char** argv) {
  keep_freed_pages();
  const std::string dir = argc > 1 ? argv[1] : "models/smollm2-135m", type = argc > 2 ? argv[2] : "bfloat16";
  work w;
  w.temperature = argc > 3 ? std::stod(argv[3]) : 1.0;
  w.tokens = argc > 4 ? std::stoll(argv[4]) : 256;
  std::vector<std::int64_t> batches;
  for (int i = 5; i < argc; ++i)
    batches.push_back(std::stoll(argv[i]));
  if (batches.empty())
    batches = {1, 2, 4, 8};
  compute where;
  const auto model = load_model(dir, {.compute_type = type == "float32" ? dtype::f32 : dtype::bf16}, where);
  const auto tok = tokenizer::load(dir);
  for (const auto& p : prompts)
    w.prompt_ids.push_back(tok->encode("<|im_start|>user\n" + p + "<|im_end|>\n<|im_start|>assistant\n", false));
  const auto ends = load_eos_token_ids(dir, model->config());
  for (const auto batch : batches)
    if (!measure(model, where, ends, w, batch))
      return 1;
  return 0;
}
