#include "core/error.hpp"
#include "core/files.hpp"
#include "model/tokenizer/parts.hpp"
#include "model/tokenizer/regex.hpp"
#include "model/tokenizer/tokenizer.hpp"
#include "model/tokenizer/tokenizer_fixture.hpp"
#include "model/tokenizer/unicode.hpp"
#include "model/tokenizer/utf8.hpp"
#include <array>
#include <cstdio>
#include <gtest/gtest.h>
#include <map>
#include <nlohmann/json.hpp>
#include <rapidcheck/gtest.h>

namespace {

using json = nlohmann::json;
using ids = std::vector<std::int32_t>;

const std::vector<std::string> styles = {"smollm", "llama3", "gpt2", "qwen2", "llama2", "mistral3", "tekken",
                                         "gemma",  "phi3",   "clip", "words", "spaces", "splits"};

const json& reference(const std::string& style) {
  static std::map<std::string, json> all;
  auto [it, fresh] = all.try_emplace(style);
  if (fresh)
    it->second = json::parse(troupe::read_file(TROUPE_SOURCE_DIR "/tests/reference/tokenizer/" + style + ".json"));
  return it->second;
}

std::shared_ptr<const troupe::tokenizer> read(const std::string& style) {
  return troupe::tokenizer::parse(reference(style)["tokenizer"].dump(), style + ".json");
}

// The error of a tokenizer.json, or "".
std::string refusal(const std::string& text) {
  try {
    troupe::tokenizer::parse(text, "t.json");
    return {};
  } catch (const troupe::error& e) {
    return std::string(e.code() == troupe::errc::unsupported ? "unsupported: " : "bad_input: ") + e.what();
  }
}

class of_style : public testing::TestWithParam<std::string> {};

TEST_P(of_style, encodes_as_the_tokenizers_package) {
  const auto tok = read(GetParam());
  for (const auto& row : reference(GetParam())["encode"]) {
    EXPECT_EQ(tok->encode(row[0].get<std::string>(), true), row[1].get<ids>()) << row[0];
    EXPECT_EQ(tok->encode(row[0].get<std::string>(), false), row.back().get<ids>()) << row[0];
  }
}

TEST_P(of_style, decodes_as_the_tokenizers_package) {
  const auto tok = read(GetParam());
  for (const auto& row : reference(GetParam())["decode"]) {
    EXPECT_EQ(tok->decode(row[0].get<ids>(), false), row[1].get<std::string>()) << row[0];
    EXPECT_EQ(tok->decode(row[0].get<ids>(), true), row.back().get<std::string>()) << row[0];
  }
}

TEST_P(of_style, gives_the_packages_digests_of_many_texts) {
  static const auto texts = json::parse(troupe::read_file(TROUPE_SOURCE_DIR "/tests/reference/tokenizer/texts.json"));
  ASSERT_GE(texts.size(), 2000u);
  const auto tok = read(GetParam());
  const auto& wanted = reference(GetParam())["digests"];
  std::size_t wrong = 0;
  for (std::size_t i = 0; i < texts.size() && wrong < 5; ++i) {
    const auto text = texts[i].get<std::string>();
    const auto all = tok->encode(text, true);
    troupe::text_digest d;
    d << all << tok->encode(text, false) << tok->decode(all, false) << tok->decode(all, true);
    EXPECT_EQ(d.hex(), wanted[i]) << texts[i];
    wrong += d.hex() != wanted[i] ? 1 : 0;
  }
}

std::string incrementally(const std::shared_ptr<const troupe::tokenizer>& tok, const ids& list, bool skip) {
  troupe::incremental_decoder decoder(tok, skip);
  std::string all;
  for (const auto id : list) {
    const auto piece = decoder.add(id);
    EXPECT_EQ(troupe::utf8::find_invalid(piece), std::string::npos);
    all += piece;
  }
  return all + decoder.finish();
}

TEST_P(of_style, decodes_random_ids_as_the_package_and_incrementally) {
  const auto tok = read(GetParam());
  EXPECT_EQ(tok->vocab_size(), reference(GetParam())["vocabulary"]);
  const auto limit = static_cast<std::size_t>(tok->vocab_size()) + 3;
  std::uint64_t state = 1;
  const auto draw = [&](std::size_t n) {
    state = state * 6364136223846793005ull + 1442695040888963407ull;
    return static_cast<std::size_t>((state >> 33) % n);
  };
  for (const auto& wanted : reference(GetParam())["decoded"]) {
    ids list(draw(12));
    for (auto& id : list)
      id = static_cast<std::int32_t>(draw(limit));
    troupe::text_digest d;
    d << tok->decode(list, false) << tok->decode(list, true);
    ASSERT_EQ(d.hex(), wanted) << json(list);
    ASSERT_EQ(incrementally(tok, list, false), tok->decode(list, false)) << json(list);
    ASSERT_EQ(incrementally(tok, list, true), tok->decode(list, true)) << json(list);
  }
}

INSTANTIATE_TEST_SUITE_P(styles, of_style, testing::ValuesIn(styles), [](const auto& info) { return info.param; });

TEST(tokenizer, text_comes_out_of_the_incremental_decoder_as_soon_as_it_is_certain) {
  const auto tok = read("smollm");
  troupe::incremental_decoder decoder(tok, true);
  const auto grin = tok->encode("\xF0\x9F\xA6\x8A", false); // a fox, which is no token: several pieces of a character
  ASSERT_GT(grin.size(), 1u);
  for (std::size_t i = 0; i + 1 < grin.size(); ++i)
    EXPECT_EQ(decoder.add(grin[i]), "");
  EXPECT_EQ(decoder.add(grin.back()), "\xF0\x9F\xA6\x8A");
  EXPECT_EQ(decoder.add(grin.front()), "");
  EXPECT_EQ(decoder.add(tok->encode("a", false)[0]), "\xEF\xBF\xBD"
                                                     "a");
  EXPECT_EQ(decoder.finish(), "");
}

TEST(tokenizer, names_ids_and_special_tokens) {
  const auto tok = read("smollm");
  const auto id = tok->token_to_id("<|im_end|>");
  ASSERT_TRUE(id);
  EXPECT_EQ(tok->id_to_token(*id), "<|im_end|>");
  EXPECT_TRUE(tok->is_special(*id));
  EXPECT_FALSE(tok->is_special(static_cast<std::int32_t>(tok->vocab_size()) - 1));
  EXPECT_FALSE(tok->token_to_id("no such token"));
  EXPECT_EQ(tok->id_to_token(-1), "");
  EXPECT_EQ(tok->id_to_token(static_cast<std::int32_t>(tok->vocab_size())), "");
  EXPECT_NE(tok->id_to_token(static_cast<std::int32_t>(tok->vocab_size()) - 1), "");
  EXPECT_EQ(tok->decode(ids{-1, *id, 1 << 30}, false), "<|im_end|>");
}

TEST(tokenizer, text_that_is_not_utf8_is_refused) {
  const auto tok = read("smollm");
  for (const char* bad : {"\x80", "a\xFF", "\xC0\xAF", "\xED\xA0\x80", "\xF4\x90\x80\x80", "\xE2\x82", "x\xF0\x9F\x98"})
    EXPECT_THROW(tok->encode(bad, true), troupe::error) << bad;
}

TEST(tokenizer, truncation_and_padding_are_applied_as_the_package_does) {
  auto config = reference("llama3")["tokenizer"];
  const auto whole = read("llama3")->encode("The quick brown fox jumps, 123 times", false);
  ASSERT_GT(whole.size(), 6u);
  const auto bos = *read("llama3")->token_to_id("<|begin_of_text|>"), eos = *read("llama3")->token_to_id("<|eot_id|>");
  config["truncation"] = {{"direction", "Right"}, {"max_length", 5}, {"strategy", "LongestFirst"}, {"stride", 0}};
  config["padding"] = {{"strategy", {{"Fixed", 8}}}, {"direction", "Left"}, {"pad_to_multiple_of", 3}, {"pad_id", 7},
                       {"pad_type_id", 0},           {"pad_token", "x"}};
  const auto tok = troupe::tokenizer::parse(config.dump(), "t.json");
  EXPECT_EQ(tok->encode("The quick brown fox jumps, 123 times", true), (ids{7, 7, 7, 7, bos, whole[0], whole[1], whole[2], eos}));
  config["truncation"]["direction"] = "Left";
  config["padding"] = nullptr;
  EXPECT_EQ(troupe::tokenizer::parse(config.dump(), "t.json")->encode("The quick brown fox jumps, 123 times", false),
            ids(whole.end() - 5, whole.end()));
  config["truncation"]["max_length"] = 1;
  EXPECT_TRUE(refusal(config.dump()).starts_with("bad_input: t.json: truncation.max_length 1 leaves no room")) << refusal(config.dump());
}

TEST(tokenizer, a_wrong_file_is_refused_by_name) {
  const json base = json::parse(R"({"model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"]}, "added_tokens": []})");
  ASSERT_EQ(refusal(base.dump()), "");
  const struct {
    const char *place, *value, *message;
  } cases[] = {
      {"/model", "null", "bad_input: t.json: model must be an object"},
      {"/model/type", "\"Unigram\"", "unsupported: t.json: model Unigram"},
      {"/model/dropout", "0.1", "unsupported: t.json: model BPE with dropout 0.1"},
      {"/model/unk_token", "\"u\"", "bad_input: t.json: model.unk_token \"u\" is not in model.vocab"},
      {"/model/byte_fallback", "1", "bad_input: t.json: model.byte_fallback must be true or false"},
      {"/model/vocab", "[]", "bad_input: t.json: model.vocab must be an object"},
      {"/model/vocab/b", "0", "bad_input: t.json: model.vocab gives id 0 to both"},
      {"/model/vocab/b", "-1", "bad_input: t.json: model.vocab[\"b\"] = -1"},
      {"/model/vocab/b", "99999999999", "bad_input: t.json: model.vocab[\"b\"] = 99999999999"},
      {"/model/vocab/b", "1.5", "bad_input: t.json: model.vocab[\"b\"] = 1.5"},
      {"/model/merges", "{}", "bad_input: t.json: model.merges must be an array"},
      {"/model/merges/0", "\"a c\"", "bad_input: t.json: model.merges[0]: token \"c\" is not in model.vocab"},
      {"/model/merges/0", "\"b a\"", "bad_input: t.json: model.merges[0]: token \"ba\" is not in model.vocab"},
      {"/model/merges/0", "\"ab\"", "bad_input: t.json: model.merges[0] must be two tokens"},
      {"/model/merges/0", "[\"a\"]", "bad_input: t.json: model.merges[0] must be"},
      {"/normalizer", R"({"type": "Precompiled"})", "unsupported: t.json: normalizer: normalizer Precompiled"},
      {"/pre_tokenizer", R"({"type": "UnicodeScripts"})", "unsupported: t.json: pre_tokenizer: pre_tokenizer UnicodeScripts"},
      {"/pre_tokenizer", R"({"type": "Sequence", "pretokenizers": [{"type": "CharDelimiterSplit"}]})",
       "unsupported: t.json: pre_tokenizer.pretokenizers[0]: pre_tokenizer CharDelimiterSplit"},
      {"/pre_tokenizer", R"({"type": "Split", "pattern": {"Regex": "(a"}, "behavior": "Isolated"})",
       "bad_input: t.json: pre_tokenizer.pattern: regex"},
      {"/pre_tokenizer", R"({"type": "Split", "pattern": {"Regex": "\\h"}, "behavior": "Isolated"})",
       "unsupported: t.json: pre_tokenizer.pattern: regex construct \\h"},
      {"/pre_tokenizer", R"({"type": "Split", "pattern": {"String": "a"}, "behavior": "Apart"})",
       "bad_input: t.json: pre_tokenizer.behavior \"Apart\""},
      {"/pre_tokenizer", "5", "bad_input: t.json: pre_tokenizer must be an object with a \"type\""},
      {"/post_processor", R"({"type": "BertProcessing"})", "unsupported: t.json: post_processor: post_processor BertProcessing"},
      {"/post_processor",
       R"({"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "x", "type_id": 0}}], "special_tokens": {}})",
       "bad_input: t.json: post_processor.special_tokens has no entry \"x\""},
      {"/post_processor",
       R"({"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "x"}}], "special_tokens": {"x": {"id": "x", "ids": [77], "tokens": ["x"]}}})",
       "bad_input: t.json: post_processor writes id 77"},
      {"/pre_tokenizer", R"({"type": "Metaspace", "replacement": "ab"})",
       "bad_input: t.json: pre_tokenizer.replacement must be one character"},
      {"/pre_tokenizer", R"({"type": "Metaspace", "replacement": "_", "prepend_scheme": "last"})",
       "bad_input: t.json: pre_tokenizer.prepend_scheme \"last\""},
      {"/pre_tokenizer", R"({"type": "Metaspace", "replacement": "_", "prepend_scheme": "first", "add_prefix_space": false})",
       "bad_input: t.json: pre_tokenizer: add_prefix_space false and prepend_scheme \"first\""},
      {"/pre_tokenizer",
       R"({"type": "Sequence", "pretokenizers": [{"type": "ByteLevel"}, {"type": "Metaspace", "replacement": "_", "prepend_scheme": "first"}]})",
       "unsupported: t.json: pre_tokenizer: Metaspace with prepend_scheme first"},
      {"/decoder", R"({"type": "Strip", "content": "a", "start": 1, "stop": 1})",
       "unsupported: t.json: decoder: decoder Strip with both start and stop"},
      {"/model/continuing_subword_prefix", "\"###\"", "bad_input: t.json: model.merges[0]: token \"b\" is shorter than"},
      {"/decoder", R"({"type": "CTC"})", "unsupported: t.json: decoder: decoder CTC"},
      {"/added_tokens", "5", "bad_input: t.json: added_tokens must be an array"},
      {"/added_tokens", R"([{"id": 0}])", "bad_input: t.json: added_tokens[0].content must be a string"},
      {"/added_tokens", R"([{"content": "a"}])", "bad_input: t.json: added_tokens[0].id must be an integer"},
      {"/padding", R"({"strategy": "Longest"})", "bad_input: t.json: padding.strategy"},
  };
  for (const auto& c : cases) {
    auto changed = base;
    changed[json::json_pointer(c.place)] = json::parse(c.value);
    EXPECT_TRUE(refusal(changed.dump()).starts_with(c.message)) << refusal(changed.dump()) << "\nfor " << c.message;
  }
  auto first = base;
  first["normalizer"] = {{"type", "NFC"}};
  first["pre_tokenizer"] = {{"type", "Metaspace"}, {"replacement", "_"}, {"prepend_scheme", "first"}};
  EXPECT_TRUE(refusal(first.dump()).starts_with("unsupported: t.json: pre_tokenizer Metaspace with prepend_scheme first behind this"));
  EXPECT_TRUE(refusal("{").starts_with("bad_input: t.json: not JSON"));
  EXPECT_TRUE(refusal("[]").starts_with("bad_input: t.json: must be a JSON object"));
  std::string deep;
  for (int i = 0; i < 100000; ++i)
    deep += "[";
  EXPECT_EQ(refusal(R"({"model": {"type": "BPE", "vocab": {}, "merges": [], "dropout": )" + deep + std::string(deep.size(), ']') + "}}"),
            "bad_input: t.json: nested deeper than 256 levels");
  EXPECT_TRUE(refusal(std::string((128u << 20) + 1, '[')).starts_with("bad_input: t.json: 134217729 bytes; at most 134217728"));
}

TEST(tokenizer, a_normalizer_that_makes_too_much_is_refused) {
  json file = json::parse(R"({"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}, "added_tokens": []})");
  const json grow = {{"type", "Replace"}, {"pattern", {{"String", "a"}}}, {"content", std::string(1000, 'a')}};
  file["normalizer"] = {{"type", "Sequence"}, {"normalizers", json::array({grow, grow, grow})}};
  try {
    troupe::tokenizer::parse(file.dump(), "t.json")->encode("aa", true);
    FAIL();
  } catch (const troupe::error& e) {
    EXPECT_EQ(e.code(), troupe::errc::bad_input);
    EXPECT_TRUE(std::string(e.what()).starts_with("t.json: normalizer.normalizers[2].pattern: replacing makes more than")) << e.what();
  }
}

// A tokenizer.json with bytes changed, cut or swapped reads and encodes, or is refused.
TEST(tokenizer, mutated_files_are_read_or_refused) {
  std::uint64_t state = 7;
  const auto random = [&](std::size_t n) {
    state = state * 6364136223846793005ull + 1442695040888963407ull;
    return static_cast<std::size_t>((state >> 33) % n);
  };
  const std::string bytes = "{}[]\",:0123456789-.eatrulfns \\\x80\xC3";
  std::size_t accepted = 0, refused = 0;
  for (const auto& style : styles) {
    auto config = reference(style)["tokenizer"];
    // Few tokens, so that the rest of the file is hit as often.
    config["model"]["merges"] = json::array();
    const auto source = config.dump();
    const auto small = source.find("\"vocab\"");
    for (int i = 0; i < 50; ++i) {
      auto text = source;
      for (std::size_t n = 1 + random(2); n > 0; --n) {
        const auto at = random(4) == 0 ? random(text.size()) : random(std::min(text.size(), small));
        if (random(5) == 0)
          text.erase(at, 1 + random(30));
        else
          text[at] = bytes[random(bytes.size())];
      }
      try {
        const auto tok = troupe::tokenizer::parse(text, "t.json");
        tok->decode(tok->encode("Hello <|im_end|> 12 \xC3\xA9", true), true);
        ++accepted;
      } catch (const troupe::error&) {
        ++refused;
      }
    }
  }
  EXPECT_GT(accepted, 10u);
  EXPECT_GT(refused, 100u);
}

std::string text_of(const std::vector<std::uint32_t>& points) {
  std::string text;
  for (auto c : points) {
    c %= 0x110000;
    troupe::utf8::append(text, c >= 0xD800 && c < 0xE000 ? U' ' : static_cast<char32_t>(c));
  }
  return text;
}

RC_GTEST_PROP(tokenizer, byte_level_ids_decode_to_the_text, (const std::vector<std::uint32_t>& points)) {
  static const auto tok = read("smollm");
  const auto text = text_of(points);
  RC_ASSERT(tok->decode(tok->encode(text, true), false) == text);
}

RC_GTEST_PROP(utf8, lossy_text_is_utf8_and_keeps_what_is_well_formed, (std::vector<std::uint8_t> raw)) {
  const std::string bytes(raw.begin(), raw.end());
  std::string whole, pieces, pending;
  troupe::utf8::append_lossy(whole, bytes);
  RC_ASSERT(troupe::utf8::find_invalid(whole) == std::string::npos);
  if (troupe::utf8::find_invalid(bytes) == std::string::npos)
    RC_ASSERT(whole == bytes);
  for (const char b : bytes) {
    pending += b;
    pending.erase(0, troupe::utf8::append_lossy(pieces, pending, true));
  }
  troupe::utf8::append_lossy(pieces, pending);
  RC_ASSERT(pieces == whole);
}

using point_ranges = std::vector<std::pair<char32_t, char32_t>>;

template <class Holds>
point_ranges ranges_where(Holds holds) {
  point_ranges out;
  for (char32_t c = 0; c < 0x110000; ++c) {
    if ((c >= 0xD800 && c < 0xE000) || !holds(c))
      continue;
    if (!out.empty() && out.back().second + 1 == c)
      out.back().second = c;
    else
      out.emplace_back(c, c);
  }
  return out;
}

const json& package_classes() {
  static const json all = json::parse(troupe::read_file(TROUPE_SOURCE_DIR "/tests/reference/tokenizer/classes.json"));
  return all;
}

TEST(unicode, classes_in_regexes_hold_the_packages_characters_and_no_others) {
  std::string all; // every character, and where each begins
  std::map<std::size_t, char32_t> at;
  for (char32_t c = 0; c < 0x110000; ++c)
    if (c < 0xD800 || c >= 0xE000) {
      at.emplace_hint(at.end(), all.size(), c);
      troupe::utf8::append(all, c);
    }
  for (const auto& [pattern, wanted] : package_classes()["regex"].items()) {
    point_ranges got;
    troupe::regex(pattern, "p").for_each(all, [&](std::size_t begin, std::size_t) {
      const char32_t c = at.at(begin);
      if (!got.empty() && got.back().second + 1 == c)
        got.back().second = c;
      else
        got.emplace_back(c, c);
    });
    EXPECT_EQ(got, wanted.get<point_ranges>()) << pattern;
  }
}

TEST(unicode, classes_of_parts_hold_the_packages_characters_and_no_others) {
  const auto& parts = package_classes()["parts"];
  namespace unicode = troupe::unicode;
  EXPECT_EQ(ranges_where(unicode::is_numeric), parts["Digits"].get<point_ranges>());
  EXPECT_EQ(ranges_where(unicode::is_punctuation), parts["Punctuation"].get<point_ranges>());
  EXPECT_EQ(ranges_where(unicode::is_word), parts["Whitespace"].get<point_ranges>());
  EXPECT_EQ(ranges_where(unicode::is_space), parts["WhitespaceSplit"].get<point_ranges>());
}

TEST(unicode, normalizers_give_what_the_packages_give_for_each_character) {
  for (const auto& [name, wanted] : package_classes()["digests"].items()) {
    const auto normalizer = troupe::read_normalizer({{"type", name}}, "n");
    for (char32_t first = 0; first < 0x110000; first += 4096) {
      std::uint64_t digest = 0xCBF29CE484222325ull;
      for (char32_t c = first; c < first + 4096; ++c) {
        std::string text;
        if (c >= 0xD800 && c < 0xE000)
          continue;
        troupe::utf8::append(text, c);
        for (const char byte : normalizer->apply(text) + '\n')
          digest = (digest ^ static_cast<unsigned char>(byte)) * 0x100000001B3ull;
      }
      std::array<char, 20> hex{};
      std::snprintf(hex.data(), hex.size(), "%016llx", static_cast<unsigned long long>(digest));
      EXPECT_EQ(std::string(hex.data()), wanted[first / 4096]) << name << " from U+" << std::hex << static_cast<unsigned>(first);
    }
  }
}

TEST(regex, what_oniguruma_and_pcre2_read_differently_is_rewritten_or_refused) {
  EXPECT_EQ(troupe::from_oniguruma("a+?(?!b)", "p"), "a+?(?!b)");
  EXPECT_EQ(troupe::from_oniguruma(R"(\v\x{41}\u0042)", "p"), R"(\x0B\x{41}\x{42})");
  for (const char* pattern :
       {R"(\b)", R"(\h)", R"(\R)", R"(\p{Han})", "[a[b]]", "[a&&b]", "(?<n>a)", "(?m:a)", R"([\P{L}])", R"(\1)", "[]a]"})
    EXPECT_THROW(troupe::from_oniguruma(pattern, "p"), troupe::error) << pattern;
}

} // namespace
