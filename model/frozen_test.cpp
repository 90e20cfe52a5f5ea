// What a model that is trained in part does not do, and does not hold.
#include "model/decoder_lm.hpp"
#include "model/parallel/local_ranks.hpp"
#include "model/parallel/model_support.hpp"
#include "model/weights/split_test_support.hpp"
#include <gtest/gtest.h>

namespace troupe {
namespace {

/// What one block was asked for.
struct block_calls {
  int forwards = 0, kept = 0, backwards = 0, input_gradients = 0, layouts = 0, backward_layouts = 0;
};

/// A block that counts.
class counted_block final : public block<float> {
public:
  counted_block(std::unique_ptr<block<float>> inner, block_calls& calls) : inner_(std::move(inner)), calls_(calls) {}
  void weights(std::vector<weight*>& all) override { inner_->weights(all); }
  void lay_out(compute& where, bool backward) override {
    ++calls_.layouts;
    calls_.backward_layouts += backward ? 1 : 0;
    inner_->lay_out(where, backward);
  }
  bool has_cache() const override { return inner_->has_cache(); }
  std::int64_t cache_block_elements() const override { return inner_->cache_block_elements(); }
  at::Tensor forward(pass& p, const at::Tensor& hidden, saved_tensors* save) override {
    ++calls_.forwards;
    calls_.kept += save != nullptr ? 1 : 0;
    return inner_->forward(p, hidden, save);
  }
  at::Tensor backward(pass& p, const saved_tensors& saved, at::Tensor d_hidden, bool input_gradient) override {
    ++calls_.backwards;
    calls_.input_gradients += input_gradient ? 1 : 0;
    return inner_->backward(p, saved, std::move(d_hidden), input_gradient);
  }

private:
  std::unique_ptr<block<float>> inner_;
  block_calls& calls_;
};

/// embed, two layers of width 32, adapter, three layers of width 48, head.
model_config split_config() {
  const nlohmann::json json = {{"architectures", {"CustomSplitLLamaForCausalLM"}},
                               {"num_layers_8", 2},
                               {"num_layers_70", 3},
                               {"vocab_size", 61},
                               {"mlp", true},
                               {"config_8b", test::tiny_config(32, 3, 4, 2)},
                               {"config_70b", test::tiny_config(48, 4, 4, 1)}};
  return parse_model_config(json.dump(), "split.json");
}

constexpr std::size_t n_blocks = 7; // without the head

// One training step's calls of every block, with what `globs` name trained.
std::vector<block_calls> calls_of_a_step(const std::vector<std::string>& globs) {
  compute where(1);
  const model_options options{dtype::f32, true, globs, nullptr};
  auto parts = compose<float>(split_config(), options);
  std::vector<block_calls> calls(parts.blocks.size());
  for (std::size_t i = 0; i < calls.size(); ++i)
    parts.blocks[i] = std::make_unique<counted_block>(std::move(parts.blocks[i]), calls[i]);
  decoder_lm<float> model(split_config(), std::move(parts), options, where);
  fill_by_name(model);
  std::fill(calls.begin(), calls.end(), block_calls{});
  const packed_batch batch = tiny_batch(2, 0);
  std::unique_ptr<tape> saved;
  model.score(batch, 1.f, false, &saved);
  model.zero_grads();
  model.backward(*saved, std::vector<float>(batch.targets.size(), 0.1f), {});
  model.publish_masters();
  return calls;
}

TEST(FrozenParts, NothingHappensBelowTheLowestTrainableBlock) {
  struct row {
    std::vector<std::string> globs;
    std::size_t lowest;                // block that is the lowest with a trained tensor
    std::vector<std::size_t> laid_out; // after the update
  };
  const row table[] = {{{"model.adapter.*"}, 3, {3}},
                       {{"model.adapter.linear2.weight"}, 3, {3}},
                       {{"model.layers_70b.1.*", "lm_head.weight"}, 5, {5}},
                       {{"model.layers_8b.1.mlp.*", "model.adapter.*"}, 2, {2, 3}},
                       {{"lm_head.weight"}, n_blocks, {}},
                       {{"model.embed_tokens.weight"}, 0, {0}},
                       {{"*"}, 0, {0, 1, 2, 3, 4, 5, 6}}};
  for (const auto& r : table) {
    const auto calls = calls_of_a_step(r.globs);
    ASSERT_EQ(calls.size(), n_blocks);
    for (std::size_t i = 0; i < n_blocks; ++i) {
      const std::string where = r.globs[0] + ", block " + std::to_string(i);
      EXPECT_EQ(calls[i].forwards, 1) << where;
      EXPECT_EQ(calls[i].kept, i >= r.lowest) << where;
      EXPECT_EQ(calls[i].backwards, i >= r.lowest) << where;
      EXPECT_EQ(calls[i].input_gradients, i > r.lowest) << where;
      const bool laid_out = std::count(r.laid_out.begin(), r.laid_out.end(), i) > 0;
      EXPECT_EQ(calls[i].layouts, laid_out) << where;
      EXPECT_EQ(calls[i].backward_layouts, laid_out) << where;
    }
  }
}

// No block below the lowest one that is trained is ever laid out for the backward pass.
TEST(FrozenParts, TheBackwardLayoutIsMadeWhereAGradientPasses) {
  compute where(1);
  const model_options options{dtype::f32, true, {"model.adapter.*"}, nullptr};
  auto parts = compose<float>(split_config(), options);
  std::vector<block_calls> calls(parts.blocks.size());
  for (std::size_t i = 0; i < calls.size(); ++i)
    parts.blocks[i] = std::make_unique<counted_block>(std::move(parts.blocks[i]), calls[i]);
  decoder_lm<float> model(split_config(), std::move(parts), options, where);
  model.publish_values({});
  for (std::size_t i = 0; i < n_blocks; ++i) {
    EXPECT_EQ(calls[i].layouts, 1) << i;
    EXPECT_EQ(calls[i].backward_layouts, i >= 3) << i;
  }
}

TEST(FrozenParts, HoldNothingButTheirValues) {
  compute where(1);
  for (const dtype type : {dtype::f32, dtype::bf16})
    for (const bool ranks : {false, true}) {
      const model_options options{type, true, {"model.adapter.*"}, nullptr};
      const auto model =
          ranks ? make_local_ranks(split_config(), options, {2, 2, 1}, false, where) : make_model(split_config(), options, where);
      std::size_t trained = 0;
      for (const parameter& p : model->parameters()) {
        const std::size_t n = p.name.starts_with("model.adapter.") ? p.numel() : 0;
        EXPECT_EQ(p.trainable, n > 0) << p.name;
        EXPECT_EQ(p.master.size(), n) << p.name;
        EXPECT_EQ(p.grad.size(), n) << p.name;
        EXPECT_EQ(p.value.size(), p.numel() * size_of(type)) << p.name;
        trained += n;
      }
      EXPECT_EQ(trained, 48u * 32 + 48 * 48);
    }
}

// The same numbers whatever else is trained, on one rank and on several.
TEST(FrozenParts, ThePartialUpdateIsTheWholeOnes) {
  compute where(1);
  const packed_batch batch = tiny_batch(2, 0);
  for (const dtype type : {dtype::f32, dtype::bf16})
    for (const bool ranks : {false, true}) {
      const auto make = [&](const std::vector<std::string>& globs) {
        const model_options options{type, true, globs, nullptr};
        auto model =
            ranks ? make_local_ranks(split_config(), options, {2, 1, 1}, false, where) : make_model(split_config(), options, where);
        fill_by_name(*model);
        std::unique_ptr<tape> saved;
        model->score(batch, 1.f, false, &saved);
        model->zero_grads();
        model->backward(*saved, std::vector<float>(batch.targets.size(), 0.1f), {});
        for (const parameter& p : model->parameters())
          if (p.name.starts_with("model.adapter."))
            for (std::size_t i = 0; i < p.numel(); ++i)
              p.master[i] -= 0.1f * p.grad[i];
        model->publish_masters();
        return std::pair(model, model->score(batch, 1.f, false, nullptr).logprobs);
      };
      const auto [whole, all] = make({"*"});
      const auto [part, some] = make({"model.adapter.*"});
      EXPECT_EQ(all, some);
      for (std::size_t i = 0; i < whole->parameters().size(); ++i)
        if (const parameter& a = whole->parameters()[i], &b = part->parameters()[i]; b.trainable) {
          EXPECT_TRUE(std::equal(a.grad.begin(), a.grad.end(), b.grad.begin(), b.grad.end())) << a.name;
        }
    }
}

} // namespace
} // namespace troupe
