// Steps of sft and distill on a tiny Llama against PyTorch (tests/reference/sft_dump.py), and what must not change them.
#include "learner/learner_test.hpp"
#include "learner/supervised.hpp"
#include "model/registry.hpp"
#include "model/weights/safetensors.hpp"
#include "model/weights/test_support.hpp"
#include <fstream>
#include <nlohmann/json.hpp>

namespace troupe {
namespace {

const std::filesystem::path base = TROUPE_SOURCE_DIR "/tests/reference/step", dir = TROUPE_SOURCE_DIR "/tests/reference/sft";

const nlohmann::json& reference() {
  static const auto all = nlohmann::json::parse(std::ifstream(dir / "case.json"));
  return all;
}

struct supervised_case {
  std::vector<sft_row> rows;
  std::vector<const sft_row*> view;
  supervised_case() {
    for (const auto& r : reference().at("rows"))
      rows.push_back({rows.size(), r.at("ids").get<std::vector<std::int32_t>>(), r.at("targets").get<std::vector<std::int32_t>>()});
    for (const auto& r : rows)
      view.push_back(&r);
  }
  static config options(const std::string& kind) {
    const auto& o = reference().at("options");
    config cfg;
    cfg.data.max_prompt_length = cfg.data.max_response_length = 40;
    cfg.learner.grad_clip = o.at("grad_clip");
    cfg.learner.optim.lr = o.at("lr");
    cfg.learner.optim.weight_decay = o.at("weight_decay");
    cfg.distill.top_k = kind == "top" ? o.at("top_k").get<std::int64_t>() : 0;
    return cfg;
  }
};

struct setup {
  compute where;
  std::shared_ptr<causal_lm> model, teaching;
  setup(const std::string& kind, int threads = 1, dtype type = dtype::f32, std::vector<std::string> trainable = {"*"})
      : where(threads), model(load_model(base, {type, true, std::move(trainable)}, where)),
        teaching(kind == "sft" ? nullptr : std::shared_ptr<causal_lm>(load_model(dir / "teacher", {type, false, {}}, where))) {}
};

void expect_as_torch(const std::string& kind, causal_lm& model, const metric_map& metrics) {
  for (const char* name : {"train/loss", "actor/grad_norm", "actor/lr"}) {
    const double wanted = reference().at("metrics").at(kind).at(name);
    EXPECT_NEAR(metrics.at(name), wanted, 1e-6 * std::max(1.0, wanted)) << kind << " " << name;
  }
  const safetensors_reader expected(dir / (kind + ".safetensors"));
  double scale = 0;
  for (const auto& p : model.parameters())
    for (const float x : test::read<float>(expected, "grad." + p.name))
      scale = std::max(scale, double(std::abs(x)));
  // A logit's gradient is p - q: rounding is relative to p and q, which may be much larger.
  const double tolerance = (kind == "sft" ? 2e-6 : 4e-6) * scale;
  std::size_t compared = 0;
  for (const auto& p : model.parameters()) {
    const auto grad = test::read<float>(expected, "grad." + p.name), after = test::read<float>(expected, "after." + p.name);
    ASSERT_EQ(grad.size(), p.numel()) << p.name;
    for (std::size_t i = 0; i < grad.size(); ++i) {
      ASSERT_NEAR(p.grad[i], grad[i], tolerance) << kind << " " << p.name << " " << i;
      // A first Adam step is lr times the gradient's sign: noise decides where the gradient is noise.
      if (std::abs(grad[i]) > 1e-3 * scale) {
        ASSERT_NEAR(p.master[i], after[i], 1e-5) << kind << " " << p.name << " " << i;
        ++compared;
      }
    }
  }
  EXPECT_GT(compared, 5000U);
}

struct supervised : ::testing::TestWithParam<const char*> {};

TEST_P(supervised, step_matches_torch_however_it_is_cut) {
  const supervised_case c;
  for (const std::int64_t tokens : {16384, 60, 1}) {
    setup s(GetParam(), 2);
    config cfg = c.options(GetParam());
    cfg.learner.ppo_max_token_len = tokens;
    supervised_learner l(cfg, s.model, s.teaching, 10, s.where);
    EXPECT_NEAR(l.loss(c.view), reference().at("metrics").at(GetParam()).at("train/loss").get<double>(), 1e-6);
    expect_as_torch(GetParam(), *s.model, l.step(c.view));
    EXPECT_EQ(l.steps_done(), 1);
  }
}

TEST_P(supervised, aggregation_is_over_rows_where_asked) {
  const supervised_case c;
  setup s(GetParam());
  config cfg = c.options(GetParam());
  cfg.learner.loss_agg_mode = "seq-mean-token-mean";
  supervised_learner l(cfg, s.model, s.teaching, 10, s.where);
  EXPECT_NEAR(l.loss(c.view), reference().at("metrics").at(GetParam()).at("seq-mean-token-mean").get<double>(), 1e-6);
}

TEST_P(supervised, loss_falls_and_bits_do_not_depend_on_threads) {
  const supervised_case c;
  for (const dtype type : {dtype::f32, dtype::bf16}) {
    std::vector<std::vector<float>> wanted;
    for (const int threads : {1, 2}) {
      setup s(GetParam(), threads, type);
      config cfg = c.options(GetParam());
      cfg.learner.ppo_mini_batch_size = 2;
      cfg.learner.ppo_epochs = 2;
      supervised_learner l(cfg, s.model, s.teaching, 10, s.where);
      const double first = l.loss(c.view);
      for (int i = 0; i < 3; ++i)
        l.step(c.view);
      EXPECT_LT(l.loss(c.view), first);
      if (wanted.empty())
        wanted = masters_of(*s.model);
      EXPECT_EQ(masters_of(*s.model), wanted) << threads << " threads";
    }
  }
}

TEST_P(supervised, goes_on_from_a_checkpoint_with_the_same_bits) {
  const supervised_case c;
  const scratch_directory scratch;
  setup whole(GetParam(), 1, dtype::bf16), resumed(GetParam(), 1, dtype::bf16);
  const config cfg = c.options(GetParam());
  supervised_learner a(cfg, whole.model, whole.teaching, 10, whole.where), b(cfg, resumed.model, resumed.teaching, 10, resumed.where);
  a.step(c.view);
  a.save(scratch.make("saved"), base);
  b.load(scratch.path / "saved");
  a.step(c.view);
  b.step(c.view);
  EXPECT_EQ(masters_of(*resumed.model), masters_of(*whole.model));
  EXPECT_EQ(b.steps_done(), 2);
}

TEST_P(supervised, only_what_is_trainable_moves_and_has_state) {
  const supervised_case c;
  const scratch_directory scratch;
  setup all(GetParam()), some(GetParam(), 1, dtype::f32, {"model.layers.1.mlp.*"});
  const config cfg = c.options(GetParam());
  supervised_learner a(cfg, all.model, all.teaching, 10, all.where), b(cfg, some.model, some.teaching, 10, some.where);
  const auto before = values_of(*some.model);
  a.step(c.view);
  b.step(c.view);
  std::size_t trained = 0;
  for (std::size_t i = 0; i < before.size(); ++i) {
    const parameter &p = some.model->parameters()[i], &full = all.model->parameters()[i];
    const bool is = p.name.rfind("model.layers.1.mlp.", 0) == 0;
    trained += is ? 1 : 0;
    EXPECT_EQ(p.trainable, is) << p.name;
    EXPECT_EQ(p.grad.size(), is ? p.numel() : 0) << p.name;
    EXPECT_EQ(p.master.size(), is ? p.numel() : 0) << p.name;
    EXPECT_EQ(std::vector<std::byte>(p.value.begin(), p.value.end()) != before[i], is) << p.name;
    // The gradient does not depend on what else is trained.
    EXPECT_TRUE(!is || std::equal(p.grad.begin(), p.grad.end(), full.grad.begin())) << p.name;
  }
  EXPECT_EQ(trained, 3U);
  b.save(scratch.make("saved"), base);
  const safetensors_reader state(scratch.path / "saved" / "optimizer.safetensors");
  EXPECT_FALSE(state.tensors().empty());
  for (const auto& [name, info] : state.tensors())
    EXPECT_NE(name.find("model.layers.1.mlp."), std::string::npos) << name;
}

// The files hold float32; a bfloat16 model has rounded it, and must not write what it holds.
TEST(supervised_step, frozen_tensors_are_saved_as_they_were_loaded) {
  const supervised_case c;
  for (const dtype type : {dtype::f32, dtype::bf16}) {
    const scratch_directory scratch;
    setup s("sft", 1, type, {"model.layers.1.mlp.*"});
    supervised_learner l(c.options("sft"), s.model, nullptr, 10, s.where);
    l.step(c.view);
    l.save(scratch.make("saved"), base);
    const safetensors_reader source(base), saved(scratch.path / "saved");
    std::size_t same = 0;
    for (const auto& [name, tensor] : source.tensors()) {
      ASSERT_NE(saved.find(name), nullptr) << name;
      const bool equal =
          std::equal(tensor.bytes.begin(), tensor.bytes.end(), saved.find(name)->bytes.begin(), saved.find(name)->bytes.end());
      EXPECT_EQ(equal, name.rfind("model.layers.1.mlp.", 0) != 0) << name;
      same += equal ? 1 : 0;
    }
    EXPECT_EQ(same + 3, source.tensors().size());
  }
}

INSTANTIATE_TEST_SUITE_P(tasks, supervised, ::testing::Values("sft", "top", "full"),
                         [](const auto& info) { return std::string(info.param); });

TEST(supervised_step, top_of_the_whole_vocabulary_is_the_full_divergence) {
  const supervised_case c;
  setup s("full");
  config cfg = c.options("full");
  supervised_learner full(cfg, s.model, s.teaching, 10, s.where);
  cfg.distill.top_k = 63;
  supervised_learner most(cfg, s.model, s.teaching, 10, s.where);
  cfg.distill.top_k = 1000;
  supervised_learner more(cfg, s.model, s.teaching, 10, s.where);
  EXPECT_EQ(more.loss(c.view), full.loss(c.view));
  EXPECT_NEAR(most.loss(c.view), full.loss(c.view), 0.05 * full.loss(c.view));
}

TEST(supervised_step, own_distribution_has_no_divergence) {
  const supervised_case c;
  compute where(1);
  const std::shared_ptr<causal_lm> model = load_model(base, {dtype::f32, true, {"*"}}, where),
                                   same = load_model(base, {dtype::f32, false, {}}, where);
  supervised_learner l(c.options("full"), model, same, 10, where);
  EXPECT_NEAR(l.loss(c.view), 0, 1e-6);
}

TEST(supervised_step, teacher_of_another_vocabulary_is_refused) {
  compute where(1);
  const std::shared_ptr<causal_lm> model = load_model(base, {dtype::f32, true, {"*"}}, where);
  expect_error([&] { supervised_learner(supervised_case::options("full"), model, std::make_shared<tiny_lm>(1), 10, where); },
               errc::bad_config, "its vocabulary has 11 tokens, the model's has 64");
}

TEST(supervised_step, loss_that_is_not_finite_stops_before_the_update) {
  const supervised_case c;
  setup s("sft");
  for (auto& p : s.model->parameters())
    if (p.name == "model.norm.weight")
      p.master[5] = std::numeric_limits<float>::quiet_NaN();
  s.model->publish_masters();
  supervised_learner l(c.options("sft"), s.model, nullptr, 10, s.where);
  const auto other = masters_of(*s.model)[1];
  expect_error([&] { l.step(c.view); }, errc::failed, "step 1, update 1: the loss of data rows 0 to 4");
  EXPECT_EQ(masters_of(*s.model)[1], other);
}

} // namespace
} // namespace troupe
