#include "model/config.hpp"
#include "model/weights/convert.hpp"
#include "model/weights/export.hpp"
#include "model/weights/half.hpp"
#include "model/weights/json.hpp"
#include "model/weights/safetensors.hpp"
#include "model/weights/test_support.hpp"

namespace troupe {
namespace {

namespace fs = std::filesystem;
using test::message_of;
using test::reference;
using test::scratch;

nlohmann::json json_of(const fs::path& file) { return parse_json(read_file(file), file.string()); }

/// The file with one text in place of another of the same length: a key renamed, a value changed.
std::string patched(std::string bytes, std::string_view from, std::string_view to) {
  const auto at = bytes.find(from);
  EXPECT_NE(at, std::string::npos) << from;
  EXPECT_EQ(from.size(), to.size()) << from;
  return bytes.replace(at, from.size(), to);
}

std::string value_patched(std::string bytes, const std::string& key, std::uint32_t value) {
  const auto at = bytes.find(key) + key.size() + 4;
  std::memcpy(bytes.data() + at, &value, sizeof value);
  return bytes;
}

/// The same for a string value: `length` is the old one's.
std::string value_patched(std::string bytes, const std::string& key, std::size_t length, std::string_view value) {
  EXPECT_EQ(length, value.size());
  return bytes.replace(bytes.find(key) + key.size() + 12, length, value);
}

TEST(convert_gguf, gives_the_tensors_that_the_file_was_made_from) {
  const scratch dir;
  const auto done = convert_gguf(reference("llama.gguf"), dir / "out", dtype::f32);
  const safetensors_reader got(dir / "out"), wanted(reference("llama.safetensors"));
  EXPECT_EQ(done.tensors, wanted.tensors().size());
  ASSERT_EQ(got.tensors().size(), wanted.tensors().size());
  std::uint64_t parameters = 0;
  for (const auto& [name, info] : wanted.tensors()) {
    const auto* found = got.find(name);
    ASSERT_NE(found, nullptr) << name;
    EXPECT_EQ(found->shape, info.shape) << name;
    EXPECT_TRUE(std::equal(info.bytes.begin(), info.bytes.end(), found->bytes.begin(), found->bytes.end())) << name;
    parameters += info.n_bytes / 4;
  }
  EXPECT_EQ(done.parameters, parameters);
  const auto cfg = load_model_config(dir / "out");
  EXPECT_EQ(cfg.n_layers, 2);
  EXPECT_EQ(cfg.layer.n_kv_heads, 2);
  EXPECT_EQ(cfg.layer.rope.theta, 50000.0);
  EXPECT_EQ(cfg.layer.rms_norm_eps, 1e-5);
  EXPECT_EQ(cfg.max_position_embeddings, 128);
  EXPECT_FALSE(cfg.tie_word_embeddings);
  EXPECT_EQ(cfg.declared_dtype, dtype::f32);
  EXPECT_EQ(cfg.bos_token_id, 1);
  EXPECT_EQ(load_eos_token_ids(dir / "out", cfg), (std::vector<std::int32_t>{2, 0}));
}

TEST(convert_gguf, writes_bfloat16_rounded_once) {
  const scratch dir;
  convert_gguf(reference("llama.gguf"), dir / "out", dtype::bf16);
  const safetensors_reader got(dir / "out"), wanted(reference("llama.safetensors"));
  EXPECT_EQ(load_model_config(dir / "out").declared_dtype, dtype::bf16);
  for (const auto& [name, info] : wanted.tensors()) {
    const auto* found = got.find(name);
    ASSERT_EQ(found->type, dtype::bf16) << name;
    for (std::size_t i = 0; i < info.n_bytes / 4; ++i) {
      float exact;
      std::uint16_t rounded;
      std::memcpy(&exact, info.bytes.data() + i * 4, 4);
      std::memcpy(&rounded, found->bytes.data() + i * 2, 2);
      ASSERT_EQ(rounded, f32_to_bf16(exact)) << name << " " << i;
    }
  }
}

TEST(convert_gguf, writes_the_tokenizer) {
  const scratch dir;
  convert_gguf(reference("llama.gguf"), dir / "out", dtype::f32);
  const auto tokenizer = json_of(dir / "out/tokenizer.json"), config = json_of(dir / "out/tokenizer_config.json");
  EXPECT_EQ(tokenizer["pre_tokenizer"],
            nlohmann::json::parse(R"({"type":"Sequence","pretokenizers":[{"type":"Digits","individual_digits":true},
    {"type":"ByteLevel","add_prefix_space":false,"trim_offsets":true,"use_regex":true}]})"));
  EXPECT_EQ(tokenizer["decoder"]["type"], "ByteLevel");
  EXPECT_TRUE(tokenizer["normalizer"].is_null());
  EXPECT_TRUE(tokenizer["post_processor"].is_null());
  EXPECT_EQ(tokenizer["model"]["vocab"].size(), 264u);
  EXPECT_EQ(tokenizer["model"]["vocab"]["the"], 261);
  EXPECT_EQ(tokenizer["model"]["merges"], nlohmann::json::parse(R"([["t","h"],["th","e"],["Ġ","a"],["i","n"]])"));
  ASSERT_EQ(tokenizer["added_tokens"].size(), 4u);
  for (int id = 0; id < 4; ++id) {
    EXPECT_EQ(tokenizer["added_tokens"][id]["id"], id);
    EXPECT_EQ(tokenizer["added_tokens"][id]["special"], id < 3); // <tool> is the user's
  }
  EXPECT_EQ(config["tokenizer_class"], "PreTrainedTokenizerFast");
  EXPECT_EQ(config["bos_token"], "<|im_start|>");
  EXPECT_EQ(config["eos_token"], "<|im_end|>");
  EXPECT_EQ(config["pad_token"], "<|im_end|>");
  EXPECT_EQ(config["unk_token"], "<|endoftext|>");
  EXPECT_EQ(read_file(dir / "out/chat_template.jinja"), "{% for m in messages %}{{ m.content }}{% endfor %}");
}

TEST(convert_gguf, reads_a_split_file_from_its_first_part) {
  const scratch dir;
  convert_gguf(reference("split-00001-of-00003.gguf"), dir / "parts", dtype::f32);
  convert_gguf(reference("llama.gguf"), dir / "one", dtype::f32);
  for (const char* file : {"model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"})
    EXPECT_EQ(read_file(dir / "parts" / file), read_file(dir / "one" / file)) << file;
  const auto text = [&](const char* name) {
    return message_of(dir.path(), errc::bad_input, [&] { convert_gguf(dir / name, dir / "out", dtype::f32); });
  };
  for (const char* part : {"00001", "00002", "00003"})
    dir.put(std::string("a-") + part + "-of-00003.gguf", read_file(reference(std::string("split-") + part + "-of-00003.gguf")));
  EXPECT_EQ(text("a-00002-of-00003.gguf"), "DIR/a-00002-of-00003.gguf: is part 2 of 3; name the first, a-00001-of-00003.gguf");
  dir.put("b.gguf", read_file(reference("split-00001-of-00003.gguf")));
  EXPECT_EQ(text("b.gguf"), "DIR/b.gguf: is part 1 of 3; its name must end with -00001-of-00003.gguf for the others to be found");
  dir.put("a-00003-of-00003.gguf", read_file(reference("split-00002-of-00003.gguf")));
  EXPECT_EQ(text("a-00001-of-00003.gguf"), "DIR/a-00003-of-00003.gguf: is not part 3 of 3 by its split.no and split.count");
  fs::remove(dir / "a-00003-of-00003.gguf");
  EXPECT_NE(text("a-00001-of-00003.gguf").find("DIR/a-00003-of-00003.gguf"), std::string::npos);
  EXPECT_FALSE(fs::exists(dir / "out"));
}

// Biases and yarn; a window; biases without rows turned; head norms and yarn with every number given.
TEST(convert_gguf, gives_the_other_families) {
  for (const std::string name : {"biases", "mistral", "qwen2", "qwen3"}) {
    const scratch dir;
    convert_gguf(reference(name + ".gguf"), dir / "out", dtype::f32);
    const fs::path source = reference("../data/family-" + name);
    const safetensors_reader got(dir / "out"), wanted(source);
    EXPECT_EQ(got.tensors().size(), wanted.tensors().size()) << name;
    for (const auto& [tensor, info] : wanted.tensors()) {
      const auto* found = got.find(tensor);
      ASSERT_NE(found, nullptr) << name << " " << tensor;
      ASSERT_EQ(found->shape, info.shape) << name << " " << tensor;
      EXPECT_TRUE(std::equal(info.bytes.begin(), info.bytes.end(), found->bytes.begin(), found->bytes.end())) << name << " " << tensor;
    }
    const auto a = load_model_config(dir / "out"), b = load_model_config(source);
    EXPECT_EQ(a.architecture, b.architecture);
    EXPECT_EQ(a.layer.head_dim, b.layer.head_dim) << name;
    EXPECT_EQ(a.layer.window, name == "qwen2" ? 0 : b.layer.window) << name; // such files keep no window for Qwen2
    const auto &r = a.layer.rope, &s = b.layer.rope;
    EXPECT_TRUE(r.kind == s.kind && r.theta == s.theta && r.factor == s.factor && r.beta_fast == s.beta_fast &&
                r.attention_factor == s.attention_factor &&
                (r.kind != rope_kind::yarn || r.original_max_position == s.original_max_position))
        << name;
  }
}

TEST(convert_gguf, refuses_by_name_and_leaves_nothing) {
  const auto good = read_file(reference("llama.gguf"));
  struct row {
    const char* name;
    std::string bytes;
    const char* message;
    errc code = errc::bad_input;
  };
  const row rows[] = {
      {"architecture", value_patched(good, "general.architecture", 5, "mamba"),
       "DIR/x.gguf: general.architecture = \"mamba\": this version knows llama, qwen2, qwen3", errc::unsupported},
      {"pre", patched(good, "smollm", "falcon"),
       "DIR/x.gguf: tokenizer.ggml.pre = \"falcon\": this version knows smollm, gpt-2, llama-bpe, llama-v3, llama3, qwen2, tekken",
       errc::unsupported},
      {"no_pre", patched(good, "tokenizer.ggml.pre", "tokenizer.ggml.prE"),
       "DIR/x.gguf: key \"tokenizer.ggml.pre\" is missing: how text is split into words is not known"},
      {"model", patched(good, "gpt2", "bert"),
       "DIR/x.gguf: tokenizer.ggml.model = \"bert\": this version knows gpt2 (byte-level BPE) and llama (SentencePiece's BPE)",
       errc::unsupported},
      {"missing", patched(good, "blk.1.attn_q.weight", "blk.1.attn_x.weight"), "DIR/x.gguf: tensor \"blk.1.attn_q.weight\" is missing"},
      {"shape", value_patched(good, "llama.feed_forward_length", 16),
       "DIR/x.gguf: tensor \"blk.0.ffn_gate.weight\" has shape [24,16], the model needs [16,16]"},
      {"layers", value_patched(good, "llama.block_count", 1),
       "DIR/x.gguf: tensor \"blk.1.attn_k.weight\" has no place in the model: this version knows weights without adapters or experts",
       errc::unsupported},
      {"layers_0", value_patched(good, "llama.block_count", 0), "DIR/x.gguf: llama.block_count = 0 with 21 tensors"},
      {"heads", value_patched(good, "llama.attention.head_count_kv", 3),
       "DIR/x.gguf (as config.json): num_key_value_heads: 3 does not divide num_attention_heads = 4"},
      {"heads_0", value_patched(good, "llama.attention.head_count", 0), "DIR/x.gguf: llama.attention.head_count = 0"},
      {"theta_nan", value_patched(good, "llama.rope.freq_base", 0x7fc00000), "DIR/x.gguf: key \"llama.rope.freq_base\" is not finite"},
      {"eos", value_patched(good, "tokenizer.ggml.eos_token_id", 264),
       "DIR/x.gguf: tokenizer.ggml.eos_token_id = 264, but there are 264 tokens"},
      {"merge", patched(good, "th e", "tx e"), "DIR/x.gguf: tokenizer.ggml.merges: entry 1, \"tx e\": \"tx\" is not a token"},
      {"merge_one", patched(good, "th e", "the_"), "DIR/x.gguf: tokenizer.ggml.merges: entry 1, \"the_\", is not two parts"},
      {"token_twice", patched(good, std::string("\1\0\0\0\0\0\0\0b", 9), std::string("\1\0\0\0\0\0\0\0a", 9)),
       "DIR/x.gguf: tokenizer.ggml.tokens: \"a\" is both token 101 and 102"},
      {"token_utf8", patched(good, "<tool>", "<tool\xff"), "DIR/x.gguf: tokenizer.ggml.tokens: token 3 is not UTF-8"},
  };
  for (const auto& [name, bytes, message, code] : rows) {
    const scratch dir;
    const auto file = dir.put("x.gguf", bytes);
    const auto text = message_of(dir.path(), code, [&] { convert_gguf(file, dir / "out", dtype::f32); });
    EXPECT_EQ(text, message) << name;
    EXPECT_EQ(std::distance(fs::directory_iterator(dir.path()), fs::directory_iterator()), 1) << name << " left something";
  }
}

TEST(convert_gguf, refuses_values_that_are_not_finite) {
  auto bytes = read_file(reference("llama.gguf"));
  const float nan = std::numeric_limits<float>::quiet_NaN();
  std::memcpy(bytes.data() + bytes.size() - 4, &nan, 4); // the last tensor: output.weight
  const scratch dir;
  const auto file = dir.put("x.gguf", bytes);
  EXPECT_EQ(message_of(dir.path(), errc::bad_input, [&] { convert_gguf(file, dir / "out", dtype::f32); }),
            "DIR/x.gguf: tensor \"output.weight\" holds values that are not finite");
  EXPECT_FALSE(fs::exists(dir / "out"));
}

TEST(convert_gguf, does_not_touch_a_directory_that_holds_something) {
  const scratch dir;
  dir.put("out/mine", "x");
  EXPECT_NE(message_of(dir.path(), errc::bad_input, [&] { convert_gguf(reference("llama.gguf"), dir / "out", dtype::f32); }), "");
  EXPECT_EQ(read_file(dir / "out/mine"), "x");
  EXPECT_EQ(std::distance(fs::directory_iterator(dir / "out"), fs::directory_iterator()), 1);
}

/// A checkpoint as the learner leaves it: a model with optimizer and run state beside.
void put_checkpoint(const scratch& dir, const std::string& name) {
  convert_gguf(reference("llama.gguf"), dir / name, dtype::f32);
  dir.put(name + "/optimizer.safetensors", "x");
  dir.put(name + "/learner.json", "{}");
}

TEST(convert_hf, takes_a_run_s_newest_whole_checkpoint) {
  const scratch dir;
  fs::create_directories(dir / "run/checkpoints");
  put_checkpoint(dir, "run/checkpoints/step-000009");
  put_checkpoint(dir, "run/checkpoints/step-000010");
  put_checkpoint(dir, "run/checkpoints/step-000011");
  fs::resize_file(dir / "run/checkpoints/step-000011/model.safetensors", 1000);
  fs::create_directories(dir / "run/checkpoints/notes");
  const auto done = convert_hf(dir / "run", dir / "out", dtype::bf16);
  EXPECT_EQ(done.source, dir / "run/checkpoints/step-000010");
  ASSERT_EQ(done.passed_over.size(), 1u);
  EXPECT_NE(done.passed_over[0].find("step-000011"), std::string::npos);
  EXPECT_FALSE(fs::exists(dir / "out/optimizer.safetensors"));
  EXPECT_FALSE(fs::exists(dir / "out/learner.json"));
  const auto source = dir / "run/checkpoints/step-000010";
  for (const auto* name : {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"})
    EXPECT_EQ(read_file(dir / "out" / name), read_file(source / name)) << name;
  EXPECT_EQ(load_model_config(dir / "out").declared_dtype, dtype::bf16);
  const safetensors_reader got(dir / "out"), masters(source);
  ASSERT_EQ(got.tensors().size(), masters.tensors().size());
  for (const auto& [name, info] : masters.tensors()) {
    std::vector<std::byte> rounded(info.n_bytes / 2);
    convert_elements(dtype::f32, info.bytes.data(), dtype::bf16, rounded.data(), info.n_bytes / 4);
    EXPECT_TRUE(std::equal(rounded.begin(), rounded.end(), got.find(name)->bytes.begin(), got.find(name)->bytes.end())) << name;
  }
}

TEST(convert_hf, takes_one_checkpoint_and_keeps_the_masters) {
  const scratch dir;
  put_checkpoint(dir, "step-000040");
  const auto done = convert_hf(dir / "step-000040", dir / "out", dtype::f32);
  EXPECT_EQ(done.source, dir / "step-000040");
  const safetensors_reader got(dir / "out"), masters(dir / "step-000040");
  for (const auto& [name, info] : masters.tensors())
    EXPECT_TRUE(std::equal(info.bytes.begin(), info.bytes.end(), got.find(name)->bytes.begin(), got.find(name)->bytes.end())) << name;
}

TEST(convert_hf, says_what_a_source_lacks) {
  const scratch dir;
  fs::create_directories(dir / "run/checkpoints/step-000001");
  fs::create_directories(dir / "empty");
  const auto message = [&](const char* source) {
    return message_of(dir.path(), errc::bad_input, [&] { convert_hf(dir / source, dir / "out", dtype::f32); });
  };
  EXPECT_EQ(message("none"), "DIR/none does not exist; a run's or a checkpoint's directory is wanted");
  EXPECT_EQ(message("empty"), "cannot read DIR/empty/config.json: No such file or directory");
  EXPECT_EQ(message("run"),
            "DIR/run/checkpoints holds no whole checkpoint (step-NNNNNN); passed over DIR/run/checkpoints/step-000001: cannot read "
            "DIR/run/checkpoints/step-000001/config.json: No such file or directory");
  EXPECT_FALSE(fs::exists(dir / "out"));
}

} // namespace
} // namespace troupe
