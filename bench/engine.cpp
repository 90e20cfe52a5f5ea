// What the engine costs beside the model: scheduling, block tables, sampling and log-probabilities, with a model that computes nothing.
//   bench_engine [VOCAB [BATCH...]]      default: 49152 1 16 128
// us_per_token = seconds outside forward * 1e6 / tokens; us_per_step = the same / passes. 256 tokens a sequence, prompts of 40, the
// fastest of three runs. "sampling": temperature 1; top-p 0.95; penalties; greedy. Rows: normal logits (deviation 2) and 40 likely ids.
#include "core/random.hpp"
#include "model/causal_lm.hpp"
#include "model/compute.hpp"
#include "model/kernels/elementwise.hpp"
#include "model/kernels/thread_pool.hpp"
#include "rollout/generate_all.hpp"
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

using namespace troupe;
using steady = std::chrono::steady_clock;

namespace {

constexpr std::int64_t new_tokens = 256;

double seconds_since(steady::time_point begin) { return std::chrono::duration<double>(steady::now() - begin).count(); }

class no_cache final : public kv_cache {
public:
  explicit no_cache(std::int32_t n) : n_(n) {}
  std::int32_t n_blocks() const override { return n_; }
  void copy_block(std::int32_t, std::int32_t) override {}

private:
  std::int32_t n_;
};

// Gives the same row for every token; log-probabilities cost what they cost in a model.
class idle_lm final : public causal_lm {
public:
  idle_lm(std::int64_t vocab, isa which) : which_(which) {
    config_.vocab_size = vocab;
    config_.max_position_embeddings = 1 << 20;
    for (std::int64_t i = 0; i < vocab; ++i) {
      const auto uniform = [&](std::uint32_t place) {
        return double(draw_uniform({.seed = 1, .domain = draw::init, .index = std::uint32_t(i), .position = place}));
      };
      row_.push_back(float(2 * std::sqrt(-2 * std::log(1 - uniform(0))) * std::cos(6.283185307179586 * uniform(1))));
    }
    for (std::int64_t i = 0; i < 40; ++i)
      row_[std::size_t(i * 7919 % vocab)] = 16.0f - 0.2f * float(i);
  }
  const model_config& config() const override { return config_; }
  dtype compute_type() const override { return dtype::f32; }
  std::span<parameter> parameters() override { return {}; }
  void publish_masters() override {}
  void publish_values(std::span<const std::size_t>) override {}
  std::unique_ptr<kv_cache> make_cache(std::int32_t n) override { return std::make_unique<no_cache>(n); }
  std::size_t cache_block_bytes() const override { return 1; }
  void forward(const token_batch&, kv_cache&, std::span<const std::int32_t> rows, float* logits) override {
    const auto begin = steady::now();
    for (std::size_t i = 0; i < rows.size(); ++i)
      std::memcpy(logits + i * row_.size(), row_.data(), row_.size() * sizeof(float));
    seconds += seconds_since(begin);
  }
  target_values score(const packed_batch&, float, bool, std::unique_ptr<tape>*) override { return {}; }
  void backward(tape&, std::span<const float>, std::span<const float>) override {}
  void zero_grads() override {}
  float logprob(const float* logits, std::int32_t id, float temperature) const override {
    return kernels::softmax_row(which_, logits, config_.vocab_size, temperature, false).logprob(logits[id], temperature);
  }
  double seconds = 0; // in forward

private:
  model_config config_;
  isa which_;
  std::vector<float> row_;
};

struct sampling_case {
  const char* name;
  sampling_params params;
};

std::vector<sampling_case> sampling_cases() {
  std::vector<sampling_case> out = {{"temperature 1", {}}, {"top-p 0.95", {}}, {"penalties", {}}, {"greedy", {}}};
  out[1].params.top_p = 0.95;
  out[2].params.repetition_penalty = 1.1;
  out[2].params.presence_penalty = 0.5;
  out[3].params.temperature = 0;
  for (auto& c : out) {
    c.params.max_tokens = new_tokens;
    c.params.ignore_eos = true;
  }
  return out;
}

struct cost {
  double seconds = 1e30;
  std::int64_t tokens = 0, passes = 0;
};

cost run(const std::shared_ptr<idle_lm>& model, compute& where, std::int64_t batch, const sampling_params& params) {
  generator_options options{.max_num_seqs = batch, .max_sequence = 40 + new_tokens};
  options.parallel_for = [&](std::int64_t n, const std::function<void(std::int64_t)>& f) { where.pool().each(n, f); };
  generator g(model, nullptr, options);
  std::vector<generation_request> requests;
  for (std::int64_t b = 0; b < batch; ++b) {
    generation_request r;
    for (std::int64_t p = 0; p < 40; ++p)
      r.prompt_ids.push_back(std::int32_t((100 + 7 * b + 31 * p) % model->config().vocab_size));
    r.params = params;
    r.key.index = std::uint32_t(b);
    requests.push_back(std::move(r));
  }
  model->seconds = 0;
  const auto begin = steady::now();
  generate_all(g, std::move(requests), [](generation_output&&) {});
  return {seconds_since(begin) - model->seconds, batch * new_tokens, g.counts().passes};
}

} // namespace

int main(int argc, char** argv) {
  const std::int64_t vocab = argc > 1 ? std::stoll(argv[1]) : 49152;
  std::vector<std::int64_t> batches;
  for (int i = 2; i < argc; ++i)
    batches.push_back(std::stoll(argv[i]));
  if (batches.empty())
    batches = {1, 16, 128};
  compute where;
  const auto model = std::make_shared<idle_lm>(vocab, where.which());
  for (const auto& c : sampling_cases())
    for (const auto batch : batches) {
      cost best;
      for (int i = 0; i < 3; ++i)
        if (const auto now = run(model, where, batch, c.params); now.seconds < best.seconds)
          best = now;
      std::printf("{\"sampling\": \"%s\", \"vocab\": %d, \"threads\": %d, \"batch\": %d, \"us_per_token\": %.2f, \"us_per_step\": %.1f}\n",
                  c.name, int(vocab), where.threads(), int(batch), 1e6 * best.seconds / double(best.tokens),
                  1e6 * best.seconds / double(best.passes));
      std::fflush(stdout);
    }
  return 0;
}
