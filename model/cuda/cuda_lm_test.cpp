#include "model/compute.hpp"
#include "model/kernels/cuda/memory.hpp"
#include "model/parallel/model_support.hpp"
#include "model/reference_case.hpp"
#include "model/registry.hpp"
#include <cmath>
#include <cstring>
#include <gtest/gtest.h>

namespace troupe {
namespace {

using test::cases;
using test::data_dir;
using test::read;
using test::reference_case;
using test::through_the_cache;

class cuda_model : public testing::Test {
protected:
  void SetUp() override {
    if (cuda::device_count() == 0)
      GTEST_SKIP() << "no GPU";
  }
  compute gpu_{2, best_isa(), 0}, cpu_{2};
};

void expect_near(std::span<const float> got, std::span<const float> want, float relative, const std::string& what) {
  float largest = 0;
  for (const float v : want)
    largest = std::max(largest, std::abs(v));
  ASSERT_EQ(got.size(), want.size()) << what;
  for (std::size_t i = 0; i < want.size(); ++i)
    ASSERT_NEAR(got[i], want[i], relative * largest + 1e-12f) << what << " element " << i;
}

TEST_F(cuda_model, log_probs_entropy_and_gradients_are_transformers) {
  for (const auto& name : cases)
    test::expect_transformers(*load_model(data_dir + name, {dtype::f32, true, {"*"}}, gpu_), name, 1e-5f);
}

TEST_F(cuda_model, a_split_model_is_the_cpus) {
  for (const auto& cfg : {split_of_two_widths(), tiny_llama(2, true), tiny_llama(4, false)}) {
    const auto want = make_model(cfg, {dtype::f32, true, {"*"}}, cpu_), got = make_model(cfg, {dtype::f32, true, {"*"}}, gpu_);
    fill_by_name(*want);
    fill_by_name(*got);
    const auto a = run_pass(*want, tiny_batch(3, 0), true), b = run_pass(*got, tiny_batch(3, 0), true);
    expect_near(b.logprobs, a.logprobs, 2e-5f, "log-probs");
    expect_near(b.entropy, a.entropy, 2e-5f, "entropies");
    for (std::size_t i = 0; i < want->parameters().size(); ++i)
      expect_near(got->parameters()[i].grad, want->parameters()[i].grad, 2e-5f, want->parameters()[i].name);
  }
}

TEST_F(cuda_model, bfloat16_is_near_the_cpus) {
  for (const auto& name : cases) {
    const reference_case reference{safetensors_reader{data_dir + name + "/case.safetensors"}};
    std::vector<std::shared_ptr<causal_lm>> models;
    std::vector<std::vector<float>> logprobs;
    for (compute* where : {&cpu_, &gpu_}) {
      models.push_back(load_model(data_dir + name, {dtype::bf16, true, {"*"}}, *where));
      std::unique_ptr<tape> saved;
      logprobs.push_back(models.back()->score(reference.packed(), 0.7f, false, &saved).logprobs);
      models.back()->zero_grads();
      models.back()->backward(*saved, reference.d_logprob, reference.d_entropy);
      models.back()->sum_gradients();
    }
    expect_near(logprobs[1], logprobs[0], 2e-2f, name);
    for (std::size_t i = 0; i < models[0]->parameters().size(); ++i)
      expect_near(models[1]->parameters()[i].grad, models[0]->parameters()[i].grad, 8e-2f, name + " " + models[0]->parameters()[i].name);
  }
}

TEST_F(cuda_model, decoding_gives_the_bits_of_scoring) {
  for (const auto& name : cases)
    for (const dtype type : {dtype::f32, dtype::bf16}) {
      const auto model = load_model(data_dir + name, {type, false, {}}, gpu_);
      const reference_case reference{safetensors_reader{data_dir + name + "/case.safetensors"}};
      const auto scored = model->score(reference.packed(), 0.7f, false, nullptr).logprobs;
      std::size_t i = 0;
      for (const auto& g : reference.groups)
        for (const auto& response : g.responses) {
          for (const int chunk : {1, 7, 100}) {
            const auto decoded = through_the_cache(*model, g.prompt, response, chunk);
            for (std::size_t t = 0; t < response.size(); ++t)
              ASSERT_EQ(decoded[t], scored[i + t]) << name << " " << name_of(type) << " chunk " << chunk << " token " << t;
          }
          i += response.size();
        }
    }
}

TEST_F(cuda_model, the_same_pass_twice_gives_the_same_gradients) {
  const reference_case reference{safetensors_reader{data_dir + "llama-llama3/case.safetensors"}};
  const auto all = load_model(data_dir + "llama-llama3", {dtype::bf16, true, {"*"}}, gpu_);
  const auto some =
      load_model(data_dir + "llama-llama3", {dtype::bf16, true, {"model.layers.1.mlp.*", "*.1.self_attn.k_proj.weight"}}, gpu_);
  std::vector<std::vector<float>> first;
  for (int round = 0; round < 3; ++round) {
    causal_lm& model = round < 2 ? *all : *some;
    std::unique_ptr<tape> saved;
    model.score(reference.packed(), 0.7f, true, &saved);
    model.zero_grads();
    model.backward(*saved, reference.d_logprob, reference.d_entropy);
    model.sum_gradients();
    for (std::size_t i = 0; i < model.parameters().size(); ++i) {
      const parameter& p = model.parameters()[i];
      if (round == 0) {
        first.emplace_back(p.grad.begin(), p.grad.end());
      } else if (!p.grad.empty()) {
        EXPECT_EQ(0, std::memcmp(p.grad.data(), first[i].data(), p.grad.size_bytes())) << p.name << " round " << round;
      }
    }
  }
}

TEST_F(cuda_model, what_a_device_cannot_do_is_refused) {
  compute nowhere{1, best_isa(), 99};
  EXPECT_THROW(make_model(tiny_llama(2, true), {}, nowhere), error);
  const auto model = make_model(tiny_llama(2, true), {}, gpu_);
  EXPECT_THROW(model->make_cache(1 << 30), error);
}

} // namespace
} // namespace troupe
