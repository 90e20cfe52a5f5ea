#include "model/compute.hpp"
#include "model/kernels/thread_pool.hpp"
#include "model/registry.hpp"
#include "rollout/generate_all.hpp"
#include <gtest/gtest.h>

namespace troupe {
namespace {

// The generator on a real, tiny model: what rollout and learner promise each other (docs/numerics.md).
class generator_on_a_model : public testing::TestWithParam<std::pair<dtype, int>> {
protected:
  std::vector<generation_request> requests() const {
    std::vector<generation_request> out;
    for (std::uint64_t i = 0; i < 5; ++i) {
      generation_request r;
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
  std::vector<generation_output> run(generator_options options, std::vector<generation_request> requests) {
    options.max_sequence = 128;
    options.parallel_for = [this](std::int64_t n, const std::function<void(std::int64_t)>& f) { where_.pool().each(n, f); };
    generator g(model_, nullptr, std::move(options));
    std::vector<generation_output> out;
    generate_all(g, std::move(requests), [&](generation_output&& o) { out.push_back(std::move(o)); });
    preemptions_ = g.counts().preemptions;
    return out;
  }

  compute where_{GetParam().second};
  std::shared_ptr<causal_lm> model_ =
      load_model(TROUPE_SOURCE_DIR "/tests/reference/data/llama-tied", {.compute_type = GetParam().first}, where_);
  std::int64_t preemptions_ = 0;
};

TEST_P(generator_on_a_model, the_learners_pass_gives_the_same_bits) {
  const auto all = requests();
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
  const auto all = requests();
  const auto want = run({.max_num_seqs = 1, .cache_blocks = 8}, all);
  const auto got = run({.max_num_seqs = 16, .max_batch_tokens = 23, .cache_blocks = 7}, all);
  EXPECT_GT(preemptions_, 0);
  ASSERT_EQ(got.size(), want.size());
  for (std::size_t i = 0; i < want.size(); ++i)
    EXPECT_EQ(got[i].result, want[i].result) << i;
}

INSTANTIATE_TEST_SUITE_P(dtypes_and_threads, generator_on_a_model,
                         testing::Values(std::pair{dtype::f32, 1}, std::pair{dtype::bf16, 1}, std::pair{dtype::bf16, 2}));

} // namespace
} // namespace troupe
