#include "model/compute.hpp"
#include "model/kernels/thread_pool.hpp"
#include "model/registry.hpp"
#include "rollout/generate_all.hpp"
#ifdef TROUPE_CUDA
#include "model/kernels/cuda/memory.hpp"
#endif
#include <algorithm>
#include <gtest/gtest.h>

namespace troupe {
namespace {

// The generator on a real, tiny model: what rollout and learner promise each other (docs/numerics.md).
struct place {
  dtype type;
  int threads;
  int gpu = -1;
  const char* model = "llama-tied"; // or one with a window: of 40 tokens, or of 9 in some layers
};

class generator_on_a_model : public testing::TestWithParam<place> {
protected:
  void SetUp() override {
#ifdef TROUPE_CUDA
    if (GetParam().gpu >= cuda::device_count())
      GTEST_SKIP() << "no GPU";
#endif
    model_ = load_model(std::filesystem::path(TROUPE_SOURCE_DIR "/tests/reference/data") / GetParam().model,
                        {.compute_type = GetParam().type}, where_);
  }
  std::vector<generation_request> requests() const {
    std::vector<generation_request> out;
    for (std::uint64_t i = 0; i < 5; ++i) {
      generation_request r;
      r.id = i;
      for (std::size_t p = 0; p < 3 + 17 * i; ++p)
        r.prompt_ids.push_back(std::int32_t((11 * i + 5 * p) % std::size_t(model_->config().vocab_size)));
      r.n = 3;
      r.params.max_tokens = 30;
      r.params.ignore_eos = true;
      r.key = {.seed = 3, .domain = draw::generate, .index = std::uint32_t(i)};
      out.push_back(std::move(r));
    }
    return out;
  }
  // Truncation and rules of every kind, on their own and together.
  static void restrict(std::vector<generation_request>& requests) {
    requests[1].params.top_k = requests[4].params.top_k = 20;
    requests[2].params.top_p = requests[4].params.top_p = 0.8;
    requests[3].params.min_p = 0.05;
    requests[2].params.frequency_penalty = requests[4].params.presence_penalty = 0.5;
    requests[3].params.repetition_penalty = requests[4].params.repetition_penalty = 1.3;
    requests[3].params.logit_bias = {{5, 4.0f}, {6, -100.0f}};
    requests[4].params.top_logprobs = 3;
  }
  std::vector<generation_output> run(generator_options options, std::vector<generation_request> requests) {
    options.max_sequence = 128;
    options.parallel_for = [this](std::int64_t n, const std::function<void(std::int64_t)>& f) { where_.pool().each(n, f); };
    generator g(model_, nullptr, std::move(options));
    std::vector<generation_output> out;
    generate_all(g, std::move(requests), [&](generation_output&& o) { out.push_back(std::move(o)); });
    preemptions_ = g.counts().preemptions;
    accepted_ = g.counts().accepted;
    return out;
  }

  compute where_{GetParam().threads, best_isa(), GetParam().gpu};
  std::shared_ptr<causal_lm> model_;
  std::int64_t preemptions_ = 0, accepted_ = 0;
};

TEST_P(generator_on_a_model, the_learners_pass_gives_the_same_bits) {
  auto all = requests();
  restrict(all);
  const auto outputs = run({.max_num_seqs = 16, .max_batch_tokens = 40, .cache_blocks = 64}, all);
  ASSERT_EQ(outputs.size(), 15u);
  batch_builder builder;
  std::vector<float> recorded;
  for (std::size_t i = 0; i < all.size(); ++i) {
    std::vector<std::vector<std::int32_t>> responses;
    for (const auto& o : outputs)
      if (o.id == i) {
        responses.push_back(o.result.output_ids);
        recorded.insert(recorded.end(), o.result.logprobs.begin(), o.result.logprobs.end());
      }
    builder.add_group(all[i].prompt_ids, responses);
  }
  EXPECT_EQ(model_->score(builder.take(), 1.0f, false, nullptr).logprobs, recorded);
}

TEST_P(generator_on_a_model, company_and_preemption_change_no_bit) {
  auto all = requests();
  restrict(all);
  const auto want = run({.max_num_seqs = 1, .cache_blocks = 8}, all);
  const auto got = run({.max_num_seqs = 16, .max_batch_tokens = 23, .cache_blocks = 7}, all);
  EXPECT_GT(preemptions_, 0);
  ASSERT_EQ(got.size(), want.size());
  for (std::size_t i = 0; i < want.size(); ++i)
    EXPECT_EQ(got[i].result, want[i].result) << i;
}

TEST_P(generator_on_a_model, drafts_change_no_bit) {
  auto all = requests();
  for (auto& r : all)
    r.params.temperature = 0.2; // so that a random model repeats itself
  const auto want = run({.max_num_seqs = 16, .cache_blocks = 64}, all);
  EXPECT_EQ(accepted_, 0);
  for (const std::int64_t blocks : {64, 9}) {
    const auto got = run({.max_num_seqs = 4, .max_batch_tokens = 50, .cache_blocks = blocks, .speculative = {6, 4, 0.03}}, all);
    EXPECT_GT(accepted_, 10);
    ASSERT_EQ(got.size(), want.size());
    for (std::size_t i = 0; i < want.size(); ++i)
      EXPECT_EQ(got[i].result, want[i].result) << i;
  }
}

TEST_P(generator_on_a_model, common_beginnings_and_sleep_change_no_bit) {
  auto all = requests();
  for (std::size_t i = 0; i < all.size(); ++i) { // 40 tokens in common with the last, the longest
    auto& ids = all[i].prompt_ids;
    ids.assign(all.back().prompt_ids.begin(), all.back().prompt_ids.begin() + 40);
    ids.push_back(std::int32_t(i));
  }
  all.push_back(all.front()); // the same again
  all.back().key.index = 9;
  std::vector<generation_output> want;
  for (const auto& r : all)
    want.push_back(std::move(run({.max_num_seqs = 1, .cache_blocks = 8}, {r}).front()));
  generator g(model_, nullptr, {.max_num_seqs = 9, .max_batch_tokens = 23, .cache_blocks = 12, .max_sequence = 128});
  std::size_t compared = 0;
  const auto check = [&] {
    for (const auto& o : g.step()) {
      if (o.sample_index != 0)
        continue;
      EXPECT_EQ(o.result, want[o.id].result) << o.id;
      ++compared;
    }
  };
  for (std::size_t i = 0; i < all.size(); ++i) {
    all[i].id = i;
    g.add(all[i]);
    for (int steps = 0; steps < 4; ++steps)
      check();
    if (i == 2) {
      g.sleep();
      g.wake();
    }
  }
  while (!g.idle())
    check();
  EXPECT_EQ(compared, all.size());
  EXPECT_GT(g.counts().reused_prompt_tokens, 0);
  EXPECT_EQ(g.counts().free_blocks, g.counts().blocks);
}

TEST_P(generator_on_a_model, after_new_weights_tokens_are_what_those_score) {
  const auto all = requests();
  generator g(model_, nullptr, {.max_num_seqs = 9, .max_batch_tokens = 40, .cache_blocks = 24, .max_sequence = 128});
  for (std::size_t i = 0; i < all.size(); ++i) {
    g.add(all[i]);
    g.set_version({0, 1});
  }
  std::vector<generation_output> outputs;
  const auto step = [&] {
    for (auto& o : g.step())
      outputs.push_back(std::move(o));
  };
  for (int i = 0; i < 12; ++i)
    step();
  const auto value = model_->parameters()[1].value; // the same numbers elsewhere
  std::swap_ranges(value.begin(), value.begin() + std::ptrdiff_t(value.size() / 2), value.begin() + std::ptrdiff_t(value.size() / 2));
  model_->publish_values();
  g.set_version({0, 2});
  while (!g.idle())
    step();
  int later = 0, earlier = 0;
  for (const auto& o : outputs) {
    const auto& s = o.result;
    batch_builder builder;
    builder.add_group(all[o.id].prompt_ids, {s.output_ids});
    const auto scored = model_->score(builder.take(), 1.0f, false, nullptr).logprobs;
    for (std::size_t i = 0; i < scored.size(); ++i)
      if (s.versions[i].step == 2) {
        EXPECT_EQ(s.logprobs[i], scored[i]) << o.id << " " << i;
        ++later;
      } else {
        earlier += s.logprobs[i] != scored[i];
      }
  }
  EXPECT_GT(later, 50);
  EXPECT_GT(earlier, 50); // the change does change something
}

INSTANTIATE_TEST_SUITE_P(dtypes_and_threads, generator_on_a_model,
                         testing::Values(place{dtype::f32, 1}, place{dtype::bf16, 1}, place{dtype::bf16, 2}));
INSTANTIATE_TEST_SUITE_P(with_a_window, generator_on_a_model,
                         testing::Values(place{dtype::f32, 1, -1, "family-mistral"}, place{dtype::bf16, 2, -1, "family-qwen2"}));
#ifdef TROUPE_CUDA
INSTANTIATE_TEST_SUITE_P(on_a_gpu, generator_on_a_model, testing::Values(place{dtype::f32, 1, 0}, place{dtype::bf16, 1, 0}));
#endif

} // namespace
} // namespace troupe
