#include "core/error.hpp"
#include "core/files.hpp"
#include "model/tokenizer/sentencepiece.hpp"
#include "model/tokenizer/tokenizer.hpp"
#include "model/tokenizer/tokenizer_fixture.hpp"
#include <gtest/gtest.h>

namespace {

using json = nlohmann::json;
using ids = std::vector<std::int32_t>;

const std::string folder = TROUPE_SOURCE_DIR "/tests/reference/";

std::string model_of(const char* kind) { return troupe::read_file(folder + "sentencepiece/" + kind + ".model"); }

std::string refusal(const std::string& model, const json& config = json::object()) {
  try {
    troupe::tokenizer::parse(troupe::sentencepiece_tokenizer(model, config, "t.model").dump(), "t.model");
    return {};
  } catch (const troupe::error& e) {
    return std::string(e.code() == troupe::errc::unsupported ? "unsupported: " : "bad_input: ") + e.what();
  }
}

TEST(sentencepiece, encodes_and_decodes_as_transformers_llama_tokenizer) {
  const auto texts = json::parse(troupe::read_file(folder + "tokenizer/texts.json"));
  const auto cases = json::parse(troupe::read_file(folder + "sentencepiece/cases.json"));
  ASSERT_GE(cases.size(), 5u);
  const auto dir = std::filesystem::path(testing::TempDir()) / "sentencepiece_test";
  for (const auto& [name, c] : cases.items()) {
    std::filesystem::remove_all(dir);
    std::filesystem::create_directories(dir);
    troupe::write_file(dir / "tokenizer.model", model_of("bpe"));
    troupe::write_file(dir / "tokenizer_config.json", c["config"].dump());
    const auto made = json::parse(troupe::tokenizer_json(dir));
    EXPECT_EQ(made["pre_tokenizer"], c["parts"]["pre_tokenizer"]) << name;
    EXPECT_EQ(made["decoder"], c["parts"]["decoder"]) << name;
    EXPECT_EQ(made["model"]["merges"].size(), c["merges"]) << name;
    const auto tok = troupe::tokenizer::load(dir);
    EXPECT_EQ(tok->vocab_size(), c["vocabulary"]) << name;
    EXPECT_EQ(tok->encode("Hello world", true), c["hello"].get<ids>()) << name;
    std::size_t wrong = 0;
    for (std::size_t i = 0; i < texts.size() && wrong < 5; ++i) {
      const auto text = texts[i].get<std::string>();
      const auto all = tok->encode(text, true);
      troupe::text_digest d;
      d << all << tok->encode(text, false) << tok->decode(all, false) << tok->decode(all, true);
      EXPECT_EQ(d.hex(), c["digests"][i]) << name << " " << texts[i];
      wrong += d.hex() != c["digests"][i] ? 1 : 0;
    }
  }
  std::filesystem::remove_all(dir);
}

TEST(sentencepiece, a_tokenizer_json_wins_and_without_either_the_error_names_it) {
  const auto dir = std::filesystem::path(testing::TempDir()) / "sentencepiece_test_json";
  std::filesystem::remove_all(dir);
  std::filesystem::create_directories(dir);
  try {
    troupe::tokenizer::load(dir);
    ADD_FAILURE() << "no error";
  } catch (const troupe::error& e) {
    EXPECT_NE(std::string(e.what()).find("tokenizer.json"), std::string::npos) << e.what();
  }
  troupe::write_file(dir / "tokenizer.model", model_of("bpe"));
  troupe::write_file(dir / "tokenizer.json", "{}");
  EXPECT_EQ(troupe::tokenizer_json(dir), "{}");
  std::filesystem::remove_all(dir);
}

TEST(sentencepiece, wrong_files_are_refused_by_name) {
  ASSERT_EQ(refusal(model_of("bpe")), "");
  const auto bpe = model_of("bpe");
  const struct {
    std::string model;
    json config;
    const char* message;
  } cases[] = {
      {"", json::object(), "bad_input: t.model: not a SentencePiece model: it holds no pieces"},
      {bpe.substr(0, bpe.size() / 2), json::object(), "bad_input: t.model: not a SentencePiece model"},
      {"IQ== 0\nIg== 1\n", json::object(), "bad_input: t.model: not a SentencePiece model"},
      {model_of("unigram"), json::object(), "unsupported: t.model: SentencePiece of model_type unigram"},
      {bpe + "\x1A\x03\x12\x01x", json::object(), "unsupported: t.model: SentencePiece with normalization rules"},
      {bpe + "\x0A\x05\x0A\x03<s>", json::object(), "bad_input: t.model: the piece \"<s>\" is there twice"},
      {bpe + "\x0A\x06\x0A\x02zz\x18\x09", json::object(), "bad_input: t.model: piece 7"},
      {bpe + "\x0A\x03\x0A\x01\xFF", json::object(), "bad_input: t.model: piece 7"},
      {bpe, {{"tokenizer_class", "T5Tokenizer"}}, "unsupported: t.model with tokenizer_config.json: tokenizer_class \"T5Tokenizer\""},
      {bpe, {{"legacy", 3}}, "bad_input: t.model with tokenizer_config.json.legacy must be true or false"},
      {bpe, {{"pad_token", 3}}, "bad_input: t.model with tokenizer_config.json: pad_token must be a string"},
  };
  for (const auto& c : cases)
    EXPECT_TRUE(refusal(c.model, c.config).starts_with(c.message)) << refusal(c.model, c.config) << "\nfor " << c.message;
}

// A model with bytes changed or cut reads and encodes, or is refused.
TEST(sentencepiece, mutated_models_are_read_or_refused) {
  std::uint64_t state = 3;
  const auto random = [&](std::size_t n) {
    state = state * 6364136223846793005ull + 1442695040888963407ull;
    return static_cast<std::size_t>((state >> 33) % n);
  };
  const auto source = model_of("bpe");
  std::size_t accepted = 0, refused = 0;
  for (int i = 0; i < 60; ++i) {
    auto model = source;
    for (std::size_t n = 1 + random(2); n > 0; --n)
      if (random(4) == 0)
        model.resize(random(model.size()) + 1);
      else
        model[random(model.size())] = static_cast<char>(random(256));
    try {
      const auto tok = troupe::tokenizer::parse(troupe::sentencepiece_tokenizer(model, json::object(), "t.model").dump(), "t.model");
      tok->decode(tok->encode("Hello world", true), true);
      ++accepted;
    } catch (const troupe::error&) {
      ++refused;
    }
  }
  EXPECT_GT(accepted, 5u);
  EXPECT_GT(refused, 5u);
}

} // namespace
