#include "model/config.hpp"
#include "model/weights/json.hpp"
#include "model/weights/test_support.hpp"
#include <gtest/gtest.h>

namespace troupe {
namespace {

using test::message_of;
using test::scratch;

const char* const first = R"({"architectures": ["LlamaForCausalLM"], "vocab_size": 61, "num_hidden_layers": 4, "hidden_size": 32,
  "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": true, "rms_norm_eps": 1e-5,
  "max_position_embeddings": 512, "bos_token_id": 1, "eos_token_id": [2, 3], "rope_theta": 20000})";
const char* const second = R"({"architectures": ["LlamaForCausalLM"], "vocab_size": 61, "num_hidden_layers": 8, "hidden_size": 64,
  "intermediate_size": 96, "num_attention_heads": 8, "num_key_value_heads": 1, "head_dim": 16, "rms_norm_eps": 1e-6,
  "max_position_embeddings": 256, "rope_scaling": {"rope_type": "linear", "factor": 2.0}})";

/// A valid file with some keys changed; a null value takes the key away.
std::string changed(const char* patch) {
  auto json = nlohmann::json::parse(R"({"architectures": ["CustomSplitLLamaForCausalLM"], "model_type": "custom_split_llama",
    "num_layers_8": 2, "num_layers_70": 3, "vocab_size": 61, "mlp": false, "adapter_path": null, "adapter_init": "normal"})");
  json["config_8b"] = nlohmann::json::parse(first);
  json["config_70b"] = nlohmann::json::parse(second);
  json.merge_patch(nlohmann::json::parse(patch));
  return json.dump();
}

void expect_same(const model_config& a, const model_config& b) {
  const auto &s = a.split.value(), &t = b.split.value();
  EXPECT_EQ(
      std::tie(a.architecture, a.vocab_size, a.n_layers, a.tie_word_embeddings, a.max_position_embeddings, a.bos_token_id, a.eos_token_ids),
      std::tie(b.architecture, b.vocab_size, b.n_layers, b.tie_word_embeddings, b.max_position_embeddings, b.bos_token_id,
               b.eos_token_ids));
  EXPECT_EQ(std::tie(s.n_layers_8, s.n_layers_70, s.whole_8, s.whole_70, s.mlp, s.start, s.path_8, s.path_70, s.adapter_path, s.config_8,
                     s.config_70),
            std::tie(t.n_layers_8, t.n_layers_70, t.whole_8, t.whole_70, t.mlp, t.start, t.path_8, t.path_70, t.adapter_path, t.config_8,
                     t.config_70));
  for (const auto& [x, y] : {std::pair{a.layer, b.layer}, {s.layer_70, t.layer_70}}) {
    EXPECT_EQ(std::tie(x.hidden, x.intermediate, x.n_heads, x.n_kv_heads, x.head_dim, x.rms_norm_eps),
              std::tie(y.hidden, y.intermediate, y.n_heads, y.n_kv_heads, y.head_dim, y.rms_norm_eps));
    EXPECT_EQ(std::tie(x.rope.kind, x.rope.theta, x.rope.factor), std::tie(y.rope.kind, y.rope.theta, y.rope.factor));
  }
}

TEST(SplitConfig, EachHalfKeepsItsOwn) {
  const auto cfg = parse_model_config(changed("{}"), "c.json");
  const auto& split = cfg.split.value();
  EXPECT_EQ(cfg.n_layers, 5);
  EXPECT_EQ(cfg.layer.hidden, 32);
  EXPECT_EQ(cfg.layer.rope.theta, 20000);
  EXPECT_EQ(cfg.layer.rms_norm_eps, 1e-5);
  EXPECT_EQ(cfg.last_layer().hidden, 64);
  EXPECT_EQ(cfg.last_layer().head_dim, 16);
  EXPECT_EQ(cfg.last_layer().rms_norm_eps, 1e-6);
  EXPECT_EQ(cfg.last_layer().rope.kind, rope_kind::linear);
  EXPECT_EQ(split.whole_8, 4);
  EXPECT_EQ(split.whole_70, 8);
  EXPECT_EQ(split.start, adapter_start::normal);
  EXPECT_FALSE(cfg.tie_word_embeddings);
  EXPECT_EQ(cfg.max_position_embeddings, 256) << "the smaller of both";
  EXPECT_EQ(cfg.bos_token_id, 1) << "the first model's";
  EXPECT_EQ(cfg.eos_token_ids, (std::vector<std::int32_t>{2, 3}));
  EXPECT_EQ(cfg.declared_dtype, std::nullopt);
}

TEST(SplitConfig, ReadsBackWhatItWrote) {
  for (const auto* architecture :
       {"CustomSplitLLamaForCausalLM", "CustomSplitLLamaForTokenClassification", "CustomSplitLLamaForSequenceClassification"})
    for (const auto* patch : {"{}", R"({"mlp": true, "adapter_init": "fit", "path8b": "a", "path70b": "b", "adapter_path": "c"})"}) {
      auto json = nlohmann::json::parse(changed(patch));
      json["architectures"] = {architecture};
      const auto cfg = parse_model_config(json.dump(), "c.json");
      const auto written = to_config_json(cfg, dtype::bf16);
      const auto back = parse_model_config(written, "c.json");
      expect_same(back, cfg);
      EXPECT_EQ(back.declared_dtype, dtype::bf16);
      EXPECT_EQ(nlohmann::json::parse(written)["config_8b"], nlohmann::json::parse(first)) << "as it was given, every key";
      EXPECT_EQ(nlohmann::json::parse(written)["tie_word_embeddings"], false);
    }
}

TEST(SplitConfig, ConfigurationsAreReadFromThePathsWhenAbsent) {
  const scratch dir;
  dir.put("a/config.json", first);
  dir.put("b/config.json", second);
  const auto patch =
      R"({"config_8b": null, "config_70b": null, "path8b": ")" + (dir / "a").string() + R"(", "path70b": ")" + (dir / "b").string() + "\"}";
  auto cfg = parse_model_config(changed(patch.c_str()), "c.json");
  auto given = parse_model_config(changed("{}"), "c.json");
  given.split->path_8 = (dir / "a").string();
  given.split->path_70 = (dir / "b").string();
  expect_same(cfg, given);
  dir.put("b/config.json", "{}");
  EXPECT_EQ(message_of(dir.path(), errc::bad_input, [&] { parse_model_config(changed(patch.c_str()), "c.json"); }),
            "DIR/b/config.json: vocab_size: is missing");
  std::filesystem::remove_all(dir / "b");
  EXPECT_EQ(message_of(dir.path(), errc::bad_input, [&] { parse_model_config(changed(patch.c_str()), "c.json"); }),
            "c.json: path70b: \"DIR/b\" is not a directory; it must hold a Hugging Face model");
}

TEST(SplitConfig, BadInputNamesTheKey) {
  const std::pair<const char*, const char*> rows[] = {
      {R"({"num_layers_8": null})", "c.json: num_layers_8: is missing"},
      {R"({"num_layers_70": null})", "c.json: num_layers_70: is missing"},
      {R"({"vocab_size": null})", "c.json: vocab_size: is missing"},
      {R"({"mlp": null})", "c.json: mlp: is missing"},
      {R"({"mlp": "no"})", "c.json: mlp: must be true or false, found \"no\""},
      {R"({"num_layers_8": 0})", "c.json: num_layers_8: 0 of the 4 layers that config_8b has; a split model takes 1 to 4 of them"},
      {R"({"num_layers_8": 5})", "c.json: num_layers_8: 5 of the 4 layers that config_8b has; a split model takes 1 to 4 of them"},
      {R"({"num_layers_70": 0})", "c.json: num_layers_70: 0 of the 8 layers that config_70b has; a split model takes 1 to 8 of them"},
      {R"({"num_layers_70": 9})", "c.json: num_layers_70: 9 of the 8 layers that config_70b has; a split model takes 1 to 8 of them"},
      {R"({"num_layers_70": -1})", "c.json: num_layers_70: -1 is out of range 0 to 2147483647"},
      {R"({"config_8b": null})", "c.json: path8b: is missing, and so is config_8b; one of the two must say what that model is"},
      {R"({"config_70b": null, "path70b": "/none"})", "c.json: path70b: \"DIR\" is not a directory; it must hold a Hugging Face model"},
      {R"({"config_8b": {"vocab_size": 62}})",
       "c.json: vocab_size: 61, and config_8b.vocab_size is 62; both halves must have one vocabulary"},
      {R"({"config_70b": {"vocab_size": 60}})",
       "c.json: vocab_size: 61, and config_70b.vocab_size is 60; both halves must have one vocabulary"},
      {R"({"config_70b": {"hidden_size": null}})", "c.json: config_70b.hidden_size: is missing"},
      {R"({"config_8b": {"rope_scaling": {"rope_type": "linear"}}})", "c.json: config_8b.rope_scaling.factor: is missing"},
      {R"({"config_8b": 7})", "c.json: config_8b: must be an object, found 7"},
      {R"({"path8b": 7})", "c.json: path8b: must be a string, found 7"},
      {R"({"adapter_path": false})", "c.json: adapter_path: must be a string, found false"},
      {R"({"tie_word_embeddings": true})",
       "c.json: tie_word_embeddings: true; a split model's embedding and head are of two models, so it is false"},
  };
  for (const auto& [patch, message] : rows)
    EXPECT_EQ(message_of("/none", errc::bad_input, [&patch = patch] { parse_model_config(changed(patch), "c.json"); }), message) << patch;
  const std::pair<const char*, const char*> lacking[] = {
      {R"({"adapter_init": "zero"})", "c.json: adapter_init = \"zero\": this version knows identity, normal and fit"},
      {R"({"config_8b": {"hidden_act": "gelu"}})", "c.json: config_8b.hidden_act = \"gelu\": this version knows silu"},
      {R"({"config_70b": {"architectures": ["MambaForCausalLM"]}})",
       "c.json: config_70b.architectures = [\"MambaForCausalLM\"]: this version knows halves that are [\"LlamaForCausalLM\"]"},
  };
  for (const auto& [patch, message] : lacking)
    EXPECT_EQ(message_of("/none", errc::unsupported, [&patch = patch] { parse_model_config(changed(patch), "c.json"); }), message) << patch;
}

} // namespace
} // namespace troupe
