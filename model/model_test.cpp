#include "core/error.hpp"
#include "model/compute.hpp"
#include "model/registry.hpp"
#include "model/rope.hpp"
#include "model/weights/safetensors.hpp"
#include "model/weights/test_support.hpp"
#include <cmath>
#include <cstring>
#include <gtest/gtest.h>
#include <random>

namespace troupe {
namespace {

using test::read;

const std::string data_dir = std::string(TROUPE_SOURCE_DIR) + "/tests/reference/data/";
// biases, yarn; a window in one layer; head norms; a window in all.
const std::vector<std::string> cases = {"llama-tied",   "llama-llama3", "llama-linear",  "family-biases",
                                        "family-qwen2", "family-qwen3", "family-mistral"};

std::vector<isa> available() {
  std::vector<isa> all;
  for (isa which : {isa::scalar, isa::avx2, isa::avx512, isa::amx})
    if (supported(which))
      all.push_back(which);
  return all;
}

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

TEST(Model, LogProbsEntropyAndGradientsAreTransformers) {
  compute where(2);
  for (const auto& name : cases) {
    const safetensors_reader file{data_dir + name + "/case.safetensors"};
    const reference_case reference{file};
    const auto model = load_model(data_dir + name, {dtype::f32, true, {"*"}}, where);
    std::unique_ptr<tape> saved;
    const auto values = model->score(reference.packed(), 0.7f, true, &saved);
    ASSERT_EQ(values.logprobs.size(), reference.logprobs.size());
    for (std::size_t i = 0; i < values.logprobs.size(); ++i) {
      ASSERT_NEAR(values.logprobs[i], reference.logprobs[i], 2e-5) << name << " target " << i;
      ASSERT_NEAR(values.entropy[i], reference.entropy[i], 2e-5) << name << " target " << i;
    }
    model->zero_grads();
    model->backward(*saved, reference.d_logprob, reference.d_entropy);
    for (const parameter& p : model->parameters()) {
      const auto expected = read<float>(file, "grad." + p.name);
      float largest = 0;
      for (const float g : expected)
        largest = std::max(largest, std::abs(g));
      for (std::size_t i = 0; i < expected.size(); ++i)
        ASSERT_NEAR(p.grad[i], expected[i], 5e-6 * largest) << name << " " << p.name << " " << i;
    }
  }
}

// Log-probs of one sequence through the cache, prefilled in chunks and decoded with company.
std::vector<float> through_the_cache(causal_lm& model, const std::vector<std::int32_t>& prompt, const std::vector<std::int32_t>& response,
                                     int chunk) {
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

TEST(Model, DecodingGivesTheBitsOfScoringOnEveryInstructionSet) {
  for (const auto& name : cases)
    for (const dtype type : {dtype::f32, dtype::bf16}) {
      std::vector<float> first;
      for (const isa which : available())
        for (const int threads : {1, 2}) {
          compute where(threads, which);
          const auto model = load_model(data_dir + name, {type, false, {}}, where);
          const safetensors_reader file{data_dir + name + "/case.safetensors"};
          const reference_case reference{file};
          const auto scored = model->score(reference.packed(), 0.7f, false, nullptr).logprobs;
          if (first.empty())
            first = scored;
          ASSERT_EQ(0, std::memcmp(scored.data(), first.data(), scored.size() * 4)) << name << " " << name_of(which);
          std::size_t i = 0;
          for (const auto& g : reference.groups)
            for (const auto& response : g.responses) {
              for (const int chunk : {1, 7, 100}) {
                const auto decoded = through_the_cache(*model, g.prompt, response, chunk);
                ASSERT_EQ(0, std::memcmp(decoded.data(), scored.data() + i, response.size() * 4))
                    << name << " chunk " << chunk << " " << name_of(which);
              }
              i += response.size();
            }
        }
    }
}

TEST(Model, TrainingAndGeneratingModelsScoreTheSameBits) {
  compute where(2);
  for (const dtype type : {dtype::f32, dtype::bf16}) {
    const safetensors_reader file{data_dir + "llama-tied/case.safetensors"};
    const reference_case reference{file};
    const auto training = load_model(data_dir + "llama-tied", {type, true, {"*"}}, where);
    const auto generating = load_model(data_dir + "llama-tied", {type, false, {}}, where);
    std::unique_ptr<tape> saved;
    EXPECT_EQ(training->score(reference.packed(), 1.f, true, &saved).logprobs,
              generating->score(reference.packed(), 1.f, false, nullptr).logprobs);
  }
}

TEST(Model, FrozenTensorsHaveNoGradientAndTheOthersAreUnchanged) {
  compute where(2);
  const safetensors_reader file{data_dir + "llama-llama3/case.safetensors"};
  const reference_case reference{file};
  const auto all = load_model(data_dir + "llama-llama3", {dtype::f32, true, {"*"}}, where);
  const auto some =
      load_model(data_dir + "llama-llama3", {dtype::f32, true, {"model.layers.1.mlp.*", "*.1.self_attn.k_proj.weight"}}, where);
  for (const auto& m : {all, some}) {
    std::unique_ptr<tape> saved;
    m->score(reference.packed(), 0.7f, true, &saved);
    m->zero_grads();
    m->backward(*saved, reference.d_logprob, reference.d_entropy);
  }
  int trained = 0;
  for (std::size_t i = 0; i < all->parameters().size(); ++i) {
    const parameter &a = all->parameters()[i], &s = some->parameters()[i];
    if (s.grad.empty())
      continue;
    ++trained;
    EXPECT_EQ(0, std::memcmp(a.grad.data(), s.grad.data(), a.grad.size() * 4)) << a.name;
  }
  EXPECT_EQ(trained, 4);
}

TEST(Model, GradientsOfPartsAddUpToThoseOfTheWhole) {
  compute where(2);
  const safetensors_reader file{data_dir + "llama-tied/case.safetensors"};
  const reference_case reference{file};
  const auto model = load_model(data_dir + "llama-tied", {dtype::f32, true, {"*"}}, where);
  model->zero_grads();
  std::size_t at = 0;
  for (const auto& g : reference.groups)
    for (const auto& response : g.responses) {
      batch_builder builder;
      builder.add_group(g.prompt, {response});
      std::unique_ptr<tape> saved;
      model->score(builder.take(), 0.7f, true, &saved);
      const std::span<const float> dl(reference.d_logprob), de(reference.d_entropy);
      model->backward(*saved, dl.subspan(at, response.size()), de.subspan(at, response.size()));
      at += response.size();
    }
  for (const parameter& p : model->parameters()) {
    const auto expected = read<float>(file, "grad." + p.name);
    float largest = 0;
    for (const float g : expected)
      largest = std::max(largest, std::abs(g));
    for (std::size_t i = 0; i < expected.size(); ++i)
      ASSERT_NEAR(p.grad[i], expected[i], 5e-6 * largest) << p.name;
  }
}

TEST(Rope, AnglesAreAccurateFarOut) {
  std::mt19937_64 rng(1);
  std::uniform_real_distribution<double> far(-1e6, 1e6);
  for (int i = 0; i < 20000; ++i) {
    const double x = i < 100 ? i * 0.01 : far(rng);
    double s = 0, c = 0;
    sincos_exact(x, &s, &c);
    ASSERT_NEAR(s, std::sin(x), 1e-13) << x;
    ASSERT_NEAR(c, std::cos(x), 1e-13) << x;
  }
  EXPECT_NEAR(pow_exact(500000.0, 0.75), std::pow(500000.0, 0.75), 1e-9);
}

TEST(Registry, GlobsMatchAsInAShell) {
  EXPECT_TRUE(glob_match("*", "anything"));
  EXPECT_TRUE(glob_match("model.adapter.*", "model.adapter.linear1.weight"));
  EXPECT_FALSE(glob_match("model.adapter.*", "model.norm.weight"));
  EXPECT_TRUE(glob_match("*.mlp.*", "model.layers.1.mlp.up_proj.weight"));
  EXPECT_TRUE(glob_match("model.layers.?.x", "model.layers.3.x"));
  EXPECT_FALSE(glob_match("", "x"));
}

TEST(Registry, UnknownArchitecturesAreRefusedByName) {
  compute where(1);
  model_config cfg = load_model_config(data_dir + "llama-tied");
  cfg.architecture = "FooForCausalLM";
  try {
    make_model(cfg, {}, where);
    FAIL();
  } catch (const error& e) {
    EXPECT_EQ(e.code(), errc::unsupported);
    EXPECT_NE(std::string(e.what()).find("FooForCausalLM"), std::string::npos);
    EXPECT_NE(std::string(e.what()).find("LlamaForCausalLM"), std::string::npos);
  }
}

} // namespace
} // namespace troupe
