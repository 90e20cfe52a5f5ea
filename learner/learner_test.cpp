#include "learner/learner_test.hpp"
#include "learner/loss.hpp"
#include <algorithm>
#include <cmath>
#include <functional>

namespace troupe {
namespace {

struct fixture {
  compute where{2};
  std::shared_ptr<tiny_lm> model = std::make_shared<tiny_lm>(1);
  config cfg = tiny_config();
  learner make(std::shared_ptr<causal_lm> reference = nullptr) { return {cfg, model, std::move(reference), 10, where}; }
};

double largest(const std::vector<float>& values) {
  double out = 0;
  for (float x : values)
    out = std::max(out, double(std::abs(x)));
  return out;
}

// What learner minimises, from its own metrics.
double loss_at(const config& cfg, tiny_lm& start, std::size_t tensor, std::size_t element, float delta,
               const std::vector<scored_group>& groups) {
  compute where{1};
  auto model = std::make_shared<tiny_lm>(1);
  auto reference = std::make_shared<tiny_lm>(2);
  for (std::size_t i = 0; i < 2; ++i)
    std::copy(start.parameters()[i].master.begin(), start.parameters()[i].master.end(), model->parameters()[i].master.begin());
  model->parameters()[tensor].master[element] += delta;
  model->publish_masters();
  auto m = learner(cfg, model, cfg.learner.use_kl_loss ? reference : nullptr, 10, where).step(groups);
  return m["actor/pg_loss"] + (cfg.learner.use_kl_loss ? cfg.learner.kl_loss_coef * m["actor/kl_loss"] : 0) -
         cfg.learner.entropy_coeff * m["actor/entropy"];
}

TEST(learner, gradients_are_those_of_the_reported_loss) {
  for (const bool extras : {false, true}) {
    fixture f;
    f.cfg.rollout.temperature = 0.8;
    // The recorded log-probabilities are off by 0, 0.1 or 0.2: some tokens are clipped, none sits near the kink.
    f.cfg.learner.clip_ratio_low = f.cfg.learner.clip_ratio_high = 0.15;
    if (extras) {
      f.cfg.learner.entropy_coeff = 0.1; // token-mean over every token: what actor/entropy reports
      f.cfg.learner.use_kl_loss = true;
      f.cfg.learner.kl_loss_coef = 0.3;
    }
    const auto groups = tiny_groups(*f.model, 4, true, 0.8F);
    tiny_lm start(1);
    f.make(extras ? std::make_shared<tiny_lm>(2) : nullptr).step(groups);
    const auto grads = grads_of(*f.model);
    ASSERT_GT(largest(grads), 0.01);
    const float h = 1e-2F;
    for (std::size_t i = 0; i < grads.size(); i += 3) {
      const std::size_t tensor = i / 44, element = i % 44;
      const double slope =
          (loss_at(f.cfg, start, tensor, element, h, groups) - loss_at(f.cfg, start, tensor, element, -h, groups)) / (2 * h);
      EXPECT_NEAR(grads[i], slope, 2e-3 * largest(grads)) << "extras " << extras << " value " << i;
    }
  }
}

TEST(learner, micro_batches_change_nothing) {
  for (const auto& mode : loss_aggregations()) {
    std::vector<float> wanted;
    metric_map wanted_metrics;
    for (std::int64_t tokens : {16384, 40, 12, 7, 1}) {
      fixture f;
      f.cfg.learner.loss_agg_mode = mode;
      f.cfg.learner.ppo_max_token_len = tokens;
      f.cfg.learner.use_kl_loss = true;
      f.cfg.learner.entropy_coeff = 0.01;
      const auto groups = tiny_groups(*f.model, 5, true);
      const auto passes = f.model->n_passes;
      auto metrics = f.make(std::make_shared<tiny_lm>(2)).step(groups);
      const auto used = f.model->n_passes - passes;
      const auto grads = grads_of(*f.model);
      metrics.erase("timing_s/update_actor");
      metrics.erase("timing_s/ref");
      if (wanted.empty()) {
        EXPECT_EQ(used, 1);
        wanted = grads;
        wanted_metrics = metrics;
        continue;
      }
      EXPECT_GT(used, 1);
      for (std::size_t i = 0; i < grads.size(); ++i)
        EXPECT_NEAR(grads[i], wanted[i], 2e-6 * largest(wanted)) << mode << " " << tokens;
      ASSERT_EQ(metrics.size(), wanted_metrics.size());
      for (const auto& [name, value] : metrics)
        EXPECT_NEAR(value, wanted_metrics.at(name), 1e-6 * std::max(1e-3, std::abs(value))) << name << " " << mode << " " << tokens;
    }
  }
}

TEST(learner, samples_without_advantage_stay_in_the_denominators) {
  for (const auto& mode : loss_aggregations()) {
    fixture alone, joined;
    alone.cfg.learner.loss_agg_mode = joined.cfg.learner.loss_agg_mode = mode;
    auto groups = tiny_groups(*alone.model, 2, true);
    groups[1].group.samples = groups[0].group.samples; // the same tokens again: twice every count
    const std::vector<scored_group> one(groups.begin(), groups.begin() + 1);
    groups[1].advantages = {0, 0, 0};
    const auto half = joined.make().step(groups), whole = alone.make().step(one);
    EXPECT_NE(whole.at("actor/pg_loss"), 0);
    EXPECT_NEAR(half.at("actor/pg_loss"), whole.at("actor/pg_loss") / 2, 1e-12) << mode;
    EXPECT_EQ(half.at("actor/ppo_kl"), whole.at("actor/ppo_kl")) << "over the tokens passed";
    const auto a = grads_of(*joined.model), b = grads_of(*alone.model);
    for (std::size_t i = 0; i < a.size(); ++i)
      EXPECT_NEAR(a[i], b[i] / 2, 1e-7);
    // They are passed where a term needs them.
    joined.cfg.learner.entropy_coeff = 0.1;
    const auto rows = joined.model->n_rows;
    joined.make().step(one);
    const auto rows_of_one = joined.model->n_rows - rows;
    joined.make().step(groups);
    EXPECT_GT(joined.model->n_rows - rows - rows_of_one, rows_of_one);
  }
}

TEST(learner, a_step_without_spread_is_an_update_with_zero_gradients) {
  fixture f;
  auto groups = tiny_groups(*f.model, 2, false);
  auto flat = groups;
  for (auto& g : flat)
    g.advantages = {0, 0, 0};
  auto learner = f.make();
  const auto before = masters_of(*f.model);
  const auto passes = f.model->n_passes;
  const auto idle = learner.step(flat);
  EXPECT_EQ(f.model->n_passes, passes);
  EXPECT_EQ(masters_of(*f.model), before);
  EXPECT_EQ(idle.at("actor/grad_norm"), 0);
  EXPECT_EQ(idle.at("actor/pg_loss"), 0);
  EXPECT_FALSE(idle.count("exact/logprob_diff_max"));
  EXPECT_FALSE(idle.count("actor/ppo_kl"));
  EXPECT_EQ(learner.steps_done(), 1);
  learner.step(groups);
  const auto moved = masters_of(*f.model);
  learner.step(flat);
  EXPECT_NE(masters_of(*f.model), moved) << "momentum goes on";
}

TEST(learner, mini_batches_and_epochs_are_updates) {
  fixture f;
  f.cfg.learner.ppo_mini_batch_size = 2;
  f.cfg.learner.ppo_epochs = 2;
  f.cfg.learner.optim.lr_warmup_steps = 4;
  const auto groups = tiny_groups(*f.model, 4, false);
  auto learner = f.make();
  const auto metrics = learner.step(groups);
  EXPECT_DOUBLE_EQ(metrics.at("actor/lr"), 1e-2 / 4) << "one rate a step";
  EXPECT_EQ(metrics.at("exact/logprob_diff_max"), 0) << "before the first update";
  EXPECT_GT(metrics.at("actor/ppo_kl"), 0) << "later updates are off the policy";
  EXPECT_EQ(learner.version(), (weights_version{0, 1}));

  // The same updates as four steps would make, one mini-batch each, at the same rate.
  fixture g;
  g.cfg.learner.optim.lr = 1e-2 / 4;
  auto single = g.make();
  for (int i = 0; i < 4; ++i)
    single.step({groups.begin() + i % 2 * 2, groups.begin() + i % 2 * 2 + 2});
  EXPECT_EQ(masters_of(*f.model), masters_of(*g.model));
}

TEST(learner, exactness_looks_at_the_version_it_holds) {
  fixture f;
  auto groups = tiny_groups(*f.model, 2, false);
  auto learner = f.make();
  learner.set_incarnation(3);
  EXPECT_FALSE(learner.step(groups).count("exact/logprob_diff_max")) << "drawn by another incarnation";
  for (auto& g : groups)
    for (auto& s : g.group.samples) {
      s.versions.assign(s.versions.size(), learner.version());
      batch_builder builder;
      builder.add_group(g.group.prompt_ids, {s.output_ids});
      s.logprobs = f.model->score(builder.take(), 1, false, nullptr).logprobs;
    }
  groups[1].group.samples[1].logprobs[2] += 0.25F;
  groups[1].group.samples[1].logprobs[1] += 4.0F;
  groups[1].group.samples[1].versions[1].step = 0; // an older token does not count
  EXPECT_NEAR(learner.step(groups).at("exact/logprob_diff_max"), 0.25, 1e-6);
}

TEST(learner, the_same_batches_give_the_same_bits_on_any_number_of_threads) {
  std::vector<std::vector<float>> wanted;
  for (int threads : {1, 2, 3}) {
    compute where(threads);
    auto model = std::make_shared<tiny_lm>(1);
    learner l(tiny_config(), model, nullptr, 10, where);
    const auto groups = tiny_groups(*model, 4, true);
    for (int i = 0; i < 3; ++i)
      l.step(groups);
    if (wanted.empty())
      wanted = masters_of(*model);
    EXPECT_EQ(masters_of(*model), wanted);
  }
}

TEST(learner, bad_groups_are_refused_by_name) {
  using change = std::function<void(std::vector<scored_group>&)>;
  struct bad {
    change make;
    errc code;
    std::string part;
  };
  const bad table[] = {
      {[](auto& g) { g.clear(); }, errc::failed, "step 1: no group"},
      {[](auto& g) { g[1].advantages.pop_back(); }, errc::bad_shape, "prompt 1 of step 1: 2 advantages for 3 samples"},
      {[](auto& g) { g[1].advantages[2] = NAN; }, errc::failed, "sample 2: the advantage is nan"},
      {[](auto& g) { g[0].group.samples[1].logprobs.pop_back(); }, errc::bad_shape, "prompt 0 of step 1, sample 1: 3 tokens, 2 log-prob"},
      {[](auto& g) { g[0].group.samples[1].versions.pop_back(); }, errc::bad_shape, "2 versions"},
      {[](auto& g) { g[0].group.samples[1].logprobs[2] = -INFINITY; }, errc::failed,
       "sample 1, token 2: the recorded log-probability is -inf"},
      {[](auto& g) { g[0].group.prompt_ids.clear(); }, errc::bad_shape, "needs a prompt"},
      {[](auto& g) { g[0].group.samples.clear(); }, errc::bad_shape, "at least one sample"},
  };
  for (const auto& c : table) {
    fixture f;
    auto groups = tiny_groups(*f.model, 2, false);
    c.make(groups);
    auto learner = f.make();
    const auto before = masters_of(*f.model);
    expect_error([&] { learner.step(groups); }, c.code, c.part);
    EXPECT_EQ(masters_of(*f.model), before);
    EXPECT_EQ(learner.steps_done(), 0);
  }
}

TEST(learner, what_is_not_finite_updates_nothing) {
  fixture f;
  const auto groups = tiny_groups(*f.model, 2, false);
  auto learner = f.make();
  f.model->parameters()[1].master[0] = NAN;
  f.model->publish_masters();
  f.model->parameters()[1].master[0] = 0;
  const auto before = masters_of(*f.model);
  expect_error([&] { learner.step(groups); }, errc::failed, "step 1, update 1: the log-probability of prompt 0, sample 1, token 0 is nan");
  EXPECT_EQ(masters_of(*f.model), before);
  EXPECT_EQ(learner.steps_done(), 0);
  // A loss that is finite token by token, with a gradient that is not.
  f.model->publish_masters();
  auto huge = groups;
  for (auto& a : huge[1].advantages)
    a = 1e300;
  expect_error([&] { learner.step(huge); }, errc::failed, "step 1, update 1: the gradient of embed.weight is not finite");
  EXPECT_EQ(masters_of(*f.model), before);
}

TEST(learner, constructor_refuses_what_cannot_train) {
  fixture f;
  f.cfg.learner.use_kl_loss = true;
  expect_error([&] { f.make(); }, errc::bad_config, "use_kl_loss = true needs a reference");
  f.cfg.learner.use_kl_loss = false;
  for (auto& p : f.model->parameters())
    p.trainable = false;
  expect_error([&] { f.make(); }, errc::bad_config, "model.trainable matches none");
  f.model->parameters()[1].trainable = true;
  f.model->parameters()[1].grad = {};
  expect_error([&] { f.make(); }, errc::bad_shape, "head.weight has no master or gradient");
}

} // namespace
} // namespace troupe
