#include "core/error.hpp"
#include "model/adapter_block.hpp"
#include "model/compute.hpp"
#include "model/model_class.hpp"
#include "model/padded.hpp"
#include "model/weights/convert.hpp"
#include "model/weights/split_test_support.hpp"
#include <cmath>
#include <cstring>
#include <gtest/gtest.h>

namespace troupe {
namespace {

using test::message_of;
using test::read;
using test::scratch;

const std::string data_dir = std::string(TROUPE_SOURCE_DIR) + "/tests/reference/data/";

float largest(const std::vector<float>& values) {
  float most = 0;
  for (const float v : values)
    most = std::max(most, std::abs(v));
  return most;
}

void expect_near(std::span<const float> found, const std::vector<float>& expected, float tolerance, const std::string& what) {
  ASSERT_EQ(found.size(), expected.size()) << what;
  for (std::size_t i = 0; i < expected.size(); ++i)
    ASSERT_NEAR(found[i], expected[i], tolerance) << what << " " << i;
}

/// One dumped family: configuration, weights of every head, and a padded batch with what Transformers made of it.
struct dumped {
  std::string dir;
  safetensors_reader weights, file;
  explicit dumped(const std::string& name) : dir(data_dir + name), weights(dir + "/weights.safetensors"), file(dir + "/case.safetensors") {}
  padded_input input() const {
    const auto& shape = file.find("ids")->shape;
    return {shape[0], shape[1], read<std::int32_t>(file, "ids"), {}, read<std::uint8_t>(file, "mask")};
  }
  std::shared_ptr<causal_lm> model(const model_class& which, const model_options& options, compute& where) const {
    auto made = make_model(which, load_model_config(dir), options, where);
    for (const parameter& p : made->parameters()) {
      const auto values = read<float>(weights, p.name);
      convert_elements(dtype::f32, reinterpret_cast<const std::byte*>(values.data()), made->compute_type(), p.value.data(), p.numel());
      if (!p.master.empty())
        std::copy(values.begin(), values.end(), p.master.begin());
    }
    made->publish_values();
    return made;
  }
};

const char* name_of(head_kind head) {
  constexpr const char* names[] = {"lm", "value", "reward", "none"};
  return names[std::size_t(head)];
}

void expect_gradients(causal_lm& model, const safetensors_reader& file, const std::string& head, const std::string& what) {
  for (const parameter& p : model.parameters()) {
    if (p.name == "score.bias") { // added to each value, so its gradient is their sum over the tokens that are none of the padding
      const auto d_values = read<float>(file, head + ".d_out");
      const auto mask = read<std::uint8_t>(file, "mask");
      ASSERT_EQ(d_values.size(), mask.size()) << what;
      float sum = 0;
      for (std::size_t i = 0; i < mask.size(); ++i)
        sum += mask[i] != 0 ? d_values[i] : 0;
      expect_near(p.grad, {sum}, 1e-5f * largest(d_values), what + " " + p.name);
      continue;
    }
    const auto expected = read<float>(file, head + ".grad." + p.name);
    expect_near(p.grad, expected, 1e-5f * largest(expected), what + " " + p.name);
  }
}

// The adapter alone against sums in double precision.
void check_adapter(const model_class& which, compute& where) {
  const auto specs = blocks_of(which, load_model_config(data_dir + "split-mlp"));
  ASSERT_EQ(specs.size(), 1u);
  const std::int64_t n = 5, in = 16, out = 24;
  ASSERT_EQ(specs[0].in, in);
  ASSERT_EQ(specs[0].out, out);
  adapter_block<float> adapter(specs[0]);
  std::vector<weight*> weights;
  adapter.weights(weights);
  ASSERT_EQ(weights.size(), 2u);
  std::uint32_t tensor = 0;
  const auto random = [&](std::int64_t rows, std::int64_t columns) {
    at::Tensor t = empty_matrix<float>(rows, columns);
    for (std::int64_t i = 0; i < t.numel(); ++i)
      data<float>(t)[i] = draw_uniform({3, draw::init, tensor, std::uint32_t(i)}) - 0.5f;
    ++tensor;
    return t;
  };
  for (weight* w : weights) {
    w->value = random(w->shape[0], w->shape[1]);
    w->grad = empty_matrix<float>(w->shape[0], w->shape[1]);
    std::fill_n(data<float>(w->grad), w->grad.numel(), 0.0f);
    w->trainable = true;
  }
  adapter.lay_out(where, true);
  const at::Tensor x = random(n, in), dy = random(n, out);
  token_batch tokens;
  tokens.ids.resize(std::size_t(n));
  pass p{where, tokens};
  saved_tensors saved;
  const at::Tensor y = adapter.forward(p, x, &saved), dx = adapter.backward(p, saved, dy.clone(), true);
  const float *w1 = data<float>(weights[0]->value), *w2 = data<float>(weights[1]->value);
  std::vector<double> d_w1(std::size_t(out * in)), d_w2(std::size_t(out * out));
  for (std::int64_t r = 0; r < n; ++r) {
    std::vector<double> mid(std::size_t(out), 0.0), d_mid(std::size_t(out), 0.0), d_x(std::size_t(in), 0.0);
    for (std::int64_t o = 0; o < out; ++o)
      for (std::int64_t i = 0; i < in; ++i)
        mid[std::size_t(o)] += double(w1[o * in + i]) * data<float>(x)[r * in + i];
    for (auto& m : mid)
      m = std::max(m, 0.0);
    for (std::int64_t o = 0; o < out; ++o) {
      double sum = 0;
      const double d = data<float>(dy)[r * out + o];
      for (std::int64_t m = 0; m < out; ++m) {
        sum += w2[o * out + m] * mid[std::size_t(m)];
        d_w2[std::size_t(o * out + m)] += d * mid[std::size_t(m)];
        d_mid[std::size_t(m)] += mid[std::size_t(m)] > 0 ? d * w2[o * out + m] : 0;
      }
      ASSERT_NEAR(data<float>(y)[r * out + o], sum, 1e-5) << which.name;
    }
    for (std::int64_t o = 0; o < out; ++o)
      for (std::int64_t i = 0; i < in; ++i) {
        d_w1[std::size_t(o * in + i)] += d_mid[std::size_t(o)] * data<float>(x)[r * in + i];
        d_x[std::size_t(i)] += d_mid[std::size_t(o)] * w1[o * in + i];
      }
    for (std::int64_t i = 0; i < in; ++i)
      ASSERT_NEAR(data<float>(dx)[r * in + i], d_x[std::size_t(i)], 1e-5) << which.name;
  }
  for (std::size_t i = 0; i < d_w1.size(); ++i)
    ASSERT_NEAR(data<float>(weights[0]->grad)[i], d_w1[i], 1e-5) << which.name;
  for (std::size_t i = 0; i < d_w2.size(); ++i)
    ASSERT_NEAR(data<float>(weights[1]->grad)[i], d_w2[i], 1e-5) << which.name;
}

TEST(ModelClasses, EveryOneIsTransformersForwardAndBackward) {
  compute where(2);
  int walked = 0;
  for (const auto& which : model_classes()) {
    if (which.adapter) {
      check_adapter(which, where);
      continue;
    }
    const dumped reference(which.split ? "split-mlp" : "split-llama");
    const std::string head = name_of(which.head);
    padded_model model(reference.model(which, {dtype::f32, true, {"*"}}, where));
    std::unique_ptr<tape> saved;
    const auto out = model.forward(reference.input(), &saved);
    expect_near(out, read<float>(reference.file, head + ".out"), 2e-5f, which.name);
    model.packed().zero_grads();
    model.backward(*saved, read<float>(reference.file, head + ".d_out"));
    expect_gradients(model.packed(), reference.file, head, which.name);
    ++walked;
  }
  EXPECT_EQ(walked, 22);
}

TEST(SplitModel, WithoutTheReluItIsTransformersToo) {
  compute where(2);
  const dumped reference("split-linear");
  padded_model model(reference.model(find_model_class("CustomSplitLLamaForCausalLM"), {dtype::f32, true, {"*"}}, where));
  std::unique_ptr<tape> saved;
  expect_near(model.forward(reference.input(), &saved), read<float>(reference.file, "lm.out"), 2e-5f, "logits");
  model.packed().zero_grads();
  model.backward(*saved, read<float>(reference.file, "lm.d_out"));
  expect_gradients(model.packed(), reference.file, "lm", "linear");
}

TEST(SplitModel, EmbeddingsMayComeInsteadOfIds) {
  compute where(2);
  for (const auto* name : {"split-mlp", "split-llama"}) {
    const dumped reference(name);
    const auto which = find_model_class(std::string(name) == "split-mlp" ? "CustomSplitLLamaForCausalLM" : "LlamaForCausalLM");
    padded_model model(reference.model(which, {}, where));
    auto input = reference.input();
    input.ids.clear();
    input.embeds = read<float>(reference.file, "embeds");
    expect_near(model.forward(input), read<float>(reference.file, "lm.embeds_out"), 2e-5f, name);
    EXPECT_EQ(message_of("/none", errc::bad_shape,
                         [&] {
                           input.ids = reference.input().ids;
                           model.forward(input);
                         }),
              "padded input: exactly one of input_ids and inputs_embeds must be given, found both");
    input.ids.clear();
    input.embeds.clear();
    EXPECT_EQ(message_of("/none", errc::bad_shape, [&] { model.forward(input); }),
              "padded input: exactly one of input_ids and inputs_embeds must be given, found neither");
    input.embeds.resize(7);
    EXPECT_NE(message_of("/none", errc::bad_shape, [&] { model.forward(input); }).find("inputs_embeds has 7 elements"), std::string::npos);
  }
}

TEST(SplitModel, PaddingAndEmptyRowsChangeNoBit) {
  compute where(2);
  const dumped reference("split-mlp");
  for (const auto* name :
       {"CustomSplitLLamaForCausalLM", "ParallelCustomSplitLLamaForValueRmPad", "CustomSplitLLamaForSequenceClassification"}) {
    padded_model model(reference.model(find_model_class(name), {dtype::bf16, false, {}}, where));
    const bool scores = find_model_class(name).head == head_kind::reward;
    padded_input narrow{1, 9, {5, 6, 7, 8, 9, 10, 11, 12, 13}, {}, {}};
    const auto alone = model.forward(narrow);
    const std::size_t width = scores ? 1 : alone.size() / 9;
    padded_input wide{3, 14, {}, {}, {}};
    for (int r = 0; r < 3; ++r)
      for (int c = 0; c < 14; ++c) {
        const bool real = r == 0 ? c >= 5 : r == 2 ? c < 9 : false; // left, nothing, right
        wide.attention_mask.push_back(real);
        wide.ids.push_back(real ? narrow.ids[std::size_t(r == 0 ? c - 5 : c)] : 60);
      }
    const auto padded = model.forward(wide);
    if (scores) {
      EXPECT_EQ(padded, (std::vector<float>{alone[0], 0, alone[0]}));
      continue;
    }
    ASSERT_EQ(padded.size(), 3 * 14 * width);
    for (std::size_t r = 0; r < 3; ++r)
      for (std::size_t c = 0; c < 14; ++c)
        for (std::size_t w = 0; w < width; ++w) {
          const bool real = r == 0 ? c >= 5 : r == 2 && c < 9;
          const float expected = real ? alone[(r == 0 ? c - 5 : c) * width + w] : 0.0f;
          ASSERT_EQ(padded[(r * 14 + c) * width + w], expected) << name << " " << r << " " << c;
        }
  }
}

/// One tiny model as both halves of a split model with an identity bridge, and the model itself.
struct twins {
  scratch dir;
  twins() {
    test::write_model(dir / "whole", test::tiny_config(32, 5, 4, 2, R"({"tie_word_embeddings": true})"), dtype::f32);
    const auto whole = (dir / "whole").string();
    const nlohmann::json config = {{"architectures", {"CustomSplitLLamaForCausalLM"}},
                                   {"path8b", whole},
                                   {"path70b", whole},
                                   {"num_layers_8", 2},
                                   {"num_layers_70", 3},
                                   {"vocab_size", 61},
                                   {"mlp", false}};
    dir.put("split.json", config.dump());
    convert_split(dir / "split.json", dir / "split", std::nullopt, 0);
  }
};

TEST(SplitModel, IdentityBetweenTheHalvesOfOneModelIsThatModelBitForBit) {
  const twins both;
  for (const auto type : {dtype::f32, dtype::bf16})
    for (const int threads : {1, 2}) {
      compute where(threads);
      const auto whole = load_model(both.dir / "whole", {type, false, {}}, where);
      const auto split = load_model(both.dir / "split", {type, false, {}}, where);
      EXPECT_EQ(whole->cache_block_bytes(), split->cache_block_bytes());
      std::vector<std::int32_t> ids;
      for (int i = 0; i < 70; ++i)
        ids.push_back(std::int32_t(draw_bits({1, draw::init, 0, std::uint32_t(i)})[0] % 61));
      batch_builder builder, again;
      builder.add_sequence(ids, 1);
      again.add_sequence(ids, 1);
      EXPECT_EQ(whole->score(builder.take(), 1, false, nullptr).logprobs, split->score(again.take(), 1, false, nullptr).logprobs);
      token_batch tokens;
      tokens.ids = ids;
      for (int i = 0; i < 70; ++i)
        tokens.positions.push_back(i);
      tokens.segments = {{0, 70, 0, {2, 0, 1}}};
      tokens.n_blocks = 3;
      const std::vector<std::int32_t> rows = {0, 31, 32, 69};
      std::vector<float> a(4 * 61), b(4 * 61);
      const auto cache_a = whole->make_cache(3), cache_b = split->make_cache(3);
      whole->forward(tokens, *cache_a, rows, a.data());
      split->forward(tokens, *cache_b, rows, b.data());
      EXPECT_EQ(0, std::memcmp(a.data(), b.data(), a.size() * sizeof(float)));
    }
}

TEST(SplitModel, TrainingTheBridgeAloneGivesItsGradientAndNoOther) {
  compute where(2);
  const dumped reference("split-mlp");
  const auto& which = find_model_class("CustomSplitLLamaForCausalLM");
  padded_model all(reference.model(which, {dtype::f32, true, {"*"}}, where));
  padded_model bridge(reference.model(which, {dtype::f32, true, {"model.adapter.*"}}, where));
  for (auto* model : {&all, &bridge}) {
    std::unique_ptr<tape> saved;
    model->forward(reference.input(), &saved);
    model->packed().zero_grads();
    model->backward(*saved, read<float>(reference.file, "lm.d_out"));
  }
  int trained = 0;
  for (std::size_t i = 0; i < all.packed().parameters().size(); ++i) {
    const parameter &a = all.packed().parameters()[i], &b = bridge.packed().parameters()[i];
    EXPECT_EQ(b.trainable, b.name.starts_with("model.adapter.")) << b.name;
    if (b.grad.empty())
      continue;
    ++trained;
    EXPECT_EQ(0, std::memcmp(a.grad.data(), b.grad.data(), b.grad.size() * sizeof(float))) << b.name;
  }
  EXPECT_EQ(trained, 2);
}

TEST(SplitModel, TheAdapterNamesBothWidths) {
  compute where(1);
  const auto cfg = load_model_config(data_dir + "split-mlp");
  adapter_block<float> adapter(blocks_of(find_model_class("ParallelAdapter"), cfg)[0]);
  token_batch tokens;
  tokens.ids = {1, 2};
  pass p{where, tokens};
  EXPECT_EQ(message_of("/none", errc::bad_shape, [&] { adapter.forward(p, empty_matrix<float>(2, 24), nullptr); }),
            "adapter: hidden states are 24 wide; this one leads from width 16 to 24");
}

TEST(ModelClasses, UnknownNamesListTheKnownOnes) {
  const auto text = message_of("/none", errc::unsupported, [] { find_model_class("ParallelFoo"); });
  for (const auto& which : model_classes())
    EXPECT_NE(text.find(which.name), std::string::npos) << which.name;
  compute where(1);
  EXPECT_EQ(
      message_of("/none", errc::bad_config,
                 [&] { make_model(find_model_class("CustomSplitLLamaModel"), load_model_config(data_dir + "split-llama"), {}, where); }),
      "CustomSplitLLamaModel is a split model, and config.json describes a plain Llama (LlamaForCausalLM)");
}

} // namespace
} // namespace troupe
