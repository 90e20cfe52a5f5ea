#include "experience/dataset.hpp"
#include "experience/reward.hpp"
#include "experience/test_util.hpp"
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <numeric>
#include <rapidcheck/gtest.h>
#include <set>

namespace troupe {
namespace {

using json = nlohmann::ordered_json;

/// A token a byte, 256 in front where special tokens are added; a template that joins roles and contents.
prompt_encoder byte_encoder(bool with_template) {
  prompt_encoder encoder;
  encoder.encode = [](std::string_view text, bool add_special_tokens) {
    std::vector<std::int32_t> ids;
    if (add_special_tokens && !text.empty())
      ids.push_back(256);
    for (unsigned char c : text)
      ids.push_back(c);
    return ids;
  };
  if (with_template)
    encoder.render = [](const json& messages) {
      std::string out;
      for (const json& m : messages) {
        if (m["role"] == "forbidden")
          throw error(errc::bad_input, "chat template: no such role");
        out += "<" + m["role"].get<std::string>() + ">" + m["content"].get<std::string>();
      }
      return out + "<assistant>";
    };
  return encoder;
}

std::vector<std::int32_t> ids_of(std::string_view text, bool special) { return byte_encoder(false).encode(text, special); }

data_section limits(std::int64_t max_prompt_length = 100) {
  data_section data;
  data.max_prompt_length = max_prompt_length;
  return data;
}

class dataset : public testing::Test {
protected:
  std::vector<prompt_row> load(std::string_view text, const data_section& data = limits(), bool with_template = true,
                               const char* function = nullptr) {
    std::unique_ptr<reward_function> reward;
    if (function) {
      reward_section section;
      section.function = function;
      reward = make_reward(section);
    }
    return load_prompts({dir_.write("data.jsonl", text)}, data, byte_encoder(with_template), reward.get());
  }
  temporary_directory dir_;
};

TEST_F(dataset, prompts_as_text_and_as_messages) {
  const std::string both = R"({"prompt": "hi"})"
                           "\n\r\n"
                           R"({"prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": "hi"}], "answer": "7"})";
  const auto rows = load(both);
  ASSERT_EQ(rows.size(), 2u);
  EXPECT_EQ(rows[0].ids, ids_of("hi", true));
  EXPECT_EQ(rows[1].ids, ids_of("<system>s<user>hi<assistant>", false));
  EXPECT_EQ(rows[1].source, 1u);
  EXPECT_EQ(rows[1].answer, "7");
  data_section data = limits();
  data.chat_template = "always";
  EXPECT_EQ(load(both, data)[0].ids, ids_of("<user>hi<assistant>", false));
  data.chat_template = "never";
  expect_error(errc::bad_input, {"data.jsonl:3: ", "never"}, [&] { load(both, data); });
  EXPECT_EQ(load(R"({"prompt": "hi"})", data)[0].ids, ids_of("hi", true));
}

TEST_F(dataset, keys_are_those_of_the_configuration) {
  data_section data = limits();
  data.prompt_key = "question";
  data.answer_key = "solution";
  const auto rows = load(R"({"prompt": 1, "question": "q", "answer": [], "solution": "s"})", data);
  EXPECT_EQ(rows[0].ids, ids_of("q", true));
  EXPECT_EQ(rows[0].answer, "s");
}

TEST_F(dataset, answers_keep_the_files_spelling) {
  const std::vector<std::pair<std::string, std::string>> cases = {{"\" 7 \"", " 7 "},
                                                                  {"7", "7"},
                                                                  {"-3", "-3"},
                                                                  {"7.0", "7.0"},
                                                                  {"0.10", "0.10"},
                                                                  {"1e3", "1e3"},
                                                                  {"123456789012345678901234567890", "123456789012345678901234567890"},
                                                                  {"true", "true"},
                                                                  {"false", "false"},
                                                                  {"null", ""}};
  for (const auto& [spelt, expected] : cases)
    EXPECT_EQ(load(R"({"prompt": "p", "other": {"answer": 2.5}, "list": [1.5], "answer": )" + spelt + ", \"last\": 3.5}")[0].answer,
              expected);
  EXPECT_EQ(load(R"({"prompt": "p"})")[0].answer, "");
}

TEST_F(dataset, bad_rows_are_named) {
  const std::vector<std::tuple<std::string, std::string_view>> cases = {
      {"{\"prompt\": \"x\"", "not JSON"},
      {"[1]", "object expected, found array"},
      {"{}", "no key \"prompt\""},
      {R"({"prompt": 7})", "must be a string or a list of messages, found number"},
      {R"({"prompt": []})", "without messages"},
      {R"({"prompt": ["x"]})", "message 0"},
      {R"({"prompt": [{"content": "x"}]})", "\"role\""},
      {R"({"prompt": [{"role": 1, "content": "x"}]})", "\"role\""},
      {R"({"prompt": [{"role": "user", "content": "x"}, {"role": "user"}]})", "message 1"},
      {R"({"prompt": [{"role": "user", "content": null}]})", "\"content\""},
      {R"({"prompt": [{"role": "forbidden", "content": "x"}]})", "no such role"},
      {R"({"prompt": "x", "answer": {}})", "found object"},
      {R"({"prompt": "x", "answer": 1e999})", "not JSON"},
      {R"({"prompt": ""})", "no token"},
      {"{\"prompt\": \"\\ud800\"}", "not JSON"},
      {"{\"prompt\": \"\xff\"}", "not JSON"}};
  for (const auto& [line, reason] : cases)
    expect_error(errc::bad_input, {"data.jsonl:2: ", reason}, [&, text = line] { load("{\"prompt\": \"fine\"}\n" + text + "\n"); });
}

TEST_F(dataset, a_model_without_a_template) {
  expect_error(errc::bad_input, {":1: ", "chat template"},
               [&] { load(R"({"prompt": [{"role": "user", "content": "x"}]})", limits(), false); });
  EXPECT_EQ(load(R"({"prompt": "x"})", limits(), false).size(), 1u);
}

TEST_F(dataset, a_reward_needs_answers_that_can_be_earned) {
  EXPECT_EQ(load(R"({"prompt": "x", "answer": 7})", limits(), true, "last_number").size(), 1u);
  expect_error(errc::bad_input, {":1: ", "no key \"answer\""}, [&] { load(R"({"prompt": "x"})", limits(), true, "last_number"); });
  expect_error(errc::bad_input, {":1: ", "null"}, [&] { load(R"({"prompt": "x", "answer": null})", limits(), true, "exact_match"); });
  expect_error(errc::bad_input, {":1: ", "\"a\\nb\"", "not a number"},
               [&] { load(R"({"prompt": "x", "answer": "a\nb"})", limits(), true, "last_number"); });
}

TEST_F(dataset, prompts_over_the_limit) {
  const std::string text = "{\"prompt\": \"abc\"}\n{\"prompt\": \"abcdef\"}\n{\"prompt\": \"xyz\"}\n";
  data_section data = limits(4);
  expect_error(errc::bad_input, {"data.jsonl:2: ", "7 tokens", "max_prompt_length is 4"}, [&] { load(text, data); });
  data.truncation = "left";
  EXPECT_EQ(load(text, data)[1].ids, ids_of("cdef", false));
  data.truncation = "right";
  EXPECT_EQ(load(text, data)[1].ids, ids_of("abc", true));
  data.filter_overlong_prompts = true;
  const auto rows = load(text, data);
  ASSERT_EQ(rows.size(), 2u);
  EXPECT_EQ(rows[1].source, 2u); // a filtered row keeps its number
  data.max_prompt_length = 2;
  expect_error(errc::bad_input, {"all 3 prompts", "max_prompt_length"}, [&] { load(text, data); });
}

TEST_F(dataset, files_that_are_missing_or_empty) {
  expect_error(errc::bad_input, {"absent.jsonl"},
               [&] { load_prompts({(dir_.path() / "absent.jsonl").string()}, limits(), byte_encoder(true), nullptr); });
  expect_error(errc::bad_input, {"data.jsonl", "no rows"}, [&] { load(""); });
  expect_error(errc::bad_input, {"data.jsonl", "no rows"}, [&] { load("\n\n"); });
}

TEST_F(dataset, rows_are_numbered_through_all_files) {
  const auto a = dir_.write("a.jsonl", "{\"prompt\": \"1\"}\n{\"prompt\": \"2\"}\n"), b = dir_.write("b.jsonl", "{\"prompt\": \"3\"}");
  const auto rows = load_prompts({a, b}, limits(), byte_encoder(true), nullptr);
  ASSERT_EQ(rows.size(), 3u);
  EXPECT_EQ(rows[2].source, 2u);
  EXPECT_EQ(rows[2].ids, ids_of("3", true));
}

RC_GTEST_PROP(batch_sampler, an_epoch_holds_every_row_at_most_once, ()) {
  const auto n_rows = *rc::gen::inRange<std::uint64_t>(1, 200), batch = *rc::gen::inRange<std::uint64_t>(1, n_rows + 1);
  const batch_sampler sampler(n_rows, batch, *rc::gen::arbitrary<std::uint64_t>(), *rc::gen::arbitrary<bool>());
  RC_ASSERT(sampler.steps_per_epoch() == n_rows / batch);
  for (std::uint64_t epoch = 0; epoch < 3; ++epoch) {
    std::set<std::uint64_t> seen;
    for (std::uint64_t i = 0; i < sampler.steps_per_epoch(); ++i)
      for (std::uint64_t row : sampler.rows(epoch * sampler.steps_per_epoch() + i + 1)) {
        RC_ASSERT(row < n_rows);
        RC_ASSERT(seen.insert(row).second);
      }
    RC_ASSERT(seen.size() == sampler.steps_per_epoch() * batch);
  }
}

RC_GTEST_PROP(batch_sampler, a_step_follows_from_the_configuration_alone, (std::uint64_t seed)) {
  const auto n_rows = *rc::gen::inRange<std::uint64_t>(4, 50);
  const batch_sampler ascending(n_rows, 3, seed, true);
  for (std::uint64_t step = 1; step < 40; ++step)
    RC_ASSERT(ascending.rows(step) == batch_sampler(n_rows, 3, seed, true).rows(step));
}

TEST(batch_sampler, file_order_without_shuffle) {
  const batch_sampler sampler(5, 2, 1, false);
  EXPECT_EQ(sampler.rows(1), (std::vector<std::uint64_t>{0, 1}));
  EXPECT_EQ(sampler.rows(2), (std::vector<std::uint64_t>{2, 3}));
  EXPECT_EQ(sampler.rows(3), (std::vector<std::uint64_t>{0, 1})); // row 4 is the dropped last batch
}

TEST(batch_sampler, seeds_and_epochs_differ) {
  const batch_sampler one(100, 100, 1, true), two(100, 100, 2, true);
  EXPECT_NE(one.rows(1), two.rows(1));
  EXPECT_NE(one.rows(1), one.rows(2));
}

TEST(batch_sampler, every_place_is_equally_likely) {
  // 6000 permutations of 4: each of the 24 orders is expected 250 times, standard deviation 15.5.
  std::map<std::vector<std::uint64_t>, int> counts;
  const batch_sampler sampler(4, 4, 11, true);
  for (std::uint64_t step = 1; step <= 6000; ++step)
    ++counts[sampler.rows(step)];
  ASSERT_EQ(counts.size(), 24u);
  for (const auto& [order, n] : counts)
    EXPECT_NEAR(n, 250, 5 * 15.5);
}

TEST(batch_sampler, refuses_what_cannot_be) {
  expect_error(errc::bad_config, {"train_batch_size is 6", "5 rows"}, [] { batch_sampler(5, 6, 1, true); });
  expect_error(errc::bad_config, {"train_batch_size is 0"}, [] { batch_sampler(5, 0, 1, true); });
  expect_error(errc::bad_input, {"from 1"}, [] { batch_sampler(5, 2, 1, true).rows(0); });
}

std::uint64_t splitmix64(std::uint64_t x) {
  std::uint64_t z = x + 0x9E3779B97F4A7C15u;
  z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
  z = (z ^ z >> 27) * 0x94D049BB133111EBu;
  return z ^ z >> 31;
}

TEST(quickstart, the_files_are_the_split_that_they_claim) {
  std::map<std::uint64_t, std::pair<int, int>> by_hash;
  for (int a = 1; a <= 20; ++a)
    for (int b = a; b <= 20; ++b)
      by_hash[splitmix64(std::uint64_t(a) * 1000 + std::uint64_t(b))] = {a, b};
  std::set<std::pair<int, int>> held_out;
  for (const auto& [hash, pair] : by_hash)
    if (held_out.size() < 105)
      held_out.insert(pair);
  int n = 0;
  for (const bool validation : {false, true}) {
    std::ifstream file(std::string(TROUPE_SOURCE_DIR) + "/configs/quickstart/" + (validation ? "val.jsonl" : "train.jsonl"));
    for (std::string line; std::getline(file, line); ++n) {
      const json row = json::parse(line);
      int a = 0, b = 0;
      const std::string content = row["prompt"][0]["content"];
      ASSERT_EQ(std::sscanf(content.c_str(), "What is %d + %d? Give a short answer.", &a, &b), 2);
      EXPECT_EQ(row["answer"], std::to_string(a + b));
      EXPECT_EQ(held_out.contains({std::min(a, b), std::max(a, b)}), validation) << content;
    }
  }
  EXPECT_EQ(n, 400);
}

} // namespace
} // namespace troupe
