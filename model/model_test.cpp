#include "core/error.hpp"
#include "model/compute.hpp"
#include "model/reference_case.hpp"
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

using test::cases;
using test::data_dir;
using test::read;
using test::reference_case;
using test::through_the_cache;

std::vector<isa> available() {
  std::vector<isa> all;
  for (isa which : {isa::scalar, isa::avx2, isa::avx512, isa::amx})
    if (supported(which))
      all.push_back(which);
  return all;
}

TEST(Model, LogProbsEntropyAndGradientsAreTransformers) {
  compute where(2);
  for (const auto& name : cases)
    test::expect_transformers(*load_model(data_dir + name, {dtype::f32, true, {"*"}}, where), name, 5e-6f);
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
