#include "model/compute.hpp"
#include "model/model_class.hpp"
#include "model/parallel/local_ranks.hpp"
#include "model/parallel/model_support.hpp"
#include "model/weights/split_test_support.hpp"
#include <gtest/gtest.h>

namespace troupe {
namespace {

// Two widths, two numbers of key heads, neither the vocabulary nor the tokens divide; 4 ranks share 2 key heads, or 1.
model_config tiny_split(bool mlp) {
  const nlohmann::json json = {{"architectures", {"CustomSplitLLamaForCausalLM"}},
                               {"num_layers_8", 2},
                               {"num_layers_70", 2},
                               {"vocab_size", 61},
                               {"mlp", mlp},
                               {"config_8b", test::tiny_config(32, 3, 4, 2)},
                               {"config_70b", test::tiny_config(48, 2, 4, 1)}};
  return parse_model_config(json.dump(), "config.json");
}

struct result {
  std::vector<float> outputs, logprobs;
  std::vector<std::vector<float>> gradients;
};

// Outputs, log-probabilities where there are logits, and gradients of one class in one layout.
result run(const model_class& which, const model_config& cfg, const mesh& shape, bool sequence, dtype type) {
  compute where(2);
  const model_options options{type, true, {"*"}};
  model_config own = cfg;
  own.head = which.head;
  const auto model = make_local_ranks(own, options, shape, sequence, where);
  fill_by_name(*model);
  const packed_batch batch = tiny_batch(3, 5);
  result r;
  std::unique_ptr<tape> saved;
  r.outputs = model->outputs(batch, &saved);
  std::vector<float> d(r.outputs.size());
  for (std::size_t i = 0; i < d.size(); ++i)
    d[i] = draw_uniform({5, draw::init, 0, std::uint32_t(i)}) - 0.5f;
  model->zero_grads();
  model->backward_outputs(*saved, d);
  for (const parameter& p : model->parameters())
    r.gradients.emplace_back(p.grad.begin(), p.grad.end());
  if (which.head == head_kind::lm)
    r.logprobs = model->score(batch, 0.7f, false, nullptr).logprobs;
  return r;
}

void expect_close(const std::vector<float>& found, const std::vector<float>& expected, float relative, const std::string& what) {
  float largest = 0;
  for (const float v : expected)
    largest = std::max(largest, std::abs(v));
  ASSERT_EQ(found.size(), expected.size()) << what;
  for (std::size_t i = 0; i < expected.size(); ++i)
    ASSERT_NEAR(found[i], expected[i], relative * largest) << what << " " << i;
}

// At equal tensor parallelism the forward's bits are those of one stage without sequence parallelism; the gradients agree.
TEST(SplitLayouts, EveryHeadAgreesInEveryLayout) {
  for (const auto* name :
       {"ParallelCustomSplitLLamaForCausalLMRmPadPP", "ParallelCustomSplitLLamaForValueRmPadPP", "ParallelCustomSplitLLamaModelRmPad"}) {
    const auto& which = find_model_class(name);
    const auto cfg = tiny_split(true);
    const result one = run(which, cfg, {1, 1, 1}, false, dtype::f32);
    for (const int tp : {1, 2, 4}) {
      const result base = run(which, cfg, {1, 1, tp}, false, dtype::f32);
      expect_close(base.outputs, one.outputs, 2e-5f, name);
      for (std::size_t i = 0; i < one.gradients.size(); ++i)
        expect_close(base.gradients[i], one.gradients[i], 2e-5f, std::string(name) + " gradient " + std::to_string(i));
      for (const int pp : {1, 2, 3})
        for (const bool sequence : {false, true}) {
          if ((pp == 1 && !sequence) || (sequence && tp == 1))
            continue;
          const std::string at = std::string(name) + " tp " + std::to_string(tp) + " pp " + std::to_string(pp) + (sequence ? " sp" : "");
          const result r = run(which, cfg, {pp, 1, tp}, sequence, dtype::f32);
          EXPECT_EQ(r.outputs, base.outputs) << at;
          EXPECT_EQ(r.logprobs, base.logprobs) << at;
          for (std::size_t i = 0; i < base.gradients.size(); ++i)
            expect_close(r.gradients[i], base.gradients[i], 2e-6f, at + " gradient " + std::to_string(i));
        }
    }
  }
}

TEST(SplitLayouts, Bfloat16GivesOneSetOfBitsForAnyStages) {
  const auto& which = find_model_class("ParallelCustomSplitLLamaForCausalLMRmPadPP");
  const result base = run(which, tiny_split(false), {1, 1, 2}, false, dtype::bf16);
  for (const auto& shape : {mesh{3, 1, 2}, mesh{7, 1, 2}, mesh{2, 2, 2}}) {
    const result r = run(which, tiny_split(false), shape, true, dtype::bf16);
    EXPECT_EQ(r.logprobs, base.logprobs) << shape.pp << " stages";
    EXPECT_EQ(r.outputs, base.outputs) << shape.pp << " stages";
  }
}

} // namespace
} // namespace troupe
