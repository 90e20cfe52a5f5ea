#pragma once
#include "model/causal_lm.hpp"
#include "model/weights/safetensors.hpp"
#include "model/weights/test_support.hpp"
#include <algorithm>
#include <cmath>
#include <gtest/gtest.h>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace troupe::test {

// Tiny models with what Transformers gives for them (tests/reference).

inline const std::string data_dir = std::string(TROUPE_SOURCE_DIR) + "/tests/reference/data/";
// biases, yarn; a window in one layer; head norms; a window in all.
inline const std::vector<std::string> cases = {"llama-tied",   "llama-llama3", "llama-linear",  "family-biases",
                                               "family-qwen2", "family-qwen3", "family-mistral"};

struct group {
  std::vector<std::int32_t> prompt;
  std::vector<std::vector<std::int32_t>> responses;
};

// The groups of a dumped case with the dumped values, target by target.
struct reference_case {
  std::vector<group> groups;
  std::vector<float> logprobs, entropy, d_logprob, d_entropy;
  explicit reference_case(const safetensors_reader& file) {
    for (int g = 0; file.find("prompt." + std::to_string(g)); ++g) {
      groups.push_back({read<std::int32_t>(file, "prompt." + std::to_string(g)), {}});
      for (int s = 0; file.find("response." + std::to_string(g) + "." + std::to_string(s)); ++s) {
        const std::string id = "." + std::to_string(g) + "." + std::to_string(s);
        groups.back().responses.push_back(read<std::int32_t>(file, "response" + id));
        for (auto [name, to] :
             {std::pair{"logprobs", &logprobs}, {"entropy", &entropy}, {"d_logprob", &d_logprob}, {"d_entropy", &d_entropy}})
          for (float v : read<float>(file, name + id))
            to->push_back(v);
      }
    }
  }
  packed_batch packed() const {
    batch_builder builder;
    for (const auto& g : groups)
      builder.add_group(g.prompt, g.responses);
    return builder.take();
  }
};

// Log-probs of one sequence through the cache, prefilled in chunks and decoded with company.
inline std::vector<float> through_the_cache(causal_lm& model, const std::vector<std::int32_t>& prompt,
                                            const std::vector<std::int32_t>& response, int chunk) {
  auto cache = model.make_cache(12);
  std::vector<std::int32_t> ids = prompt, blocks = {9, 2, 7, 4};
  ids.insert(ids.end(), response.begin(), response.end());
  std::vector<float> logprobs, logits(std::size_t(2 * model.config().vocab_size));
  for (std::size_t begin = 0; begin + 1 < ids.size();) {
    const std::size_t end = begin < prompt.size() ? std::min(begin + std::size_t(chunk), prompt.size()) : begin + 1;
    token_batch b;
    b.n_blocks = 12;
    // Company: another sequence of one token, before ours.
    b.ids = {std::int32_t(begin % 50)};
    b.positions = {0};
    b.segments.push_back({0, 1, 0, {0}});
    for (std::size_t i = begin; i < end; ++i) {
      b.ids.push_back(ids[i]);
      b.positions.push_back(std::int32_t(i));
    }
    b.segments.push_back({1, std::int32_t(1 + end - begin), std::int32_t(begin), blocks});
    const std::vector<std::int32_t> wanted = {0, std::int32_t(end - begin)};
    model.forward(b, *cache, wanted, logits.data());
    if (end >= prompt.size())
      logprobs.push_back(model.logprob(logits.data() + model.config().vocab_size, ids[end], 0.7f));
    begin = end;
  }
  return logprobs;
}

/// A model's log-probs, entropies and gradients (relative to a tensor's largest) against those of the case.
inline void expect_transformers(causal_lm& model, const std::string& name, float gradients) {
  const safetensors_reader file{data_dir + name + "/case.safetensors"};
  const reference_case reference{file};
  std::unique_ptr<tape> saved;
  const auto values = model.score(reference.packed(), 0.7f, true, &saved);
  ASSERT_EQ(values.logprobs.size(), reference.logprobs.size());
  for (std::size_t i = 0; i < values.logprobs.size(); ++i) {
    ASSERT_NEAR(values.logprobs[i], reference.logprobs[i], 2e-5) << name << " target " << i;
    ASSERT_NEAR(values.entropy[i], reference.entropy[i], 2e-5) << name << " target " << i;
  }
  model.zero_grads();
  model.backward(*saved, reference.d_logprob, reference.d_entropy);
  model.sum_gradients();
  for (const parameter& p : model.parameters()) {
    const auto expected = read<float>(file, "grad." + p.name);
    float largest = 0;
    for (const float g : expected)
      largest = std::max(largest, std::abs(g));
    for (std::size_t i = 0; i < expected.size(); ++i)
      ASSERT_NEAR(p.grad[i], expected[i], gradients * largest + 1e-12f) << name << " " << p.name << " " << i;
  }
}

} // namespace troupe::test
