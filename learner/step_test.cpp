// A whole step of a tiny Llama against PyTorch (tests/reference/step_dump.py).
#include "learner/learner_test.hpp"
#include "model/registry.hpp"
#include "model/weights/safetensors.hpp"
#include "model/weights/test_support.hpp"
#include <fstream>
#include <nlohmann/json.hpp>

namespace troupe {
namespace {

const std::filesystem::path dir = TROUPE_SOURCE_DIR "/tests/reference/step";

struct step_case {
  config cfg;
  std::vector<scored_group> groups;
  nlohmann::json metrics;
};

step_case read_case() {
  const auto all = nlohmann::json::parse(std::ifstream(dir / "case.json"));
  step_case out;
  const auto& o = all.at("options");
  out.cfg.data.max_response_length = 31;
  out.cfg.rollout.temperature = o.at("temperature");
  auto& l = out.cfg.learner;
  l.clip_ratio_low = o.at("clip_ratio_low");
  l.clip_ratio_high = o.at("clip_ratio_high");
  l.clip_ratio_c = o.at("clip_ratio_c");
  l.entropy_coeff = o.at("entropy_coeff");
  l.loss_agg_mode = o.at("loss_agg_mode");
  l.grad_clip = o.at("grad_clip");
  l.optim.lr = o.at("lr");
  l.optim.weight_decay = o.at("weight_decay");
  for (const auto& g : all.at("groups")) {
    scored_group group;
    group.group.key = {1, std::uint32_t(out.groups.size()), false};
    group.group.prompt_ids = g.at("prompt_ids").get<std::vector<std::int32_t>>();
    group.advantages = g.at("advantages").get<std::vector<double>>();
    for (const auto& s : g.at("samples")) {
      sample one;
      one.output_ids = s.at("output_ids").get<std::vector<std::int32_t>>();
      one.logprobs = s.at("old_logprobs").get<std::vector<float>>();
      one.versions.resize(one.output_ids.size());
      group.group.samples.push_back(one);
    }
    out.groups.push_back(group);
  }
  out.metrics = all.at("metrics");
  return out;
}

double largest_gradient(const safetensors_reader& reader) {
  double out = 0;
  for (const auto& [name, info] : reader.tensors())
    if (name.rfind("grad.", 0) == 0)
      for (float x : test::read<float>(reader, name))
        out = std::max(out, double(std::abs(x)));
  return out;
}

void expect_as_torch(const step_case& c, causal_lm& model, const metric_map& metrics) {
  for (const auto& [name, value] : c.metrics.items())
    EXPECT_NEAR(metrics.at(name), value.get<double>(), 1e-6 * std::max(1.0, std::abs(value.get<double>()))) << name;
  const safetensors_reader expected(dir / "expected.safetensors");
  const double scale = largest_gradient(expected), lr = c.cfg.learner.optim.lr;
  std::size_t compared = 0;
  for (const auto& p : model.parameters()) {
    const auto grad = test::read<float>(expected, "grad." + p.name), after = test::read<float>(expected, "after." + p.name);
    ASSERT_EQ(grad.size(), p.numel()) << p.name;
    for (std::size_t i = 0; i < grad.size(); ++i) {
      ASSERT_NEAR(p.grad[i], grad[i], 2e-6 * scale) << p.name << " " << i;
      // A first Adam step is lr times the gradient's sign: noise decides where the gradient is noise.
      if (std::abs(grad[i]) > 1e-3 * scale) {
        ASSERT_NEAR(p.master[i], after[i], 1e-2 * lr) << p.name << " " << i;
        ++compared;
      }
    }
  }
  EXPECT_GT(compared, 5000U);
}

TEST(step, of_a_tiny_llama_matches_torch) {
  const auto c = read_case();
  for (const std::int64_t tokens : {16384, 60, 1}) {
    for (const int threads : {1, 2}) {
      compute where(threads);
      const std::shared_ptr<causal_lm> model = load_model(dir, {dtype::f32, true, {"*"}}, where);
      auto cfg = c.cfg;
      cfg.learner.ppo_max_token_len = tokens;
      learner l(cfg, model, nullptr, 10, where);
      expect_as_torch(c, *model, l.step(c.groups));
    }
  }
}

TEST(step, bits_do_not_depend_on_threads) {
  const auto c = read_case();
  for (const dtype type : {dtype::f32, dtype::bf16}) {
    std::vector<std::vector<float>> wanted;
    for (const int threads : {1, 2, 3}) {
      compute where(threads);
      const std::shared_ptr<causal_lm> model = load_model(dir, {type, true, {"*"}}, where);
      learner l(c.cfg, model, nullptr, 10, where);
      for (int i = 0; i < 2; ++i)
        l.step(c.groups);
      if (wanted.empty())
        wanted = masters_of(*model);
      EXPECT_EQ(masters_of(*model), wanted) << threads << " threads";
    }
  }
}

TEST(step, continues_from_a_checkpoint_with_the_same_bits) {
  const auto c = read_case();
  const scratch_directory scratch;
  compute where(2);
  const model_options options{dtype::bf16, true, {"*"}};
  const std::shared_ptr<causal_lm> whole = load_model(dir, options, where), resumed = load_model(dir, options, where);
  learner a(c.cfg, whole, nullptr, 10, where), b(c.cfg, resumed, nullptr, 10, where);
  a.step(c.groups);
  a.save(scratch.make("saved"), dir);
  b.load(scratch.path / "saved");
  EXPECT_EQ(masters_of(*resumed), masters_of(*whole));
  const auto first = a.step(c.groups), second = b.step(c.groups);
  EXPECT_EQ(masters_of(*resumed), masters_of(*whole));
  EXPECT_EQ(first.at("actor/grad_norm"), second.at("actor/grad_norm"));
  const std::shared_ptr<causal_lm> reloaded = load_model(scratch.path / "saved", options, where);
  EXPECT_EQ(reloaded->parameters().size(), whole->parameters().size());
}

} // namespace
} // namespace troupe
