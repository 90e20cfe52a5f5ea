#include "model/weights/convert.hpp"
#include "model/weights/half.hpp"
#include "model/weights/split_test_support.hpp"
#include <cmath>

namespace troupe {
namespace {

namespace fs = std::filesystem;
using test::message_of;
using test::same_bytes;
using test::scratch;
using test::tiny_config;
using test::write_model;

/// Two models of other widths and a configuration that takes 2 layers of the first and 3 of the second.
struct two_models {
  scratch dir;
  nlohmann::json config;
  two_models(int first_width = 32, int second_width = 48) {
    write_model(dir / "a", tiny_config(first_width, 4, 4, 2, R"({"tie_word_embeddings": true})"), dtype::f32, 60000); // in shards
    write_model(dir / "b", tiny_config(second_width, 5, 4, 1), dtype::bf16);
    dir.put("a/tokenizer.json", "{\"first\": 1}");
    dir.put("b/tokenizer.json", "{\"second\": 1}");
    dir.put("a/generation_config.json", "{\"eos_token_id\": 7}");
    config = {{"architectures", {"CustomSplitLLamaForCausalLM"}},
              {"model_type", "custom_split_llama"},
              {"path8b", (dir / "a").string()},
              {"path70b", (dir / "b").string()},
              {"num_layers_8", 2},
              {"num_layers_70", 3},
              {"vocab_size", 61},
              {"mlp", false},
              {"adapter_path", nullptr},
              {"adapter_init", "identity"}};
  }
  fs::path file(const char* patch = "{}") const {
    auto json = config;
    json.merge_patch(nlohmann::json::parse(patch));
    return dir.put("split.json", json.dump());
  }
  conversion convert(const char* patch = "{}", std::optional<dtype> type = std::nullopt, std::uint64_t seed = 0,
                     const char* out = "out") const {
    return convert_split(file(patch), dir / out, type, seed);
  }
};

std::vector<float> values_of(const tensor_info& t) {
  std::vector<float> values(t.n_bytes / size_of(t.type));
  convert_elements(t.type, t.bytes.data(), dtype::f32, reinterpret_cast<std::byte*>(values.data()), values.size());
  return values;
}

void expect_identity(const tensor_info& t) {
  const auto values = values_of(t);
  for (std::int64_t r = 0; r < t.shape[0]; ++r)
    for (std::int64_t c = 0; c < t.shape[1]; ++c)
      EXPECT_EQ(values[std::size_t(r * t.shape[1] + c)], r == c ? 1.0f : 0.0f) << t.name << " " << r << " " << c;
}

TEST(ConvertSplit, EveryTensorIsItsSourcesBytes) {
  const two_models m;
  const auto done = m.convert();
  const safetensors_reader a(m.dir / "a"), b(m.dir / "b"), out(m.dir / "out");
  std::size_t taken = 2; // the adapter's
  const auto expect = [&](const std::string& name, const safetensors_reader& from, const std::string& source) {
    EXPECT_TRUE(same_bytes(out.find(name), from.find(source))) << name;
    ++taken;
  };
  expect("model.embed_tokens.weight", a, "model.embed_tokens.weight");
  expect("model.norm.weight", b, "model.norm.weight");
  expect("lm_head.weight", b, "lm_head.weight");
  for (const auto* suffix : {"input_layernorm.weight", "self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight",
                             "self_attn.o_proj.weight", "post_attention_layernorm.weight", "mlp.gate_proj.weight", "mlp.up_proj.weight",
                             "mlp.down_proj.weight"}) {
    for (const auto* i : {"0", "1"})
      expect("model.layers_8b." + std::string(i) + "." + suffix, a, "model.layers." + std::string(i) + "." + suffix);
    for (const int j : {0, 1, 2}) // the LAST three of five
      expect("model.layers_70b." + std::to_string(j) + "." + suffix, b, "model.layers." + std::to_string(j + 2) + "." + suffix);
  }
  EXPECT_EQ(out.tensors().size(), taken);
  EXPECT_EQ(done.tensors, taken);
  EXPECT_EQ(out.find("model.adapter.linear1.weight")->type, dtype::bf16) << "the second model's";
  EXPECT_EQ(out.find("model.embed_tokens.weight")->type, dtype::f32);
}

TEST(ConvertSplit, TheDirectoryNeedsNeitherModelAndHoldsTheModelingFile) {
  const two_models m;
  m.convert();
  fs::remove_all(m.dir / "a");
  fs::remove_all(m.dir / "b");
  const auto cfg = load_model_config(m.dir / "out");
  EXPECT_EQ(cfg.layer.hidden, 32);
  EXPECT_EQ(cfg.last_layer().hidden, 48);
  EXPECT_EQ(cfg.declared_dtype, dtype::f32) << "tensors of both types";
  EXPECT_EQ(read_file(m.dir / "out/tokenizer.json"), "{\"first\": 1}");
  EXPECT_EQ(load_eos_token_ids(m.dir / "out", cfg), std::vector<std::int32_t>{7});
  EXPECT_EQ(read_file(m.dir / "out/modeling_custom_split_llama.py"),
            read_file(std::string(TROUPE_SOURCE_DIR) + "/python/modeling_custom_split_llama.py"));
  const auto json = parse_json(read_file(m.dir / "out/config.json"), "config.json");
  EXPECT_EQ(json["auto_map"]["AutoModelForCausalLM"], "modeling_custom_split_llama.CustomSplitLLamaForCausalLM");
  // From there to a clean directory, the same tensors in another type.
  convert_hf(m.dir / "out", m.dir / "hf", dtype::f32);
  EXPECT_TRUE(fs::exists(m.dir / "hf/modeling_custom_split_llama.py"));
  EXPECT_EQ(load_model_config(m.dir / "hf").split->n_layers_70, 3);
  const safetensors_reader out(m.dir / "out"), hf(m.dir / "hf");
  for (const auto& [name, t] : out.tensors())
    EXPECT_EQ(values_of(t), values_of(*hf.find(name))) << name;
}

TEST(ConvertSplit, IdentityIsCutOrPaddedToTheWidths) {
  for (const auto& [first, second] : {std::pair{32, 32}, {32, 48}, {48, 32}}) {
    const two_models m(first, second);
    m.convert();
    const safetensors_reader out(m.dir / "out");
    EXPECT_EQ(out.find("model.adapter.linear1.weight")->shape, (std::vector<std::int64_t>{second, first}));
    expect_identity(*out.find("model.adapter.linear1.weight"));
    expect_identity(*out.find("model.adapter.linear2.weight"));
  }
}

TEST(ConvertSplit, NormalIsOfItsSeedAlone) {
  const two_models m;
  const char* patch = R"({"adapter_init": "normal"})";
  m.convert(patch, dtype::f32, 1, "one");
  m.convert(patch, dtype::f32, 1, "again");
  m.convert(patch, dtype::f32, 2, "two");
  const safetensors_reader one(m.dir / "one"), again(m.dir / "again"), two(m.dir / "two");
  const auto values = values_of(*one.find("model.adapter.linear2.weight"));
  double sum = 0, squares = 0;
  for (const float v : values) {
    sum += v;
    squares += double(v) * v;
  }
  const double mean = sum / double(values.size()), deviation = std::sqrt(squares / double(values.size()));
  EXPECT_NEAR(mean, 0, 5 * 0.02 / std::sqrt(double(values.size())));
  EXPECT_NEAR(deviation, 0.02, 5 * 0.02 / std::sqrt(2.0 * double(values.size())));
  for (const auto* name : {"model.adapter.linear1.weight", "model.adapter.linear2.weight"}) {
    EXPECT_TRUE(same_bytes(one.find(name), again.find(name)));
    EXPECT_FALSE(same_bytes(one.find(name), two.find(name)));
  }
  EXPECT_NE(values_of(*one.find("model.adapter.linear1.weight"))[0], values[0]);
}

TEST(ConvertSplit, AnAdapterFileWinsAndKeepsItsType) {
  const two_models m;
  std::vector<float> linear1(48 * 32, 0.25f), linear2(48 * 48, -0.5f);
  const auto write = [&](std::vector<std::int64_t> shape1, std::vector<std::int64_t> shape2, bool third) {
    std::vector<tensor_to_write> tensors = {{"model.adapter.linear1.weight", dtype::f32, shape1, std::as_bytes(std::span(linear1))},
                                            {"model.adapter.linear2.weight", dtype::f32, shape2, std::as_bytes(std::span(linear2))}};
    if (third)
      tensors.push_back({"model.norm.weight", dtype::f32, {48}, std::as_bytes(std::span(linear2).first(48))});
    write_safetensors_file(m.dir / "adapter.safetensors", tensors);
  };
  const auto patch = R"({"adapter_init": "fit", "adapter_path": ")" + (m.dir / "adapter.safetensors").string() + "\"}";
  const auto refusal = [&] { return message_of(m.dir.path(), errc::bad_input, [&] { m.convert(patch.c_str(), {}, 0, "no"); }); };
  write({48, 32}, {48, 48}, false);
  m.convert(patch.c_str());
  const safetensors_reader out(m.dir / "out");
  EXPECT_EQ(values_of(*out.find("model.adapter.linear1.weight")), linear1);
  EXPECT_EQ(values_of(*out.find("model.adapter.linear2.weight")), linear2);
  EXPECT_EQ(out.find("model.adapter.linear1.weight")->type, dtype::f32);
  EXPECT_EQ(load_model_config(m.dir / "out").split->adapter_path, "");
  write({32, 48}, {48, 48}, false);
  EXPECT_EQ(refusal(),
            "DIR/adapter.safetensors: tensor model.adapter.linear1.weight is [32, 48], transposed: the first model is 32 wide and the "
            "second 48, so it must be [48, 32]");
  write({24, 64}, {48, 48}, false);
  EXPECT_EQ(refusal(),
            "DIR/adapter.safetensors: tensor model.adapter.linear1.weight is [24, 64]: the first model is 32 wide and the second 48, so "
            "it must be [48, 32]");
  write({48, 32}, {48, 48}, true);
  EXPECT_EQ(refusal(),
            "DIR/adapter.safetensors: tensor model.norm.weight [48] belongs to no adapter; its tensors are model.adapter.linear1.weight "
            "and model.adapter.linear2.weight");
  fs::remove(m.dir / "adapter.safetensors");
  EXPECT_EQ(refusal(), "cannot read DIR/adapter.safetensors: No such file or directory");
  EXPECT_FALSE(fs::exists(m.dir / "no"));
}

TEST(ConvertSplit, ATiedSecondModelsEmbeddingIsTheHead) {
  const two_models m;
  write_model(m.dir / "b", tiny_config(48, 5, 4, 1, R"({"tie_word_embeddings": true})"), dtype::bf16);
  m.convert();
  const safetensors_reader b(m.dir / "b"), out(m.dir / "out");
  EXPECT_TRUE(same_bytes(out.find("lm_head.weight"), b.find("model.embed_tokens.weight")));
}

TEST(ConvertSplit, OneTypeForAllIsRoundedOnce) {
  const two_models m;
  m.convert("{}", dtype::bf16);
  const safetensors_reader a(m.dir / "a"), out(m.dir / "out");
  EXPECT_EQ(load_model_config(m.dir / "out").declared_dtype, dtype::bf16);
  const auto exact = values_of(*a.find("model.embed_tokens.weight")), rounded = values_of(*out.find("model.embed_tokens.weight"));
  for (std::size_t i = 0; i < exact.size(); ++i)
    ASSERT_EQ(rounded[i], bf16_to_f32(f32_to_bf16(exact[i])));
  for (const auto& [name, t] : out.tensors())
    EXPECT_EQ(t.type, dtype::bf16) << name;
}

TEST(ConvertSplit, ValueAndRewardModelsGetANewScore) {
  for (const bool value : {true, false}) {
    const two_models m;
    m.convert(value ? R"({"architectures": ["CustomSplitLLamaForTokenClassification"]})"
                    : R"({"architectures": ["CustomSplitLLamaForSequenceClassification"]})");
    const safetensors_reader out(m.dir / "out");
    EXPECT_EQ(out.find("lm_head.weight"), nullptr);
    EXPECT_EQ(out.find("score.weight")->shape, (std::vector<std::int64_t>{1, 48}));
    EXPECT_NE(values_of(*out.find("score.weight"))[5], 0.0f);
    EXPECT_EQ(out.find("score.bias") != nullptr, value);
    if (value) {
      EXPECT_EQ(values_of(*out.find("score.bias")), std::vector<float>{0});
    }
  }
}

TEST(ConvertSplit, BadInputIsOneLineAndLeavesNothingBehind) {
  const std::pair<const char*, const char*> rows[] = {
      {R"({"path8b": null})", "DIR/split.json: path8b: is missing, and so is config_8b; one of the two must say what that model is"},
      {R"({"path70b": "/none"})", "DIR/split.json: path70b: \"/none\" is not a directory; it must hold a Hugging Face model"},
      {R"({"num_layers_8": 5})", "DIR/split.json: num_layers_8: 5 of the 4 layers that config_8b has; a split model takes 1 to 4 of them"},
      {R"({"num_layers_70": 0})",
       "DIR/split.json: num_layers_70: 0 of the 5 layers that config_70b has; a split model takes 1 to 5 of them"},
      {R"({"vocab_size": 60})", "DIR/split.json: vocab_size: 60, and config_8b.vocab_size is 61; both halves must have one vocabulary"},
      {R"({"mlp": null})", "DIR/split.json: mlp: is missing"},
  };
  const two_models m;
  for (const auto& [patch, message] : rows)
    EXPECT_EQ(message_of(m.dir.path(), errc::bad_input, [&m, &patch = patch] { m.convert(patch); }), message) << patch;
  EXPECT_EQ(message_of(m.dir.path(), errc::bad_input, [&] { m.convert(R"({"adapter_init": "fit"})"); }),
            "DIR/split.json: adapter_init = \"fit\" needs text to fit to: convert split --fit-text FILE");
  m.dir.put("llama.json", tiny_config(32, 2, 4, 2).dump());
  EXPECT_EQ(message_of(m.dir.path(), errc::bad_input, [&] { convert_split(m.dir / "llama.json", m.dir / "out", {}, 0); }),
            "DIR/llama.json: architectures[0] = \"LlamaForCausalLM\" is no split model; CustomSplitLLamaForCausalLM is wanted");
  EXPECT_FALSE(fs::exists(m.dir / "out"));
}

TEST(ConvertSplit, DamagedModelsAreNamedAndNothingIsWritten) {
  const auto refusal = [](const std::function<void(const two_models&)>& damage) {
    const two_models m;
    damage(m);
    const auto text = message_of(m.dir.path(), errc::bad_input, [&] { m.convert(); });
    EXPECT_FALSE(fs::exists(m.dir / "out"));
    for (const auto& entry : fs::directory_iterator(m.dir.path()))
      EXPECT_TRUE(entry.path().filename() == "a" || entry.path().filename() == "b" || entry.path().filename() == "split.json")
          << entry.path();
    return text;
  };
  EXPECT_NE(refusal([](const two_models& m) {
              fs::resize_file(m.dir / "b/model.safetensors", fs::file_size(m.dir / "b/model.safetensors") - 1);
            }).find("DIR/b/model.safetensors: tensor"),
            std::string::npos);
  EXPECT_NE(refusal([](const two_models& m) {
              for (const auto& entry : fs::directory_iterator(m.dir / "a"))
                if (entry.path().filename().string().starts_with("model-00002-"))
                  fs::remove(entry.path());
            }).find("DIR/a/model.safetensors.index.json"),
            std::string::npos);
  // A layer that is not taken counts as well: the directory is not the model that its configuration says.
  EXPECT_EQ(refusal([](const two_models& m) {
              write_model(m.dir / "b", tiny_config(48, 6, 4, 1), dtype::bf16);
              m.dir.put("b/config.json", tiny_config(48, 5, 4, 1).dump());
            }),
            "DIR/b: tensor \"model.layers.5.input_layernorm.weight\" [48] belongs to no part of LlamaForCausalLM");
  EXPECT_EQ(refusal([](const two_models& m) { m.dir.put("b/config.json", tiny_config(48, 5, 4, 2).dump()); }),
            "DIR/b: tensor model.layers.0.self_attn.k_proj.weight is [12, 48], config.json makes it [24, 48]");
  EXPECT_EQ(
      refusal([](const two_models& m) { m.dir.put("b/config.json", tiny_config(48, 5, 4, 1, R"({"tie_word_embeddings": true})").dump()); }),
      "DIR/b: tensor lm_head.weight [61, 48] belongs to no part of LlamaForCausalLM with tie_word_embeddings; it differs from the "
      "embedding");
  EXPECT_EQ(refusal([](const two_models& m) {
              auto bytes = read_file(m.dir / "b/model.safetensors");
              const safetensors_reader b(m.dir / "b");
              const tensor_info& norm = *b.find("model.norm.weight");
              const std::string_view held(reinterpret_cast<const char*>(norm.bytes.data()), norm.n_bytes);
              const auto at = bytes.find(held) + 2 * 3;
              bytes.replace(at, 2, "\xc0\x7f");
              m.dir.put("b/new.safetensors", bytes);
              fs::rename(m.dir / "b/new.safetensors", m.dir / "b/model.safetensors");
            }),
            "DIR/b: tensor model.norm.weight holds NaN at element 3; weights must be finite");
}

} // namespace
} // namespace troupe
