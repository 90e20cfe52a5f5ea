#include "cli/program.hpp"
#include "core/files.hpp"
#include "tests/run/command_fixture.hpp"
#include <algorithm>
#include <cstring>
#include <limits>
#include <tuple>

namespace troupe {
namespace {

/// A command line that must be refused, and what the one line about it holds. OUT: the result's place.
struct refused {
  std::string name;
  words arguments, parts;
};

struct refusals : command_files {
  /// A copy of the tiny model with something changed.
  template <class Change>
  static void model(const std::string& name, Change change) {
    if (fs::exists(dir() / name))
      return;
    fs::copy(dir() / "model", dir() / name);
    change(dir() / name);
  }
  template <class Change>
  static void change_json(const fs::path& file, Change change) {
    json all = json::parse(file_bytes(file));
    change(all);
    write_file(file, all.dump());
  }
  /// change(header, data) of a model's safetensors file.
  template <class Change>
  static void change_weights(const fs::path& model_dir, Change change) {
    const auto file = model_dir / "model.safetensors";
    std::string bytes = file_bytes(file);
    std::uint64_t length = 0;
    std::memcpy(&length, bytes.data(), 8);
    json header = json::parse(bytes.substr(8, length));
    std::string data = bytes.substr(8 + length);
    change(header, data);
    std::string text = header.dump();
    text.resize((text.size() + 7) / 8 * 8, ' ');
    length = text.size();
    write_file(file, std::string(reinterpret_cast<const char*>(&length), 8) + text + data);
  }

  /// Runs a command that must be refused: exit 2, one line, and the result's place as it was: absent, or with what it held.
  static void expect_refusal(const refused& c) {
    for (const bool is_there : {false, true}) {
      SCOPED_TRACE(c.name + (is_there ? ", over an older result" : ""));
      const auto place = dir() / "results";
      fs::remove_all(place);
      fs::create_directory(place);
      if (is_there)
        write_file(place / "out", "older\n");
      words arguments = c.arguments;
      std::replace(arguments.begin(), arguments.end(), std::string("OUT"), (place / "out").string());
      if (is_there && arguments == c.arguments)
        return; // it writes no file
      surroundings around;
      around.instead = run_program; // the program itself, hundreds of times
      auto p = start(arguments, around);
      EXPECT_EQ(p.wait(deadline), 2) << p.err();
      const std::string err = p.err();
      EXPECT_EQ(err.find("troupe: "), 0u) << err;
      EXPECT_EQ(n_lines(err), 1u) << err;
      for (const auto& part : c.parts)
        EXPECT_NE(err.find(placed(part)), std::string::npos) << "no \"" << part << "\" in: " << err;
      EXPECT_EQ(p.out(), "");
      EXPECT_EQ(std::distance(fs::directory_iterator(place), fs::directory_iterator()), is_there ? 1 : 0);
      EXPECT_EQ(file_bytes(place / "out"), is_there ? "older\n" : "");
    }
  }
  static void expect_refusals(const std::vector<refused>& cases) {
    for (const auto& c : cases)
      expect_refusal(c);
  }
};

const words generate_it = {"generate", "--threads", "1", "--model", "DIR/model", "--output", "OUT", "--input"};
const words score_it = {"score", "--threads", "1", "--model", "DIR/model", "--output", "OUT", "--input"};
const words tokenize_it = {"tokenize", "--model", "DIR/model", "--output", "OUT", "--input"};

// ---- wrong usage ----

TEST_F(refusals, WrongUsageIsNamed) {
  put("one.jsonl", "{\"prompt\": \"a\"}\n");
  const words good = generate_it + words{"DIR/one.jsonl"};
  expect_refusals({
      {"nothing", {}, {"no command", "train", "tokenize"}},
      {"unknown", {"trian"}, {"unknown command \"trian\"", "nearest: train"}},
      {"later", {"plan", "x"}, {"plan: this version cannot do it"}},
      {"no conversion", {"convert"}, {"gguf, hf", "convert --help"}},
      {"unknown conversion", {"convert", "onnx", "a", "b"}, {"onnx", "gguf, hf"}},
      {"conversion's argument", {"convert", "gguf", "a"}, {"DIR"}},
      {"no model", {"generate", "--input", "a", "--output", "OUT"}, {"--model"}},
      {"no input", {"score", "--model", "DIR/model", "--output", "OUT"}, {"--input"}},
      {"no output", {"tokenize", "--model", "DIR/model", "--input", "a"}, {"--output"}},
      {"unknown option", good + words{"--beams", "4"}, {"--beams"}},
      {"option of another command", {"check", "DIR/run.toml", "--n", "4"}, {"--n"}},
      {"newline in an argument", {"generate", "--model", "a\nb", "--input", "a", "--output", "OUT"}, {"a b"}},
      {"n", good + words{"--n", "0"}, {"--n"}},
      {"n in words", good + words{"--n", "two"}, {"--n", "two"}},
      {"temperature", good + words{"--temperature", "-1"}, {"temperature", "-1"}},
      {"temperature nan", good + words{"--temperature", "nan"}, {"temperature"}},
      {"top-p", good + words{"--top-p", "0"}, {"top_p", "0"}},
      {"top-p over", good + words{"--top-p", "1.5"}, {"top_p", "1.5"}},
      {"top-k", good + words{"--top-k", "-2"}, {"top_k", "-2"}},
      {"min-p", good + words{"--min-p", "2"}, {"min_p", "2"}},
      {"max-tokens", good + words{"--max-tokens", "0"}, {"max_tokens", "0"}},
      {"max-num-seqs", good + words{"--max-num-seqs", "0"}, {"--max-num-seqs"}},
      {"stop id", good + words{"--stop-token-ids", "9999"}, {"--stop-token-ids 9999", "271"}},
      {"empty stop", good + words{"--stop", ""}, {"stop"}},
      {"seed", good + words{"--seed", "-1"}, {"--seed"}},
      {"dtype", good + words{"--dtype", "float16"}, {"--dtype float16", "bfloat16"}},
      {"isa", good + words{"--isa", "avx9"}, {"avx9", "avx2"}},
      {"device", good + words{"--device", "tpu"}, {"--device tpu"}},
      {"no such device", good + words{"--device", "cuda:0"}, {"--device cuda:0", "cpu"}},
      {"threads", good + words{"--threads", "-1"}, {"--threads"}},
      {"value head", score_it + words{"DIR/one.jsonl", "--value"}, {"--value", "value head"}},
      {"train without a file", {"train"}, {"config"}},
      {"worker without an address", {"worker"}, {"--join"}},
      {"worker's address", {"worker", "--join", "here"}, {"--join", "here", "HOST:PORT"}},
      {"worker's port", {"worker", "--join", "127.0.0.1:70000"}, {"--join", "70000"}},
      {"worker off loopback", {"worker", "--join", "10.0.0.1:5000"}, {"--join", "certificates"}},
      {"worker of no run", {"worker", "--join", "127.0.0.1:9"}, {"port 9"}},
  });
}

// ---- files that are not there, or cannot be written ----

TEST_F(refusals, MissingFilesAreNamed) {
  put("one.jsonl", "{\"prompt\": \"a\"}\n");
  put("ids.jsonl", "{\"input_ids\": [1, 2]}\n");
  fs::create_directories(dir() / "empty-dir");
  const std::string long_name(300, 'x');
  expect_refusals({
      {"generate's input", generate_it + words{"DIR/none.jsonl"}, {"DIR/none.jsonl", "No such file"}},
      {"score's input", score_it + words{"DIR/none.jsonl"}, {"DIR/none.jsonl", "No such file"}},
      {"tokenize's input", tokenize_it + words{"DIR/none.jsonl"}, {"DIR/none.jsonl", "No such file"}},
      {"input that is a directory", generate_it + words{"DIR/empty-dir"}, {"DIR/empty-dir", "directory"}},
      {"long name", generate_it + words{long_name}, {"File name too long"}},
      {"model", {"generate", "--model", "DIR/none", "--input", "DIR/one.jsonl", "--output", "OUT"}, {"DIR/none"}},
      {"empty model", {"score", "--model", "DIR/empty-dir", "--input", "DIR/ids.jsonl", "--output", "OUT"}, {"DIR/empty-dir/config.json"}},
      {"empty tokenizer", {"tokenize", "--model", "DIR/empty-dir", "--input", "DIR/one.jsonl", "--output", "OUT"}, {"tokenizer.json"}},
      {"model with a long name", {"score", "--model", long_name, "--input", "DIR/ids.jsonl", "--output", "OUT"}, {"too long"}},
      {"output's directory",
       {"generate", "--model", "DIR/model", "--input", "DIR/one.jsonl", "--output", "DIR/none/out"},
       {"--output DIR/none/out", "no directory DIR/none"}},
      {"output that is a directory",
       {"score", "--model", "DIR/model", "--input", "DIR/ids.jsonl", "--output", "DIR/empty-dir"},
       {"--output DIR/empty-dir", "is a directory"}},
      {"output below a file",
       {"tokenize", "--model", "DIR/model", "--input", "DIR/one.jsonl", "--output", "DIR/one.jsonl/out"},
       {"--output DIR/one.jsonl/out"}},
      {"configuration", {"check", "DIR/none.toml"}, {"DIR/none.toml", "No such file"}},
      {"training's configuration", {"train", "DIR/none.toml", "--set", "run.dir=OUT"}, {"DIR/none.toml"}},
      {"gguf", {"convert", "gguf", "DIR/none.gguf", "DIR/new"}, {"DIR/none.gguf", "No such file"}},
      {"run", {"convert", "hf", "DIR/none", "DIR/new"}, {"DIR/none does not exist"}},
      {"run without a checkpoint", {"convert", "hf", "DIR/empty-dir", "DIR/new"}, {"DIR/empty-dir/config.json"}},
  });
  EXPECT_FALSE(fs::exists(dir() / "new"));
  EXPECT_TRUE(fs::is_empty(dir() / "empty-dir"));
}

// ---- wrong lines ----

TEST_F(refusals, WrongLinesAreNamedWithFileAndLine) {
  const std::string good = "{\"prompt\": \"a\"}\n", good_ids = "{\"input_ids\": [1, 2]}\n", good_text = "{\"text\": \"a\"}\n";
  struct bad_line {
    const words& command;
    std::string first, text;
    words parts;
  };
  const std::vector<bad_line> lines = {
      {generate_it, good, "not json", {"not JSON"}},
      {generate_it, good, "{\"prompt\": \"a\"", {"not JSON"}},
      {generate_it, good, "[1]", {"object", "array"}},
      {generate_it, good, "{}", {"exactly one of", "none"}},
      {generate_it, good, R"({"prompt": "a", "input_ids": [1]})", {"exactly one of", "prompt and input_ids"}},
      {generate_it, good, R"({"prompt": "a", "sead": 4})", {"unknown key \"sead\"", "seed"}},
      {generate_it, good, R"({"prompt": "a", "temperature": "0"})", {"\"temperature\" must be a number", "\"0\""}},
      {generate_it, good, R"({"prompt": "a", "logit_bias": {"x": 1}})", {"logit_bias", "ID:BIAS"}},
      {generate_it, good, R"({"prompt": 7})", {"\"prompt\" must be a string"}},
      {generate_it, good, R"({"prompt": ""})", {"no token"}},
      {generate_it, good, R"({"prompt": "\ud800"})", {"not JSON"}},
      {generate_it, good, R"({"prompt": "a", "seed": -1})", {"\"seed\"", "-1"}},
      {generate_it, good, R"({"prompt": "a", "seed": 1.5})", {"\"seed\"", "1.5"}},
      {generate_it, good, R"({"messages": []})", {"\"messages\"", "empty"}},
      {generate_it, good, R"({"messages": [{"role": "user"}]})", {"messages[0]", "content"}},
      {generate_it, good, R"({"messages": [{"role": "user", "content": "a"}]})", {"chat template"}},
      {generate_it, good, R"({"input_ids": []})", {"no token"}},
      {generate_it, good, R"({"input_ids": [1, 272]})", {"input_ids[1] is 272", "271"}},
      {generate_it, good, R"({"input_ids": [-1]})", {"input_ids[0] is -1"}},
      {generate_it, good, R"({"input_ids": [1.0]})", {"input_ids[0] is 1.0"}},
      {generate_it, good, "{\"prompt\": \"" + std::string(256, 'x') + "\"}", {"256 tokens", "max_position_embeddings = 256"}},
      {score_it, good_ids, "{", {"not JSON"}},
      {score_it, good_ids, R"({"prompt": "a"})", {"unknown key \"prompt\"", "input_ids"}},
      {score_it, good_ids, R"({"from": 1})", {"no key \"input_ids\""}},
      {score_it, good_ids, R"({"input_ids": [1, 2], "form": 1})", {"unknown key \"form\"", "from"}},
      {score_it, good_ids, R"({"input_ids": [1, 2], "from": 0})", {"\"from\" is 0", "from 1 to the number of ids, 2"}},
      {score_it, good_ids, R"({"input_ids": [1, 2], "from": 3})", {"\"from\" is 3"}},
      {score_it, good_ids, R"({"input_ids": [1, 2], "from": "1"})", {"\"from\""}},
      {score_it, good_ids, R"({"input_ids": [272]})", {"input_ids[0] is 272"}},
      {score_it, good_ids, R"({"input_ids": []})", {"empty"}},
      {score_it,
       good_ids,
       "{\"input_ids\": [1" +
           [] {
             std::string s;
             for (int i = 0; i < 256; ++i)
               s += ", 1";
             return s;
           }() +
           "]}",
       {"257 tokens", "max_position_embeddings is 256"}},
      {tokenize_it, good_text, "{", {"not JSON"}},
      {tokenize_it, good_text, "\"a\"", {"object", "string"}},
      {tokenize_it, good_text, R"({"texts": "a"})", {"no key \"text\""}},
      {tokenize_it, good_text, R"({"text": "a", "special": true})", {"unknown key \"special\"", "add_special_tokens"}},
      {tokenize_it, good_text, R"({"text": 1})", {"\"text\" must be a string"}},
      {tokenize_it, good_text, R"({"text": "a", "add_special_tokens": 1})", {"\"add_special_tokens\" must be a boolean"}},
      {tokenize_it, good_text, R"({"text": "\udc00 alone"})", {"not JSON"}},
      {tokenize_it, good_text, "{\"text\": \"\xff\"}", {"not JSON"}},
  };
  for (const auto& line : lines) {
    put("lines.jsonl", line.first + "\n" + line.text + "\n" + line.first);
    expect_refusal({line.text.substr(0, 80), line.command + words{"DIR/lines.jsonl"}, words{"DIR/lines.jsonl:3: "} + line.parts});
  }
  put("lines.jsonl", "{\"ids\": [1]}\n{\"ids\": [-1]}\n");
  expect_refusal({"decode", tokenize_it + words{"DIR/lines.jsonl", "--decode"}, {"DIR/lines.jsonl:2: ", "ids[0] is -1"}});
  put("empty.jsonl", "\n\n");
  for (const auto& command : {generate_it, score_it, tokenize_it})
    expect_refusal({"no line", command + words{"DIR/empty.jsonl"}, {"DIR/empty.jsonl", "no line"}});
}

// ---- wrong models ----

void make_wrong_models() {
  using t = refusals;
  const auto without = [](const char* file) { return [file](const fs::path& m) { fs::remove(m / file); }; };
  const auto config_with = [](const char* key, json value) {
    return [=](const fs::path& m) { t::change_json(m / "config.json", [&](json& c) { c[key] = value; }); };
  };
  t::model("no-config", without("config.json"));
  t::model("no-weights", without("model.safetensors"));
  t::model("no-tokenizer", without("tokenizer.json"));
  t::model("other-architecture", config_with("architectures", {"GPTNeoXForCausalLM"}));
  t::model("other-width", config_with("hidden_size", 128));
  t::model("more-layers", config_with("num_hidden_layers", 4));
  t::model("fewer-layers", config_with("num_hidden_layers", 2));
  t::model("broken-config", [](const fs::path& m) { write_file(m / "config.json", "{\"architectures\": "); });
  t::model("cut-weights",
           [](const fs::path& m) { fs::resize_file(m / "model.safetensors", fs::file_size(m / "model.safetensors") - 100); });
  t::model("cut-header", [](const fs::path& m) { fs::resize_file(m / "model.safetensors", 20); });
  t::model("lying-length", [](const fs::path& m) {
    std::fstream f(m / "model.safetensors", std::ios::in | std::ios::out | std::ios::binary);
    const std::uint64_t length = std::uint64_t{1} << 62;
    f.write(reinterpret_cast<const char*>(&length), 8);
  });
  t::model("lying-offsets", [](const fs::path& m) {
    t::change_weights(m, [](json& header, std::string&) {
      auto& offsets = header["model.norm.weight"]["data_offsets"];
      offsets = {offsets[0].get<std::uint64_t>() + (std::uint64_t{1} << 40), offsets[1].get<std::uint64_t>() + (std::uint64_t{1} << 40)};
    });
  });
  t::model("lying-shape", [](const fs::path& m) {
    t::change_weights(m, [](json& header, std::string&) { header["model.norm.weight"]["shape"] = {std::int64_t{1} << 40}; });
  });
  t::model("nan", [](const fs::path& m) {
    t::change_weights(m, [](json& header, std::string& data) {
      const float nan = std::numeric_limits<float>::quiet_NaN();
      const auto at = header["model.layers.1.mlp.up_proj.weight"]["data_offsets"][0].get<std::size_t>();
      std::memcpy(data.data() + at + 40, &nan, 4);
    });
  });
  t::model("no-json-tokenizer", [](const fs::path& m) { write_file(m / "tokenizer.json", "{\"model\": "); });
  t::model("unigram", [](const fs::path& m) {
    t::change_json(m / "tokenizer.json", [](json& j) { j["model"] = {{"type", "Unigram"}, {"vocab", json::array()}}; });
  });
  t::model("precompiled", [](const fs::path& m) {
    t::change_json(m / "tokenizer.json", [](json& j) { j["normalizer"] = {{"type", "Precompiled"}, {"precompiled_charsmap", "AAAA"}}; });
  });
}

struct wrong_model {
  std::string name;
  words parts;
  bool of_values = false; // seen only where weights are read
};

const std::vector<wrong_model> wrong_weights = {
    {"no-config", {"no-config/config.json", "No such file"}},
    {"broken-config", {"broken-config/config.json"}},
    {"other-architecture", {"other-architecture/config.json", "GPTNeoXForCausalLM", "LlamaForCausalLM"}},
    {"no-weights", {"no-weights", "model.safetensors"}},
    {"other-width", {"other-width", "weight", "[272, 64]", "[272, 128]"}},
    {"more-layers", {"more-layers", "model.layers.3."}},
    {"fewer-layers", {"fewer-layers", "model.layers.2."}},
    {"cut-weights", {"cut-weights/model.safetensors"}},
    {"cut-header", {"cut-header/model.safetensors"}},
    {"lying-length", {"lying-length/model.safetensors", "header"}},
    {"lying-offsets", {"lying-offsets/model.safetensors", "model.norm.weight"}},
    {"lying-shape", {"lying-shape/model.safetensors", "model.norm.weight"}},
    {"nan", {"nan", "model.layers.1.mlp.up_proj.weight", "finite"}, true},
};
const std::vector<wrong_model> wrong_tokenizers = {
    {"no-tokenizer", {"no-tokenizer/tokenizer.json", "No such file"}},
    {"no-json-tokenizer", {"no-json-tokenizer/tokenizer.json"}},
    {"unigram", {"unigram/tokenizer.json", "Unigram"}},
    {"precompiled", {"precompiled/tokenizer.json", "Precompiled"}},
};

TEST_F(refusals, WrongModelsAreNamed) {
  make_wrong_models();
  put("one.jsonl", "{\"prompt\": \"a\"}\n");
  put("ids.jsonl", "{\"input_ids\": [1, 2]}\n");
  put("text.jsonl", "{\"text\": \"a\"}\n");
  for (const auto& m : wrong_weights) {
    const std::string model_dir = "DIR/" + m.name, set = "model.path=" + model_dir;
    expect_refusals({
        {"score " + m.name, {"score", "--threads", "1", "--model", model_dir, "--input", "DIR/ids.jsonl", "--output", "OUT"}, m.parts},
        {"train " + m.name, {"train", "DIR/run.toml", "--threads", "1", "--set", set, "--set", "run.dir=DIR/results/run"}, m.parts},
    });
    if (!m.of_values)
      expect_refusal({"check " + m.name, {"check", "DIR/run.toml", "--set", set}, m.parts});
  }
  for (const auto& m : wrong_tokenizers) {
    const std::string model_dir = "DIR/" + m.name, set = "model.path=" + model_dir;
    expect_refusals({
        {"tokenize " + m.name, {"tokenize", "--model", model_dir, "--input", "DIR/text.jsonl", "--output", "OUT"}, m.parts},
        {"generate " + m.name, {"generate", "--model", model_dir, "--input", "DIR/one.jsonl", "--output", "OUT"}, m.parts},
        {"check " + m.name, {"check", "DIR/run.toml", "--set", set}, m.parts},
    });
  }
  expect_refusals({
      {"eval", {"eval", "DIR/run.toml", "--set", "model.path=DIR/nan"}, {"model.layers.1.mlp.up_proj.weight", "finite"}},
      {"generate", {"generate", "--model", "DIR/nan", "--input", "DIR/one.jsonl", "--output", "OUT"}, {"up_proj", "finite"}},
      {"convert hf", {"convert", "hf", "DIR/cut-weights", "DIR/results/new"}, {"DIR/cut-weights/model.safetensors"}},
      {"convert hf of another architecture", {"convert", "hf", "DIR/other-architecture", "DIR/results/new"}, {"GPTNeoXForCausalLM"}},
  });
}

TEST_F(refusals, WrongGgufFilesAreNamedAndLeaveNothing) {
  const std::string whole = file_bytes(fs::path(TROUPE_SOURCE_DIR) / "tests/reference/weights/llama.gguf");
  ASSERT_GT(whole.size(), 1000u);
  put("whole.gguf", whole);
  put("cut.gguf", whole.substr(0, whole.size() - 100));
  put("cut-header.gguf", whole.substr(0, 100));
  put("no.gguf", "safetensors");
  put("empty.gguf", "");
  fs::create_directories(dir() / "full-dir");
  put("full-dir/file", "x");
  expect_refusals({
      {"cut", {"convert", "gguf", "DIR/cut.gguf", "DIR/results/new"}, {"DIR/cut.gguf"}},
      {"cut header", {"convert", "gguf", "DIR/cut-header.gguf", "DIR/results/new"}, {"DIR/cut-header.gguf", "tensor count 21"}},
      {"no gguf", {"convert", "gguf", "DIR/no.gguf", "DIR/results/new"}, {"DIR/no.gguf", "not a GGUF file"}},
      {"empty", {"convert", "gguf", "DIR/empty.gguf", "DIR/results/new"}, {"DIR/empty.gguf", "empty"}},
      {"used target", {"convert", "gguf", "DIR/whole.gguf", "DIR/full-dir"}, {"DIR/full-dir", "must not exist or be empty"}},
      {"target is a file", {"convert", "gguf", "DIR/whole.gguf", "DIR/no.gguf"}, {"must not exist or be empty"}},
      {"dtype", {"convert", "gguf", "DIR/whole.gguf", "DIR/results/new", "--dtype", "int8"}, {"--dtype int8", "bfloat16"}},
      {"used target of hf", {"convert", "hf", "DIR/model", "DIR/full-dir"}, {"DIR/full-dir", "must not exist or be empty"}},
  });
  EXPECT_EQ(std::distance(fs::directory_iterator(dir() / "full-dir"), fs::directory_iterator()), 1);
}

TEST_F(refusals, WrongSourcesOfOtherConversionsAreNamedAndLeaveNothing) {
  make_wrong_models();
  put("broken.json", "{");
  put("no-paths.json", R"({"architectures": ["CustomSplitLLamaForCausalLM"], "num_layers_8": 1, "num_layers_70": 1})");
  put("no-model.json",
      placed(R"({"architectures": ["CustomSplitLLamaForCausalLM"], "model_type": "custom_split_llama", "path8b": "DIR/none",
    "path70b": "DIR/model", "num_layers_8": 1, "num_layers_70": 1, "vocab_size": 272, "mlp": false})"));
  const std::string target = "DIR/results/new";
  expect_refusals({
      {"split of nothing", {"convert", "split", "DIR/none.json", target}, {"DIR/none.json", "No such file"}},
      {"split of no JSON", {"convert", "split", "DIR/broken.json", target}, {"DIR/broken.json"}},
      {"split without paths", {"convert", "split", "DIR/no-paths.json", target}, {"DIR/no-paths.json", "path8b"}},
      {"split without a model", {"convert", "split", "DIR/no-model.json", target}, {"DIR/none"}},
      {"split's seed", {"convert", "split", "DIR/no-model.json", target, "--seed", "-1"}, {"--seed"}},
      {"shard of nothing", {"convert", "shard", "DIR/none", target, "--tp", "2"}, {"DIR/none"}},
      {"shard in no parts", {"convert", "shard", "DIR/model", target, "--tp", "0"}, {"--tp"}},
      {"shard in parts that heads do not make", {"convert", "shard", "DIR/model", target, "--tp", "3"}, {"3"}},
      {"shard of cut weights", {"convert", "shard", "DIR/cut-weights", target, "--tp", "2"}, {"DIR/cut-weights/model.safetensors"}},
      {"join of nothing", {"convert", "join", "DIR/none", target}, {"DIR/none"}},
      {"join of a whole model", {"convert", "join", "DIR/model", target}, {"DIR/model"}},
  });
}

// ---- wrong configurations and data ----

const words train_it = {"train", "DIR/run.toml", "--threads", "1", "--set", "run.dir=DIR/results/run"};

TEST_F(refusals, WrongValuesAreNamedWithTheirKeys) {
  const std::vector<std::pair<words, words>> settings = {
      {{"rollout.nn=4"}, {"rollout.nn", "unknown key", "rollout.n"}},
      {{"rollout.n=0"}, {"rollout.n", "1"}},
      {{"rollout.n=many"}, {"rollout.n", "many"}},
      {{"rollout.n=1.5"}, {"rollout.n", "1.5"}},
      {{"rollout.n"}, {"rollout.n", "--set"}},
      {{"=4"}, {"--set"}},
      {{"run.total_epochs=1"}, {"run.total_epochs", "run.total_steps"}},
      {{"run.mode=asink"}, {"run.mode", "asink", "async"}},
      {{"reward.function=judge"}, {"reward.function", "judge", "exact_match"}},
      {{"data.train_batch_size=36"}, {"data.train_batch_size", "36", "34"}},
      {{"data.max_response_length=400"}, {"data.max_response_length", "max_position_embeddings = 256"}},
      {{"learner.ppo_mini_batch_size=3"}, {"learner.ppo_mini_batch_size", "3", "8"}},
      {{"model.trainable=[\"nothing.*\"]"}, {"model.trainable", "nothing.*"}},
      {{"model.path=DIR/none"}, {"model.path", "DIR/none"}},
      {{"weightsync.channel=nccl"}, {"weightsync.channel", "nccl"}},
      {{"weightsync.channel=zmq"}, {"weightsync.channel", "placement.processes"}},
      {{"placement.processes=true", "placement.listen=\"0.0.0.0:0\""}, {"placement.listen", "certificates"}},
      {{"placement.local_workers=-1"}, {"placement.local_workers"}},
      {{"run.resume=DIR/none"}, {"run.resume", "DIR/none"}},
      {{"run.dir=DIR/run.toml"}, {"run.dir", "DIR/run.toml", "not a directory"}},
      {{"learner.optim.lr=nan"}, {"learner.optim.lr"}},
  };
  for (const auto& [values, parts] : settings) {
    words set;
    for (const auto& v : values)
      set = set + words{"--set", v};
    expect_refusals(
        {{"train " + values.back(), train_it + set, parts}, {"check " + values.back(), words{"check", "DIR/run.toml"} + set, parts}});
  }
  expect_refusals({
      {"eval without rows", {"eval", "DIR/run.toml", "--set", "data.val_files=[]"}, {"data.val_files"}},
      {"device", train_it + words{"--device", "cuda"}, {"--device cuda"}},
      {"isa", train_it + words{"--isa", "avx9"}, {"avx9", "avx2"}},
  });
}

TEST_F(refusals, WrongConfigurationFilesAreNamedWithLineAndColumn) {
  const std::string good = file_bytes(world().config());
  const auto inserted = [&](const std::string& after, const std::string& line) {
    std::string text = good;
    text.insert(text.find(after) + after.size(), line);
    return text;
  };
  const std::vector<std::tuple<std::string, std::string, words>> files = {
      {"syntax", inserted("[run]\n", "name 3\n"), {":2:"}},
      {"duplicate", inserted("[run]\n", "seed = 4\n"), {"seed", ":4:"}},
      {"unknown key", inserted("[run]\n", "sead = 4\n"), {":2:1", "run.sead", "nearest known key: run.seed"}},
      {"unknown table", good + "[lerner]\nn = 1\n", {"lerner"}},
      {"another system's key", inserted("[rollout]\n", "num_generations = 4\n"), {":16:1", "rollout.n"}},
      {"wrong type", inserted("[run]\n", "test_freq_ = 1\n"), {":2:1", "run.test_freq"}},
      {"not UTF-8", "[run]\nname = \"\xff\"\n", {":2:"}},
      {"empty", "", {"model.path"}},
  };
  for (const auto& [name, text, parts] : files) {
    put("bad.toml", text);
    expect_refusals({{"check " + name, {"check", "DIR/bad.toml"}, words{"DIR/bad.toml"} + parts},
                     {"train " + name, {"train", "DIR/bad.toml", "--set", "run.dir=DIR/results/run"}, words{"DIR/bad.toml"} + parts}});
  }
}

TEST_F(refusals, WrongDataIsNamedWithFileAndLine) {
  const std::vector<std::pair<std::string, words>> lines = {
      {"{\"prompt\": ", {"not JSON"}},
      {"[]", {"object", "array"}},
      {R"({"answer": "1"})", {"no key \"prompt\""}},
      {R"({"prompt": "a"})", {"no key \"answer\""}},
      {R"({"prompt": 1, "answer": ""})", {"\"prompt\" must be a string or a list of messages"}},
      {R"({"prompt": "", "answer": ""})", {"no token"}},
      {R"({"prompt": "a", "answer": null})", {"\"answer\" is null"}},
      {R"({"prompt": "a", "answer": [1]})", {"\"answer\" must be"}},
      {R"({"prompt": "a", "answer": " 1"})", {"white space"}},
      {R"({"prompt": [{"role": "user", "content": "a"}], "answer": ""})", {"chat template"}},
      {R"({"prompt": "seventeen letters", "answer": ""})", {"17 tokens", "data.max_prompt_length is 16"}},
  };
  const std::string good = "{\"prompt\": \"a\", \"answer\": \"\"}\n";
  for (const auto& [line, parts] : lines) {
    put("bad.jsonl", good + "\n" + line + "\n" + good);
    const words all = words{"DIR/bad.jsonl:3: "} + parts;
    expect_refusals({
        {"train " + line, train_it + words{"--set", "data.train_files=[\"DIR/bad.jsonl\"]"}, all},
        {"check " + line, {"check", "DIR/run.toml", "--set", "data.val_files=[\"DIR/bad.jsonl\"]"}, all},
        {"eval " + line, {"eval", "DIR/run.toml", "--set", "data.val_files=[\"DIR/bad.jsonl\"]"}, all},
    });
  }
  put("empty.jsonl", "\n");
  for (const char* key : {"data.train_files", "data.val_files"})
    expect_refusals({
        {std::string("empty ") + key,
         train_it + words{"--set", std::string(key) + "=[\"DIR/empty.jsonl\"]"},
         {"DIR/empty.jsonl", "no rows"}},
        {std::string("missing ") + key,
         train_it + words{"--set", std::string(key) + "=[\"DIR/none.jsonl\"]"},
         {"DIR/none.jsonl", "No such file"}},
    });
}

} // namespace
} // namespace troupe
