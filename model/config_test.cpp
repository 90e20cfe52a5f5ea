#include "model/config.hpp"
#include "model/weights/json.hpp"
#include "model/weights/test_support.hpp"
#include <rapidcheck/gtest.h>

namespace troupe {
namespace {

using test::message_of;
using test::scratch;

/// config.json as published, one a family; what does not matter to the computation is kept.
struct published {
  const char* name;
  const char* text;
  std::int64_t hidden, n_heads, n_kv_heads, head_dim;
  rope_kind rope;
  double theta, factor;
  bool tied;
  std::vector<std::int32_t> eos;
  std::optional<dtype> declared;
};

const published models[] = {
    {"Llama 2 7B",
     R"({"architectures":["LlamaForCausalLM"],"bos_token_id":1,"eos_token_id":2,"hidden_act":"silu","hidden_size":4096,"initializer_range":0.02,
       "intermediate_size":11008,"max_position_embeddings":4096,"model_type":"llama","num_attention_heads":32,"num_hidden_layers":32,
       "num_key_value_heads":32,"pretraining_tp":1,"rms_norm_eps":1e-05,"rope_scaling":null,"tie_word_embeddings":false,"torch_dtype":"float16",
       "use_cache":true,"vocab_size":32000})",
     4096,
     32,
     32,
     128,
     rope_kind::standard,
     10000,
     1,
     false,
     {2},
     std::nullopt},
    {"Llama 3 8B",
     R"({"architectures":["LlamaForCausalLM"],"attention_bias":false,"attention_dropout":0.0,"bos_token_id":128000,"eos_token_id":128001,
       "hidden_act":"silu","hidden_size":4096,"intermediate_size":14336,"max_position_embeddings":8192,"model_type":"llama",
       "num_attention_heads":32,"num_hidden_layers":32,"num_key_value_heads":8,"rms_norm_eps":1e-05,"rope_scaling":null,"rope_theta":500000.0,
       "tie_word_embeddings":false,"torch_dtype":"bfloat16","vocab_size":128256})",
     4096,
     32,
     8,
     128,
     rope_kind::standard,
     500000,
     1,
     false,
     {128001},
     dtype::bf16},
    {"Llama 3.1 8B Instruct",
     R"({"architectures":["LlamaForCausalLM"],"attention_bias":false,"bos_token_id":128000,"eos_token_id":[128001,128008,128009],"hidden_act":"silu",
       "hidden_size":4096,"intermediate_size":14336,"max_position_embeddings":131072,"mlp_bias":false,"model_type":"llama",
       "num_attention_heads":32,"num_hidden_layers":32,"num_key_value_heads":8,"rms_norm_eps":1e-05,
       "rope_scaling":{"factor":8.0,"low_freq_factor":1.0,"high_freq_factor":4.0,"original_max_position_embeddings":8192,"rope_type":"llama3"},
       "rope_theta":500000.0,"tie_word_embeddings":false,"torch_dtype":"bfloat16","vocab_size":128256})",
     4096,
     32,
     8,
     128,
     rope_kind::llama3,
     500000,
     8,
     false,
     {128001, 128008, 128009},
     dtype::bf16},
    {"Llama 3.2 1B",
     R"({"architectures":["LlamaForCausalLM"],"bos_token_id":128000,"eos_token_id":128001,"head_dim":64,"hidden_act":"silu","hidden_size":2048,
       "intermediate_size":8192,"max_position_embeddings":131072,"model_type":"llama","num_attention_heads":32,"num_hidden_layers":16,
       "num_key_value_heads":8,"rms_norm_eps":1e-05,
       "rope_scaling":{"factor":32.0,"high_freq_factor":4.0,"low_freq_factor":1.0,"original_max_position_embeddings":8192,"rope_type":"llama3"},
       "rope_theta":500000.0,"tie_word_embeddings":true,"torch_dtype":"bfloat16","vocab_size":128256})",
     2048,
     32,
     8,
     64,
     rope_kind::llama3,
     500000,
     32,
     true,
     {128001},
     dtype::bf16},
    {"SmolLM2 135M",
     R"({"architectures":["LlamaForCausalLM"],"bos_token_id":1,"eos_token_id":2,"hidden_act":"silu","hidden_size":576,"intermediate_size":1536,
       "is_llama_config":true,"max_position_embeddings":8192,"model_type":"llama","num_attention_heads":9,"num_hidden_layers":30,
       "num_key_value_heads":3,"pad_token_id":2,"pretraining_tp":1,"rms_norm_eps":1e-05,"rope_interleaved":false,"rope_scaling":null,
       "rope_theta":100000,"tie_word_embeddings":true,"torch_dtype":"bfloat16","vocab_size":49152})",
     576,
     9,
     3,
     64,
     rope_kind::standard,
     100000,
     1,
     true,
     {2},
     dtype::bf16},
    {"Transformers 5, linear, no key-value heads, heads wider than hidden",
     R"({"architectures":["LlamaForCausalLM"],"dtype":"float32","head_dim":32,"hidden_act":"silu","hidden_size":64,"intermediate_size":96,
       "model_type":"llama","num_attention_heads":4,"num_hidden_layers":2,"rms_norm_eps":1e-06,"eos_token_id":null,
       "rope_parameters":{"factor":2.0,"rope_theta":20000.0,"rope_type":"linear"},"vocab_size":100})",
     64,
     4,
     4,
     32,
     rope_kind::linear,
     20000,
     2,
     false,
     {},
     dtype::f32},
    {"the old word for the type",
     R"({"architectures":["LlamaForCausalLM"],"hidden_size":64,"intermediate_size":96,"num_attention_heads":4,"num_hidden_layers":2,
       "rope_scaling":{"type":"linear","factor":4},"rope_theta":1e6,"vocab_size":100})",
     64,
     4,
     4,
     16,
     rope_kind::linear,
     1e6,
     4,
     false,
     {},
     std::nullopt},
};

TEST(model_config, reads_published_files) {
  for (const auto& model : models) {
    const auto cfg = parse_model_config(model.text, "config.json");
    SCOPED_TRACE(model.name);
    EXPECT_EQ(cfg.architecture, "LlamaForCausalLM");
    EXPECT_EQ(cfg.layer.hidden, model.hidden);
    EXPECT_EQ(cfg.layer.n_heads, model.n_heads);
    EXPECT_EQ(cfg.layer.n_kv_heads, model.n_kv_heads);
    EXPECT_EQ(cfg.layer.head_dim, model.head_dim);
    EXPECT_EQ(cfg.layer.rope.kind, model.rope);
    EXPECT_EQ(cfg.layer.rope.theta, model.theta);
    EXPECT_EQ(cfg.layer.rope.factor, model.factor);
    EXPECT_EQ(cfg.tie_word_embeddings, model.tied);
    EXPECT_EQ(cfg.eos_token_ids, model.eos);
    EXPECT_EQ(cfg.declared_dtype, model.declared);
  }
}

/// A small valid file with some keys changed; a null value takes the key away.
std::string changed(const char* patch) {
  auto json =
      nlohmann::json::parse(R"({"architectures":["LlamaForCausalLM"],"hidden_size":64,"intermediate_size":96,"num_attention_heads":4,
                                        "num_key_value_heads":2,"num_hidden_layers":2,"vocab_size":100})");
  json.merge_patch(nlohmann::json::parse(patch));
  return json.dump();
}

TEST(model_config, names_the_key_of_bad_input) {
  const std::pair<const char*, const char*> rows[] = {
      {R"({"architectures":null})", "c.json: architectures: is missing"},
      {R"({"architectures":[]})", "c.json: architectures: must be a list that begins with a name"},
      {R"({"architectures":"LlamaForCausalLM"})", "c.json: architectures: must be a list that begins with a name"},
      {R"({"hidden_size":null})", "c.json: hidden_size: is missing"},
      {R"({"hidden_size":"64"})", "c.json: hidden_size: must be an integer, found \"64\""},
      {R"({"hidden_size":64.0})", "c.json: hidden_size: must be an integer, found 64.0"},
      {R"({"hidden_size":0})", "c.json: hidden_size: 0 is out of range 1 to 2147483647"},
      {R"({"num_hidden_layers":-1})", "c.json: num_hidden_layers: -1 is out of range 1 to 2147483647"},
      {R"({"vocab_size":18446744073709551615})", "c.json: vocab_size: 18446744073709551615 is out of range 1 to 2147483647"},
      {R"({"vocab_size":4294967297})", "c.json: vocab_size: 4294967297 is out of range 1 to 2147483647"},
      {R"({"num_key_value_heads":3})", "c.json: num_key_value_heads: 3 does not divide num_attention_heads = 4"},
      {R"({"hidden_size":66})", "c.json: num_attention_heads: 4 does not divide hidden_size = 66, and there is no head_dim"},
      {R"({"head_dim":15})", "c.json: head_dim: 15 is odd; rotary embedding turns pairs"},
      {R"({"rms_norm_eps":0})", "c.json: rms_norm_eps: 0 must be greater than 0"},
      {R"({"rms_norm_eps":"1e-5"})", "c.json: rms_norm_eps: must be a number, found \"1e-5\""},
      {R"({"tie_word_embeddings":1})", "c.json: tie_word_embeddings: must be true or false, found 1"},
      {R"({"max_position_embeddings":0})", "c.json: max_position_embeddings: 0 is out of range 1 to 2147483647"},
      {R"({"rope_theta":-1})", "c.json: rope_theta: -1 must be greater than 0"},
      {R"({"rope_scaling":[]})", "c.json: rope_scaling: must be an object, found []"},
      {R"({"rope_scaling":{"rope_type":"linear"}})", "c.json: rope_scaling.factor: is missing"},
      {R"({"rope_parameters":{"rope_type":"linear","factor":0}})", "c.json: rope_parameters.factor: 0 must be greater than 0"},
      {R"({"rope_scaling":{"rope_type":"llama3","factor":8}})", "c.json: rope_scaling.low_freq_factor: is missing"},
      {R"({"rope_scaling":{"rope_type":"llama3","factor":8,"low_freq_factor":4,"high_freq_factor":4,"original_max_position_embeddings":8192}})",
       "c.json: rope_scaling.low_freq_factor: must be less than high_freq_factor"},
      {R"({"rope_scaling":{"rope_type":7}})", "c.json: rope_scaling.rope_type: must be a string, found 7"},
      {R"({"eos_token_id":-1})", "c.json: eos_token_id: -1 is out of range 0 to 2147483647"},
      {R"({"eos_token_id":[1,"2"]})", "c.json: eos_token_id: must be an integer, found \"2\""},
      {R"({"torch_dtype":1})", "c.json: torch_dtype: must be a string, found 1"},
  };
  for (const auto& [patch, message] : rows)
    EXPECT_EQ(message_of("/none", errc::bad_input, [&, patch = patch] { parse_model_config(changed(patch), "c.json"); }), message) << patch;
  EXPECT_EQ(message_of("/none", errc::bad_input, [&] { parse_model_config("[1]", "c.json"); }),
            "c.json: a JSON object is wanted, found array");
  EXPECT_EQ(message_of("/none", errc::bad_input, [&] { parse_model_config(R"({"a":1,"a":2})", "c.json"); }),
            "c.json: key \"a\" occurs twice");
  EXPECT_EQ(
      message_of("/none", errc::bad_input, [&] { parse_model_config("", "c.json"); }),
      "c.json: not JSON: at line 1, column 1: syntax error while parsing value - unexpected end of input; expected '[', '{', or a literal");
}

TEST(model_config, names_what_this_version_lacks) {
  const std::pair<const char*, const char*> rows[] = {
      {R"({"architectures":["MambaForCausalLM"]})",
       "c.json: architectures[0] = \"MambaForCausalLM\": this version knows LlamaForCausalLM, LlamaForTokenClassification, "
       "LlamaForSequenceClassification, Qwen2ForCausalLM, Qwen2ForTokenClassification, Qwen2ForSequenceClassification, Qwen3ForCausalLM, "
       "Qwen3ForTokenClassification, Qwen3ForSequenceClassification, MistralForCausalLM, MistralForTokenClassification, "
       "MistralForSequenceClassification, CustomSplitLLamaForCausalLM, CustomSplitLLamaForTokenClassification, "
       "CustomSplitLLamaForSequenceClassification"},
      {R"({"hidden_act":"gelu"})", "c.json: hidden_act = \"gelu\": this version knows silu"},
      {R"({"architectures":["Qwen2ForCausalLM"],"use_mrope":true})", "c.json: use_mrope = true: this version knows false alone"},
      {R"({"architectures":["Qwen3ForCausalLM"],"use_sliding_window":true,"num_hidden_layers":2,"layer_types":["full_attention","chunked_attention"]})",
       "c.json: layer_types[1] = \"chunked_attention\": this version knows full_attention and sliding_attention"},
      {R"({"attention_dropout":0.1})", "c.json: attention_dropout = 0.1: this version knows 0 alone"},
      {R"({"partial_rotary_factor":0.5})", "c.json: partial_rotary_factor = 0.500000: this version knows 1 alone"},
      {R"({"rope_parameters":{"partial_rotary_factor":0.5}})",
       "c.json: rope_parameters.partial_rotary_factor = 0.500000: this version knows 1 alone"},
      {R"({"rope_parameters":{"rope_type":"longrope"}})",
       "c.json: rope_parameters.rope_type = \"longrope\": this version knows default, linear, llama3, dynamic and yarn"},
      {R"({"quantization_config":{"bits":4}})", "c.json: quantization_config = {...}: this version knows unquantised weights alone"},
  };
  for (const auto& [patch, message] : rows)
    EXPECT_EQ(message_of("/none", errc::unsupported, [&, patch = patch] { parse_model_config(changed(patch), "c.json"); }), message)
        << patch;
}

// What the other families' files say beside a Llama's, where Transformers' defaults count too.
TEST(model_config, reads_the_other_families) {
  const auto with = [](const char* patch) { return parse_model_config(changed(patch), "c.json"); };
  EXPECT_TRUE(with(R"({"attention_bias":true})").layer.qkv_bias);
  EXPECT_TRUE(with(R"({"attention_bias":true})").layer.o_bias);
  EXPECT_TRUE(with(R"({"mlp_bias":true})").layer.mlp_bias);
  const auto qwen2 = with(R"({"architectures":["Qwen2ForCausalLM"],"sliding_window":5,"max_window_layers":1})");
  EXPECT_TRUE(qwen2.layer.qkv_bias);
  EXPECT_FALSE(qwen2.layer.o_bias);
  EXPECT_EQ(qwen2.layer.window, 0);
  const auto slides = with(
      R"({"architectures":["Qwen2ForCausalLM"],"num_hidden_layers":3,"use_sliding_window":true,"sliding_window":5,"max_window_layers":1})");
  EXPECT_EQ(slides.layer.window, 5);
  EXPECT_EQ(slides.windowed, (std::vector<bool>{false, true, true}));
  const auto types = with(
      R"({"architectures":["Qwen3ForCausalLM"],"num_hidden_layers":2,"use_sliding_window":true,"layer_types":["sliding_attention","full_attention"]})");
  EXPECT_EQ(types.windowed, (std::vector<bool>{true, false}));
  EXPECT_EQ(types.layer.window, 4096);
  EXPECT_TRUE(types.layer.qk_norm);
  EXPECT_EQ(with(R"({"architectures":["Qwen3ForCausalLM"]})").layer.qkv_bias, false);
  EXPECT_EQ(with(R"({"architectures":["MistralForCausalLM"]})").layer.window, 4096);
  auto mistral = changed(R"({"architectures":["MistralForCausalLM"],"sliding_window":7})");
  EXPECT_EQ(parse_model_config(mistral, "c.json").layer.window, 7);
  mistral.replace(mistral.find(":7") + 1, 1, "null");
  EXPECT_EQ(parse_model_config(mistral, "c.json").layer.window, 0);
  EXPECT_EQ(with(R"({"rope_scaling":{"type":"dynamic","factor":2}})").layer.rope.kind, rope_kind::dynamic);
  const auto yarn =
      with(R"({"max_position_embeddings":400,"rope_scaling":{"type":"yarn","original_max_position_embeddings":100}})").layer.rope;
  EXPECT_EQ(yarn.factor, 4); // what the two lengths say
  EXPECT_EQ(yarn.beta_fast, 32);
}

void check_same(const model_config& a, const model_config& b) {
  const auto& r = a.layer.rope;
  const auto& s = b.layer.rope;
  RC_ASSERT(a.architecture == b.architecture);
  RC_ASSERT(a.vocab_size == b.vocab_size && a.n_layers == b.n_layers);
  RC_ASSERT(a.layer.hidden == b.layer.hidden && a.layer.intermediate == b.layer.intermediate);
  RC_ASSERT(a.layer.n_heads == b.layer.n_heads && a.layer.n_kv_heads == b.layer.n_kv_heads && a.layer.head_dim == b.layer.head_dim);
  RC_ASSERT(a.layer.rms_norm_eps == b.layer.rms_norm_eps);
  RC_ASSERT(r.kind == s.kind && r.theta == s.theta && r.factor == s.factor);
  RC_ASSERT(r.low_freq_factor == s.low_freq_factor && r.high_freq_factor == s.high_freq_factor &&
            r.original_max_position == s.original_max_position);
  RC_ASSERT(r.beta_fast == s.beta_fast && r.beta_slow == s.beta_slow && r.truncate == s.truncate);
  RC_ASSERT(r.attention_factor == s.attention_factor && r.mscale == s.mscale && r.mscale_all_dim == s.mscale_all_dim);
  RC_ASSERT(a.layer.qkv_bias == b.layer.qkv_bias && a.layer.o_bias == b.layer.o_bias && a.layer.mlp_bias == b.layer.mlp_bias);
  RC_ASSERT(a.layer.qk_norm == b.layer.qk_norm && a.layer.window == b.layer.window && a.windowed == b.windowed);
  RC_ASSERT(a.tie_word_embeddings == b.tie_word_embeddings && a.max_position_embeddings == b.max_position_embeddings);
  RC_ASSERT(a.bos_token_id == b.bos_token_id && a.eos_token_ids == b.eos_token_ids && a.declared_dtype == b.declared_dtype);
}

RC_GTEST_PROP(model_config, reads_back_what_it_wrote, ()) {
  const auto size = [](int least, int most) { return std::int64_t(*rc::gen::inRange(least, most)); };
  const auto positive = [] { return *rc::gen::map(rc::gen::inRange(1, 1'000'000), [](int v) { return double(v) / 7; }); };
  model_config cfg;
  cfg.architecture = *rc::gen::element<std::string>("LlamaForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM", "MistralForCausalLM");
  const bool llama = cfg.architecture[0] == 'L', qwen2 = cfg.architecture[4] == '2', qwen3 = cfg.architecture[4] == '3';
  cfg.vocab_size = size(1, 200000);
  cfg.n_layers = size(1, 200);
  if (llama || qwen3)
    cfg.layer.qkv_bias = cfg.layer.o_bias = *rc::gen::arbitrary<bool>();
  cfg.layer.qkv_bias |= qwen2;
  cfg.layer.mlp_bias = llama && *rc::gen::arbitrary<bool>();
  cfg.layer.qk_norm = qwen3;
  if (!llama && *rc::gen::arbitrary<bool>())
    cfg.layer.window = size(1, 5000);
  if (cfg.layer.window > 0 && (qwen2 || qwen3))
    cfg.windowed = *rc::gen::container<std::vector<bool>>(std::size_t(cfg.n_layers), rc::gen::arbitrary<bool>());
  cfg.layer.n_kv_heads = size(1, 16);
  cfg.layer.n_heads = cfg.layer.n_kv_heads * size(1, 8);
  cfg.layer.head_dim = 2 * size(1, 128);
  cfg.layer.hidden = size(1, 10000);
  cfg.layer.intermediate = size(1, 10000);
  cfg.layer.rms_norm_eps = positive() * 1e-9;
  cfg.layer.rope.theta = positive();
  cfg.layer.rope.kind = *rc::gen::element(rope_kind::standard, rope_kind::linear, rope_kind::llama3, rope_kind::dynamic, rope_kind::yarn);
  if (cfg.layer.rope.kind != rope_kind::standard)
    cfg.layer.rope.factor = positive();
  if (cfg.layer.rope.kind == rope_kind::llama3) {
    cfg.layer.rope.low_freq_factor = positive();
    cfg.layer.rope.high_freq_factor = cfg.layer.rope.low_freq_factor + positive();
    cfg.layer.rope.original_max_position = size(1, 100000);
  }
  if (cfg.layer.rope.kind == rope_kind::yarn) {
    auto& rope = cfg.layer.rope;
    rope.original_max_position = size(1, 100000);
    rope.beta_slow = positive();
    rope.beta_fast = rope.beta_slow + positive();
    rope.truncate = *rc::gen::arbitrary<bool>();
    for (double* optional : {&rope.attention_factor, &rope.mscale, &rope.mscale_all_dim})
      *optional = *rc::gen::arbitrary<bool>() ? positive() : 0;
  }
  cfg.tie_word_embeddings = *rc::gen::arbitrary<bool>();
  cfg.max_position_embeddings = size(1, 200000);
  cfg.bos_token_id = size(-1, 1000);
  cfg.eos_token_ids = *rc::gen::container<std::vector<std::int32_t>>(rc::gen::inRange(0, 1000));
  cfg.declared_dtype = *rc::gen::element(dtype::f32, dtype::bf16);
  check_same(parse_model_config(to_config_json(cfg, *cfg.declared_dtype), "config.json"), cfg);
}

TEST(model_config, generation_config_decides_the_end_tokens) {
  const std::pair<const char*, std::vector<std::int32_t>> rows[] = {{R"({"eos_token_id":7})", {7}},
                                                                    {R"({"eos_token_id":[7,8]})", {7, 8}},
                                                                    {R"({"eos_token_id":null})", {2}},
                                                                    {"{}", {2}},
                                                                    {R"({"eos_token_id":[]})", {}}};
  model_config cfg;
  cfg.eos_token_ids = {2};
  for (const auto& [text, ids] : rows) {
    const scratch dir;
    EXPECT_EQ(load_eos_token_ids(dir.path(), cfg), std::vector<std::int32_t>{2});
    dir.put("generation_config.json", text);
    EXPECT_EQ(load_eos_token_ids(dir.path(), cfg), ids) << text;
  }
  const scratch dir;
  dir.put("generation_config.json", R"({"eos_token_id":"</s>"})");
  EXPECT_EQ(message_of(dir.path(), errc::bad_input, [&] { load_eos_token_ids(dir.path(), cfg); }),
            "DIR/generation_config.json: eos_token_id: must be an integer, found \"</s>\"");
  EXPECT_EQ(message_of(dir.path(), errc::bad_input, [&] { load_model_config(dir.path()); }),
            "cannot read DIR/config.json: No such file or directory");
}

} // namespace
} // namespace troupe
