#include "cli/line_file.hpp"
#include "cli/requests.hpp"
#include "core/error.hpp"
#include "core/files.hpp"
#include <cstdlib>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>
#include <unistd.h>

namespace troupe {
namespace {

namespace fs = std::filesystem;

class requests : public testing::Test {
protected:
  void SetUp() override { fs::create_directories(dir_); }
  void TearDown() override { fs::remove_all(dir_); }
  fs::path file(const std::string& text) const {
    write_file(dir_ / "in.jsonl", text);
    return dir_ / "in.jsonl";
  }
  fs::path dir_ = fs::temp_directory_path() / ("requests_test." + std::to_string(::getpid()));
};

// One id a byte; a special token, 1, in front when asked for.
prompt_encoder encoder() {
  prompt_encoder e;
  e.encode = [](std::string_view text, bool special) {
    std::vector<std::int32_t> ids(special && !text.empty() ? 1 : 0, 1);
    for (const char c : text)
      ids.push_back(std::uint8_t(c));
    return ids;
  };
  e.render = [](const nlohmann::ordered_json& messages) {
    if (messages[0]["role"] == "tool")
      throw error{errc::bad_input, "chat template: no tools"};
    return "<" + messages.back()["content"].get<std::string>() + ">";
  };
  return e;
}

constexpr model_limits limits{.vocab_size = 200, .max_position_embeddings = 12};

std::string refusal(const std::function<void()>& f) {
  try {
    f();
  } catch (const error& e) {
    EXPECT_EQ(exit_code(e.code()), 2);
    EXPECT_EQ(std::string(e.what()).find('\n'), std::string::npos);
    return e.what();
  }
  return "accepted";
}

TEST_F(requests, the_three_forms_are_encoded) {
  const auto lines =
      read_generate_lines(file("{\"prompt\": \"ab\"}\n"
                               "{\"messages\": [{\"role\": \"user\", \"content\": \"c\"}], \"seed\": 18446744073709551615}\r\n"
                               "\n"
                               "{\"input_ids\": [5, 199], \"seed\": 0}"),
                          encoder(), limits);
  ASSERT_EQ(lines.size(), 3u);
  EXPECT_EQ(lines[0].ids, (std::vector<std::int32_t>{1, 'a', 'b'}));
  EXPECT_FALSE(lines[0].seed);
  EXPECT_EQ(lines[1].ids, (std::vector<std::int32_t>{'<', 'c', '>'}));
  EXPECT_EQ(lines[1].seed, 18446744073709551615u);
  EXPECT_EQ(lines[2].ids, (std::vector<std::int32_t>{5, 199}));
  EXPECT_EQ(lines[2].seed, 0u);
}

TEST_F(requests, a_line_says_for_itself_how_it_is_sampled) {
  request_options all;
  all.n = 4;
  all.params.top_k = 7;
  all.params.stop_strings = {"x"};
  const auto lines = read_generate_lines(
      file("{\"prompt\": \"a\"}\n"
           "{\"prompt\": \"a\", \"n\": 2, \"max_tokens\": 9, \"min_tokens\": 3, \"temperature\": 0.5, \"top_p\": 0.25, \"top_k\": -1, "
           "\"min_p\": 1, \"repetition_penalty\": 1.5, \"presence_penalty\": -0.5, \"frequency_penalty\": 0.75, \"logit_bias\": "
           "{\"5\": -2.5, \"0\": 100}, \"allowed_token_ids\": [3, 199], \"top_logprobs\": 2, \"stop\": \"y\", \"stop_token_ids\": [8], "
           "\"ignore_eos\": true}\n"
           "{\"prompt\": \"a\", \"stop\": [\"y\", \"z\"]}"),
      encoder(), limits, all);
  ASSERT_EQ(lines.size(), 3u);
  EXPECT_EQ(lines[0].options.n, 4);
  EXPECT_EQ(lines[0].options.params.top_k, 7);
  EXPECT_EQ(lines[0].options.params.stop_strings, (std::vector<std::string>{"x"}));
  const auto& p = lines[1].options.params;
  EXPECT_EQ(lines[1].options.n, 2);
  EXPECT_TRUE(p.max_tokens == 9 && p.min_tokens == 3 && p.temperature == 0.5 && p.top_p == 0.25 && p.top_k == -1 && p.min_p == 1);
  EXPECT_TRUE(p.repetition_penalty == 1.5 && p.presence_penalty == -0.5 && p.frequency_penalty == 0.75 && p.top_logprobs == 2);
  EXPECT_EQ(p.logit_bias, (std::vector<std::pair<std::int32_t, float>>{{5, -2.5f}, {0, 100.0f}}));
  EXPECT_EQ(p.allowed_ids, (std::vector<std::int32_t>{3, 199}));
  EXPECT_EQ(p.stop_ids, (std::vector<std::int32_t>{8}));
  EXPECT_EQ(p.stop_strings, (std::vector<std::string>{"y"}));
  EXPECT_TRUE(p.ignore_eos);
  EXPECT_EQ(lines[2].options.params.stop_strings, (std::vector<std::string>{"y", "z"}));
  EXPECT_EQ(lines[2].options.n, 4);
}

TEST_F(requests, a_bad_generate_line_is_named) {
  const std::pair<const char*, const char*> cases[] = {
      {"{\"prompt\": \"a\"", "not JSON"},
      {"nonsense", "not JSON"},
      {"   ", "not JSON"},
      {"{\"prompt\": \"\\ud800\"}", "not JSON"},
      {"{\"prompt\": \"\xff\"}", "not JSON"},
      {"{\"seed\": 1e999, \"prompt\": \"a\"}", "not JSON"},
      {"[1, 2]", "object expected"},
      {"{}", "exactly one"},
      {"{\"seed\": 1}", "exactly one"},
      {"{\"prompt\": \"a\", \"input_ids\": [1]}", "prompt and input_ids"},
      {"{\"prompt\": \"a\", \"temprature\": 1}", "unknown key \"temprature\""},
      {"{\"prompt\": \"a\", \"temperature\": \"1\"}", "\"temperature\" must be a number, found \"1\""},
      {"{\"prompt\": \"a\", \"temperature\": -1}", "temperature is -1"},
      {"{\"prompt\": \"a\", \"n\": 0}", "\"n\" is 0; it must be from 1"},
      {"{\"prompt\": \"a\", \"n\": 1.5}", "\"n\" must be an integer, found 1.5"},
      {"{\"prompt\": \"a\", \"max_tokens\": 18446744073709551615}", "too large"},
      {"{\"prompt\": \"a\", \"min_tokens\": 129}", "min_tokens is 129"},
      {"{\"prompt\": \"a\", \"top_p\": null}", "found null"},
      {"{\"prompt\": \"a\", \"top_k\": -2}", "top_k is -2"},
      {"{\"prompt\": \"a\", \"repetition_penalty\": 0}", "repetition_penalty is 0"},
      {"{\"prompt\": \"a\", \"presence_penalty\": 3}", "presence_penalty is 3"},
      {"{\"prompt\": \"a\", \"logit_bias\": [1]}", "\"logit_bias\" must be an object"},
      {"{\"prompt\": \"a\", \"logit_bias\": {\"x\": 1}}", "is not ID:BIAS"},
      {"{\"prompt\": \"a\", \"logit_bias\": {\"07\": 1}}", "is not ID:BIAS"},
      {"{\"prompt\": \"a\", \"logit_bias\": {\"7\": \"1\"}}", "of token 7 is \"1\""},
      {"{\"prompt\": \"a\", \"logit_bias\": {\"200\": 1}}", "the id 200; ids are 0 to 199"},
      {"{\"prompt\": \"a\", \"logit_bias\": {\"7\": 101}}", "logit_bias is 101"},
      {"{\"prompt\": \"a\", \"allowed_token_ids\": []}", "is empty; leave it out"},
      {"{\"prompt\": \"a\", \"allowed_token_ids\": [200]}", "the id 200"},
      {"{\"prompt\": \"a\", \"allowed_token_ids\": [-1]}", "has -1 in it"},
      {"{\"prompt\": \"a\", \"top_logprobs\": 2000}", "top_logprobs is 2000"},
      {"{\"prompt\": \"a\", \"stop\": 1}", "a text or a list of texts, found 1"},
      {"{\"prompt\": \"a\", \"stop\": [1]}", "has 1 in it"},
      {"{\"prompt\": \"a\", \"stop\": [\"\"]}", "a stop string is empty"},
      {"{\"prompt\": \"a\", \"ignore_eos\": 1}", "true or false, found 1"},
      {"{\"prompt\": 3}", "\"prompt\" must be a string, found number"},
      {"{\"prompt\": null}", "found null"},
      {"{\"prompt\": \"\"}", "no token"},
      {"{\"prompt\": \"abcdefghijk\"}", "no room"},
      {"{\"prompt\": \"\xc3\xa9\"}", "$accepted"}, // 195 and 169 are in the vocabulary
      {"{\"prompt\": \"\xe2\x82\xac\"}", "outside the model's vocabulary"},
      {"{\"prompt\": \"a\", \"seed\": -1}", "\"seed\""},
      {"{\"prompt\": \"a\", \"seed\": 1.5}", "\"seed\""},
      {"{\"prompt\": \"a\", \"seed\": \"1\"}", "\"seed\""},
      {"{\"prompt\": \"a\", \"seed\": [1]}", "found array"},
      {"{\"input_ids\": []}", "no token"},
      {"{\"input_ids\": \"1\"}", "list of token ids"},
      {"{\"input_ids\": [1, 200]}", "input_ids[1] is 200; it must be an integer from 0 to 199"},
      {"{\"input_ids\": [-1]}", "input_ids[0] is -1"},
      {"{\"input_ids\": [1.0]}", "input_ids[0] is 1.0"},
      {"{\"input_ids\": [true]}", "input_ids[0] is true"},
      {"{\"input_ids\": [[1]]}", "input_ids[0] is array"},
      {"{\"input_ids\": [99999999999999999999]}", "input_ids[0]"},
      {"{\"input_ids\": [1,1,1,1,1,1,1,1,1,1,1,1]}", "12 tokens and leaves no room"},
      {"{\"input_ids\": [1,1,1,1,1,1,1,1,1,1,1]}", "$accepted"},
      {"{\"messages\": []}", "empty"},
      {"{\"messages\": {}}", "found object"},
      {"{\"messages\": [3]}", "messages[0] must be an object"},
      {"{\"messages\": [{\"content\": \"a\"}]}", "messages[0] needs a string \"role\""},
      {"{\"messages\": [{\"role\": 1, \"content\": \"a\"}]}", "messages[0] needs a string \"role\""},
      {"{\"messages\": [{\"role\": \"user\"}]}", "messages[0] needs a \"content\""},
      {"{\"messages\": [{\"role\": \"user\", \"content\": 7}]}", "messages[0] needs a \"content\""},
      {"{\"messages\": [{\"role\": \"tool\", \"content\": \"a\"}]}", "chat template: no tools"},
  };
  for (const auto& [bad, reason] : cases) {
    SCOPED_TRACE(bad);
    const auto in = file("{\"prompt\": \"fine\"}\n\n" + std::string(bad) + "\n{\"prompt\": \"fine\"}\n");
    const auto said = refusal([&] { read_generate_lines(in, encoder(), limits); });
    if (reason[0] == '$') {
      EXPECT_EQ(said, reason + 1);
      continue;
    }
    EXPECT_EQ(said.find(in.string() + ":3: "), 0u) << said;
    EXPECT_NE(said.find(reason), std::string::npos) << said;
  }
}

TEST_F(requests, messages_without_a_template_are_refused) {
  auto plain = encoder();
  plain.render = nullptr;
  const auto in = file("{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}]}\n");
  EXPECT_NE(refusal([&] { read_generate_lines(in, plain, limits); }).find(":1: \"messages\" needs a chat template"), std::string::npos);
}

TEST_F(requests, files_without_lines_or_absent_are_refused) {
  const auto in = file("\n\n");
  EXPECT_NE(refusal([&] { read_generate_lines(in, encoder(), limits); }).find("no line"), std::string::npos);
  EXPECT_NE(refusal([&] { read_score_lines(in, limits); }).find("no line"), std::string::npos);
  EXPECT_NE(refusal([&] { read_score_lines(dir_ / "absent", limits); }).find("absent"), std::string::npos);
}

TEST_F(requests, score_lines) {
  const auto lines =
      read_score_lines(file("{\"input_ids\": [5, 6, 7]}\n{\"from\": 3, \"input_ids\": [5, 6, 7]}\n{\"input_ids\": [4]}\n"), limits);
  ASSERT_EQ(lines.size(), 3u);
  EXPECT_EQ(lines[0].ids, (std::vector<std::int32_t>{5, 6, 7}));
  EXPECT_EQ(lines[0].from, 1);
  EXPECT_EQ(lines[1].from, 3);
  EXPECT_EQ(lines[2].from, 1);
}

TEST_F(requests, a_bad_score_line_is_named) {
  const std::pair<const char*, const char*> cases[] = {
      {"{\"from\": 1}", "no key \"input_ids\""},
      {"{\"input_ids\": []}", "empty"},
      {"{\"input_ids\": [200]}", "input_ids[0] is 200"},
      {"{\"input_ids\": [1,1,1,1,1,1,1,1,1,1,1,1]}", "$accepted"},
      {"{\"input_ids\": [1,1,1,1,1,1,1,1,1,1,1,1,1]}", "max_position_embeddings is 12"},
      {"{\"input_ids\": [1, 2], \"from\": 0}", "\"from\" is 0"},
      {"{\"input_ids\": [1, 2], \"from\": 3}", "from 1 to the number of ids, 2"},
      {"{\"input_ids\": [1, 2], \"from\": 1.0}", "\"from\" is 1.0"},
      {"{\"input_ids\": [1, 2], \"from\": []}", "\"from\" is array"},
      {"{\"input_ids\": [1, 2], \"start\": 1}", "unknown key \"start\""},
  };
  for (const auto& [bad, reason] : cases) {
    SCOPED_TRACE(bad);
    const auto in = file(std::string(bad) + "\n");
    const auto said = refusal([&] { read_score_lines(in, limits); });
    if (reason[0] == '$')
      EXPECT_EQ(said, reason + 1);
    else
      EXPECT_TRUE(said.find(in.string() + ":1: ") == 0 && said.find(reason) != std::string::npos) << said;
  }
}

TEST_F(requests, lines_are_there_once_written) {
  const auto path = file("old\n");
  line_file out(path);
  out.write("a\n");
  EXPECT_EQ(read_file(path), "a\n");
  out.write("b\n");
  EXPECT_EQ(read_file(path), "a\nb\n");
  out.close();
}

TEST_F(requests, output_that_cannot_be_written_is_an_io_error) {
  const auto code_of = [](const std::function<void()>& f) {
    try {
      f();
    } catch (const error& e) {
      return e.code();
    }
    return errc::cancelled;
  };
  EXPECT_EQ(code_of([&] { line_file{dir_ / "no" / "such"}; }), errc::io);
  EXPECT_EQ(code_of([&] { line_file{"/dev/full"}.write("x\n"); }), errc::io);
  int ends[2];
  ASSERT_EQ(::pipe(ends), 0);
  line_file gone("/proc/self/fd/" + std::to_string(ends[1]));
  ::close(ends[0]);
  EXPECT_EQ(code_of([&] { gone.write("x\n"); }), errc::io);
  ::close(ends[1]);
}

TEST(json_list, floats_come_back_bit_for_bit) {
  std::vector<float> values = {0.0f, -1.0f, -0.333333343f, -1.17549435e-38f, -87.3365479f, -1e-45f};
  for (std::uint32_t i = 1; i < 2000; ++i)
    values.push_back(-1.0f / float(i * 7919) * float(i % 13));
  EXPECT_EQ(nlohmann::json::parse(json_list(values)).get<std::vector<float>>(), values);
  EXPECT_EQ(json_list(std::vector<float>{-0.1f}), "[-0.100000001]");
  EXPECT_EQ(json_list(std::vector<std::int32_t>{}), "[]");
  EXPECT_EQ(json_list(std::vector<std::int32_t>{3, -4}), "[3, -4]");
}

TEST(json_text, is_json_whatever_the_bytes) {
  EXPECT_EQ(json_text("a\"\n\xc3\xa9"), "\"a\\\"\\n\xc3\xa9\"");
  EXPECT_EQ(json_text("a\xff"
                      "b"),
            "\"a\xef\xbf\xbd"
            "b\"");
}

} // namespace
} // namespace troupe
