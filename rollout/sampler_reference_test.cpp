#include "core/files.hpp"
#include "rollout/sampler.hpp"
#include <algorithm>
#include <cmath>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

namespace troupe {
namespace {

using ids = std::vector<std::int32_t>;

sampling_params params_of(const nlohmann::json& c) {
  sampling_params p;
  p.temperature = c.value("temperature", p.temperature);
  p.top_k = c.value("top_k", p.top_k);
  p.top_p = c.value("top_p", p.top_p);
  p.min_p = c.value("min_p", p.min_p);
  p.repetition_penalty = c.value("repetition_penalty", p.repetition_penalty);
  p.presence_penalty = c.value("presence_penalty", p.presence_penalty);
  p.frequency_penalty = c.value("frequency_penalty", p.frequency_penalty);
  p.min_tokens = c.value("min_tokens", p.min_tokens);
  p.allowed_ids = c.value("allowed_token_ids", ids{});
  p.logit_bias = c.value("logit_bias", p.logit_bias);
  return p;
}

// Every option against what Transformers' processors (and vLLM's penalties) leave of the same row: draws go through the
// cumulative distribution, so each must land on the id that the reference's gives for the same number.
TEST(sampler, options_are_those_of_transformers_and_vllm) {
  const auto cases = nlohmann::json::parse(read_file(TROUPE_SOURCE_DIR "/tests/reference/sampling.json"));
  ASSERT_GE(cases.size(), 40u);
  for (const auto& c : cases) {
    auto shown = c;
    shown.erase("logits");
    shown.erase("expected");
    SCOPED_TRACE(shown.dump());
    const auto p = params_of(c);
    const auto logits = c.at("logits").get<std::vector<float>>();
    const auto expected = c.at("expected").get<std::vector<double>>();
    auto prompt = c.at("prompt_ids").get<ids>();
    prompt.erase(std::unique(prompt.begin(), prompt.end()), prompt.end()); // ascending as it is
    token_counts drawn;
    const auto output = c.at("output_ids").get<ids>();
    for (const auto id : output)
      ++drawn[id];
    const auto ends = c.value("stop_token_ids", ids{});
    int compared = 0;
    for (std::uint32_t i = 0; i < 300; ++i) {
      const draw_key key{.seed = 9, .domain = draw::generate, .index = i};
      const auto bits = draw_bits(key);
      const double u = double((std::uint64_t(bits[0]) << 32 | bits[1]) >> 11) * 0x1p-53;
      double reached = 0;
      std::int32_t want = -1;
      bool near = false; // to a step, where rounding decides
      for (std::size_t id = 0; id < expected.size(); ++id) {
        reached += expected[id];
        near |= std::fabs(reached - u) < 1e-5;
        if (want < 0 && reached > u)
          want = std::int32_t(id);
      }
      if (near)
        continue;
      EXPECT_EQ(sample_token(logits, p, key, {prompt, &drawn, std::int64_t(output.size()), ends}), want);
      ++compared;
    }
    EXPECT_GT(compared, 280);
    auto greedy = p;
    greedy.temperature = 0;
    EXPECT_EQ(sample_token(logits, greedy, {}, {prompt, &drawn, std::int64_t(output.size()), ends}),
              std::max_element(expected.begin(), expected.end()) - expected.begin());
  }
}

} // namespace
} // namespace troupe
