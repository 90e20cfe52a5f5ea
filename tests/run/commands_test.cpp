#include "model/weights/safetensors.hpp"
#include "tests/run/command_fixture.hpp"
#include <csignal>
#include <thread>

namespace troupe {
namespace {

const words generate_it = {"generate", "--threads", "1", "--model", "DIR/model"};

TEST_F(command_files, TokenizeAndBack) {
  const words texts = {"plain", "", "two\nlines\t", "\u00e4\u4e2d\U0001F600", "<end256>x"};
  std::vector<json> rows;
  for (const auto& t : texts)
    rows.push_back({{"text", t}});
  put("texts.jsonl", jsonl(rows));
  const std::string nothing = result({"tokenize", "--model", "DIR/model", "--input", "DIR/texts.jsonl", "--output", "DIR/ids.jsonl"});
  EXPECT_EQ(nothing, "");
  const auto ids = rows_of(file_bytes(dir() / "ids.jsonl"));
  ASSERT_EQ(ids.size(), texts.size());
  EXPECT_EQ(ids[0], (json{{"index", 0}, {"ids", {'p', 'l', 'a', 'i', 'n'}}})) << "the tiny tokenizer has an id a byte";
  EXPECT_EQ(ids[1]["ids"], json::array());
  EXPECT_EQ(ids[4]["ids"], (json{256, 'x'}));
  rows.clear();
  for (const auto& row : ids)
    rows.push_back({{"ids", row["ids"]}});
  surroundings around;
  around.input = put("back.jsonl", jsonl(rows));
  // From stdin to stdout: nothing else may be there.
  const auto back =
      rows_of(result({"tokenize", "--decode", "--model", "DIR/model", "--input", "/dev/stdin", "--output", "/dev/stdout"}, around));
  ASSERT_EQ(back.size(), texts.size());
  for (std::size_t i = 0; i < texts.size(); ++i)
    EXPECT_EQ(back[i], (json{{"index", i}, {"text", texts[i]}}));
  EXPECT_TRUE(fs::is_symlink("/dev/stdout"));
}

// A GGUF file with SentencePiece's pieces and scores: the ids that the package itself gives, and back.
TEST_F(command_files, ConvertedSentencePieceEncodesAsThePackage) {
  const std::string reference = TROUPE_SOURCE_DIR "/tests/reference/weights/";
  result({"convert", "gguf", reference + "sentencepiece.gguf", "DIR/made"});
  const auto cases = json::parse(file_bytes(reference + "sentencepiece.json"));
  std::vector<json> texts, ids;
  for (const auto& c : cases) {
    texts.push_back({{"text", c[0]}});
    ids.push_back({{"ids", c[1]}});
  }
  ASSERT_GE(texts.size(), 300u);
  put("texts.jsonl", jsonl(texts));
  put("wanted.jsonl", jsonl(ids));
  result({"tokenize", "--model", "DIR/made", "--input", "DIR/texts.jsonl", "--output", "DIR/ids.jsonl"});
  result({"tokenize", "--decode", "--model", "DIR/made", "--input", "DIR/wanted.jsonl", "--output", "DIR/back.jsonl"});
  const auto got = rows_of(file_bytes(dir() / "ids.jsonl")), back = rows_of(file_bytes(dir() / "back.jsonl"));
  ASSERT_EQ(got.size(), cases.size());
  for (std::size_t i = 0; i < cases.size(); ++i) {
    EXPECT_EQ(got[i]["ids"], cases[i][1]) << cases[i][0];
    EXPECT_NE(back[i]["text"].get<std::string>().find(cases[i][0].get<std::string>()), std::string::npos) << cases[i][0] << back[i];
  }
}

TEST_F(command_files, GenerateAndScoreGiveTheSameBits) {
  put("prompts.jsonl",
      "{\"prompt\": \"ab\"}\r\n\n{\"input_ids\": [1, 2, 3], \"seed\": 18446744073709551615}\n{\"prompt\": \"ab\", \"seed\": 7}");
  auto p = start(generate_it + words{"--input", "DIR/prompts.jsonl", "--output", "DIR/made.jsonl", "--n", "3", "--seed", "5"});
  ASSERT_EQ(p.wait(deadline), 0) << p.err();
  EXPECT_EQ(p.out(), "");
  const auto made = rows_of(file_bytes(dir() / "made.jsonl"));
  ASSERT_EQ(made.size(), 9u);
  std::vector<json> to_score;
  std::size_t n_output = 0;
  for (std::size_t i = 0; i < made.size(); ++i) {
    const json& row = made[i];
    EXPECT_EQ(row["index"], i / 3);
    EXPECT_EQ(row["sample"], i % 3);
    EXPECT_EQ(row["weights_version"], 0);
    EXPECT_EQ(row["input_ids"].size(), i / 3 == 1 ? 3u : 2u);
    EXPECT_EQ(row["logprobs"].size(), row["output_ids"].size());
    EXPECT_EQ(row["finish_reason"], row["output_ids"].back() >= 256 ? "stop" : "length");
    EXPECT_EQ(row.size(), 8u);
    auto ids = row["input_ids"];
    ids.insert(ids.end(), row["output_ids"].begin(), row["output_ids"].end());
    to_score.push_back({{"input_ids", ids}, {"from", row["input_ids"].size()}});
    n_output += row["output_ids"].size();
  }
  EXPECT_NE(made[0]["output_ids"], made[1]["output_ids"]);
  const json summary = json::parse(p.err());
  EXPECT_EQ(n_lines(p.err()), 1u);
  EXPECT_EQ(summary["requests"], 3);
  EXPECT_EQ(summary["prompt_tokens"], 7);
  EXPECT_EQ(summary["output_tokens"], n_output);
  EXPECT_TRUE(summary.contains("seconds") && summary.contains("tokens_per_second"));
  put("to-score.jsonl", jsonl(to_score));
  EXPECT_EQ(result({"score", "--model", "DIR/model", "--threads", "1", "--input", "DIR/to-score.jsonl", "--output", "DIR/scored.jsonl"}),
            "");
  const auto scored = rows_of(file_bytes(dir() / "scored.jsonl"));
  ASSERT_EQ(scored.size(), made.size());
  for (std::size_t i = 0; i < made.size(); ++i)
    EXPECT_EQ(scored[i], (json{{"index", i}, {"logprobs", made[i]["logprobs"]}}));

  // The second request alone, by pipes and with other company limits: the same line, its index aside (its seed is its own).
  surroundings around;
  around.input = put("one.jsonl", "{\"input_ids\": [1, 2, 3], \"seed\": 18446744073709551615}\n");
  const auto alone = rows_of(result(
      generate_it + words{"--input", "/dev/stdin", "--output", "/dev/stdout", "--n", "3", "--max-num-seqs", "1", "--seed", "5"}, around));
  ASSERT_EQ(alone.size(), 3u);
  for (std::size_t i = 0; i < 3; ++i) {
    json wanted = made[3 + i];
    wanted["index"] = 0;
    EXPECT_EQ(alone[i], wanted);
  }
}

TEST_F(command_files, GenerateTakesItsOptions) {
  put("one.jsonl", "{\"prompt\": \"ab\"}\n");
  const words ask = generate_it + words{"--input", "DIR/one.jsonl", "--output", "/dev/stdout", "--ignore-eos", "--max-tokens", "20"};
  const json free = rows_of(result(ask + words{"--temperature", "0"})).at(0);
  ASSERT_EQ(free["output_ids"].size(), 20u);
  EXPECT_EQ(free["finish_reason"], "length");
  const json third = free["output_ids"][2];
  const json stopped = rows_of(result(ask + words{"--temperature", "0", "--stop-token-ids", third.dump()})).at(0);
  EXPECT_EQ(stopped["finish_reason"], "stop");
  EXPECT_EQ(stopped["output_ids"].back(), third);
  EXPECT_LE(stopped["output_ids"].size(), 3u);
  // Greedy by another way: the one most probable token.
  EXPECT_EQ(rows_of(result(ask + words{"--top-k", "1"})).at(0)["output_ids"], free["output_ids"]);
  // The context's end ends a sample.
  const json longest =
      rows_of(result(generate_it + words{"--input", "DIR/one.jsonl", "--output", "/dev/stdout", "--ignore-eos", "--max-tokens", "9999"}))
          .at(0);
  EXPECT_EQ(longest["output_ids"].size(), 254u);
  EXPECT_EQ(longest["finish_reason"], "length");
}

TEST_F(command_files, ALineOfGenerateTakesTheOptionsForItself) {
  put("plain.jsonl", "{\"prompt\": \"ab\", \"seed\": 3}\n");
  put("own.jsonl", "{\"prompt\": \"ab\", \"seed\": 3, \"n\": 2, \"max_tokens\": 9, \"frequency_penalty\": 0.5, \"top_logprobs\": 3, "
                   "\"logit_bias\": {\"97\": 1.5}, \"allowed_token_ids\": [97, 98, 99]}\n{\"prompt\": \"ab\", \"seed\": 3}\n");
  const words ask = generate_it + words{"--output", "/dev/stdout", "--ignore-eos", "--input"};
  const auto own = rows_of(result(ask + words{"DIR/own.jsonl", "--max-tokens", "7"}));
  ASSERT_EQ(own.size(), 3u);
  const auto told = rows_of(
      result(ask + words{"DIR/plain.jsonl", "--n", "2", "--max-tokens", "9", "--frequency-penalty", "0.5", "--top-logprobs", "3",
                         "--logit-bias", "97:1.5", "--allowed-token-ids", "97", "--allowed-token-ids", "99", "--allowed-token-ids", "98"}));
  ASSERT_EQ(told.size(), 2u);
  for (std::size_t i = 0; i < 2; ++i) {
    EXPECT_EQ(own[i], told[i]);
    EXPECT_EQ(own[i]["output_ids"].size(), 9u);
    ASSERT_EQ(own[i]["top_logprobs"].size(), 9u);
    for (std::size_t t = 0; t < 9; ++t) {
      const int id = own[i]["output_ids"][t];
      EXPECT_TRUE(id >= 97 && id <= 99);
      const json& top = own[i]["top_logprobs"][t];
      ASSERT_EQ(top.size(), 3u);
      EXPECT_TRUE(top[0][1] >= top[1][1] && top[1][1] >= top[2][1] && top[0][1] >= own[i]["logprobs"][t]);
      for (const auto& alternative : top)
        if (alternative[0] == id) {
          EXPECT_EQ(alternative[1], own[i]["logprobs"][t]);
        }
    }
  }
  EXPECT_EQ(own[2]["output_ids"].size(), 7u);
  EXPECT_FALSE(own[2].contains("top_logprobs"));
  json plain = rows_of(result(ask + words{"DIR/plain.jsonl", "--max-tokens", "7"})).at(0);
  plain["index"] = 1;
  EXPECT_EQ(own[2], plain);
}

/// The lines that are there when a signal comes are the first ones of the whole result, and whole.
TEST_F(command_files, InterruptedGenerateLeavesWholeLinesInOrder) {
  std::vector<json> prompts;
  for (int i = 0; i < 400; ++i)
    prompts.push_back({{"prompt", "prompt " + std::to_string(i)}});
  put("many.jsonl", jsonl(prompts));
  const words ask = generate_it + words{"--input", "DIR/many.jsonl", "--n", "2", "--max-tokens", "60", "--max-num-seqs", "8", "--output"};
  result(ask + words{"DIR/whole.jsonl"});
  const std::string whole = file_bytes(dir() / "whole.jsonl");
  ASSERT_EQ(rows_of(whole).size(), 800u);
  for (const int signal : {SIGINT, SIGTERM}) {
    const auto out = dir() / ("part" + std::to_string(signal));
    auto p = start(ask + words{out.string()});
    ASSERT_TRUE(until([&] { return file_bytes(out).size() > 5000; }));
    p.signal(signal);
    EXPECT_EQ(p.wait(deadline), 1);
    const std::string part = file_bytes(out);
    EXPECT_LT(part.size(), whole.size());
    EXPECT_EQ(part, whole.substr(0, part.size()));
    EXPECT_EQ(part.back(), '\n');
    const auto lines = n_lines(part);
    EXPECT_EQ(p.err(), "troupe: stopped by signal " + std::to_string(signal) + ": " + out.string() + " holds the first " +
                           std::to_string(lines) + " of 800 samples, whole lines\n");
  }
}

TEST_F(command_files, ResultThatDoesNotFitIsSaid) {
  put("one.jsonl", "{\"prompt\": \"ab\"}\n");
  put("text.jsonl", "{\"text\": \"" + std::string(100, 'x') + "\"}\n");
  for (const auto& ask :
       {generate_it + words{"--input", "DIR/one.jsonl"}, words{"tokenize", "--model", "DIR/model", "--input", "DIR/text.jsonl"}}) {
    auto p = start(ask + words{"--output", "/dev/full"});
    EXPECT_EQ(p.wait(deadline), 1);
    EXPECT_EQ(p.err(), "troupe: cannot write /dev/full: No space left on device; free some space there\n");
  }
  // An older result stays when the new one of tokenize, which is written as a whole, does not fit.
  surroundings around;
  around.largest_file = 50;
  put("old.jsonl", "older\n");
  auto p = start({"tokenize", "--model", "DIR/model", "--input", "DIR/text.jsonl", "--output", "DIR/old.jsonl"}, around);
  EXPECT_EQ(p.wait(deadline), 1);
  EXPECT_EQ(file_bytes(dir() / "old.jsonl"), "older\n");
}

TEST_F(command_files, CheckSaysWhatARunIs) {
  auto p = start({"check", "DIR/run.toml", "--set", "run.dir=DIR/checked"});
  ASSERT_EQ(p.wait(deadline), 0) << p.err();
  EXPECT_EQ(p.err(), "");
  for (const char* part : {"LlamaForCausalLM", "train        34 rows", "validation   6 rows", "learner.ppo_mini_batch_size", "ok\n"})
    EXPECT_NE(p.out().find(part), std::string::npos) << part << " is not in\n" << p.out();
  EXPECT_FALSE(fs::exists(dir() / "checked"));
}

TEST_F(command_files, EvalPrintsOneObject) {
  const json got = json::parse(result({"eval", "DIR/run.toml", "--threads", "1"}));
  EXPECT_GE(got.at("val/accuracy"), 0);
  EXPECT_LE(got.at("val/accuracy"), got.at("val/pass@2"));
  EXPECT_LE(got.at("val/pass@2"), got.at("val/pass@4"));
  EXPECT_EQ(got.size(), 3u);
}

TEST_F(command_files, ConvertedModelsGenerate) {
  put("ids.jsonl", "{\"input_ids\": [1, 2, 3]}\n");
  const auto generated = [&](const std::string& model) {
    return result({"generate", "--threads", "1", "--model", model, "--dtype", "float32", "--temperature", "0", "--max-tokens", "8",
                   "--input", "DIR/ids.jsonl", "--output", "/dev/stdout"});
  };
  auto p = start({"convert", "gguf", std::string(TROUPE_SOURCE_DIR) + "/tests/reference/weights/llama.gguf", "DIR/from-gguf"});
  ASSERT_EQ(p.wait(deadline), 0) << p.err();
  EXPECT_EQ(n_lines(p.err()), 1u) << p.err();
  EXPECT_EQ(p.out(), "");
  EXPECT_EQ(rows_of(generated("DIR/from-gguf")).size(), 1u);

  result({"train", "DIR/run.toml", "--threads", "1", "--set", "run.dir=DIR/trained", "--set", "run.total_steps=2", "--set",
          "run.test_freq=0", "--set", "run.save_freq=1"});
  result({"convert", "hf", "DIR/trained", "DIR/from-run"});
  result({"convert", "hf", "DIR/trained/checkpoints/step-000001", "DIR/from-step"});
  result({"convert", "hf", "DIR/trained", "DIR/from-run-half", "--dtype", "bfloat16"});
  const std::string last = generated("DIR/trained/checkpoints/step-000002");
  EXPECT_EQ(generated("DIR/from-run"), last);
  EXPECT_EQ(generated("DIR/from-step"), generated("DIR/trained/checkpoints/step-000001"));
  const safetensors_reader written(dir() / "from-run"), masters(dir() / "trained/checkpoints/step-000002");
  EXPECT_EQ(written.tensors().size(), masters.tensors().size());
  for (const auto& [name, info] : masters.tensors()) {
    const auto* same = written.find(name);
    ASSERT_NE(same, nullptr) << name;
    EXPECT_TRUE(std::equal(info.bytes.begin(), info.bytes.end(), same->bytes.begin(), same->bytes.end())) << name;
  }
  EXPECT_EQ(json::parse(file_bytes(dir() / "from-run-half/config.json"))["dtype"], "bfloat16");
  EXPECT_LT(fs::file_size(dir() / "from-run-half/model.safetensors"), fs::file_size(dir() / "from-run/model.safetensors") * 6 / 10);
}

TEST_F(command_files, DamagedCheckpointIsNotConverted) {
  result({"train", "DIR/run.toml", "--threads", "1", "--set", "run.dir=DIR/hurt", "--set", "run.total_steps=2", "--set", "run.test_freq=0",
          "--set", "run.save_freq=1"});
  const auto hurt = dir() / "hurt/checkpoints/step-000002/model.safetensors";
  std::string bytes = file_bytes(hurt);
  bytes[bytes.size() - 5] ^= 1;
  std::ofstream(hurt, std::ios::binary) << bytes;
  EXPECT_NE(result({"convert", "hf", "DIR/hurt", "DIR/from-hurt"}).find("step-000002 is passed over"), std::string::npos);
  EXPECT_EQ(file_bytes(dir() / "from-hurt/config.json").empty(), false);
  auto p = start({"convert", "hf", "DIR/hurt/checkpoints/step-000002", "DIR/from-step-2"});
  EXPECT_EQ(p.wait(deadline), 2);
  EXPECT_NE(p.err().find(hurt.string() + ": damaged"), std::string::npos) << p.err();
  EXPECT_FALSE(fs::exists(dir() / "from-step-2"));
}

TEST_F(command_files, HelpAndVersionAreResults) {
  EXPECT_EQ(result({"--version"}), "troupe 0.1.0\n");
  for (const words& ask : {words{"--help"}, words{"generate", "--help"}, words{"convert", "gguf", "--help"}})
    EXPECT_NE(result(ask).find("Usage"), std::string::npos);
}

} // namespace
} // namespace troupe
