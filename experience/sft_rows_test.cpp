#include "experience/sft_rows.hpp"
#include "experience/test_util.hpp"
#include <nlohmann/json.hpp>
#include <rapidcheck/gtest.h>

namespace troupe {
namespace {

using json = nlohmann::ordered_json;

constexpr std::int32_t end_id = 0; // spelled ~

/// A token a byte, 256 in front where special tokens are added; '~' is the end token.
std::vector<std::int32_t> encoded(std::string_view text, bool add_special_tokens = false) {
  std::vector<std::int32_t> ids;
  if (add_special_tokens && !text.empty())
    ids.push_back(256);
  for (const unsigned char c : text)
    ids.push_back(c == '~' ? end_id : c);
  return ids;
}

/// "U:hello~\nA:hi~\n"; with the generation prompt "A:" behind it.
std::string plain_template(const json& messages, bool add_generation_prompt) {
  std::string out;
  for (const json& m : messages)
    out += (m["role"] == "assistant" ? "A:" : m["role"] == "system" ? "S:" : "U:") + m["content"].get<std::string>() + "~\n";
  return out + (add_generation_prompt ? "A:" : "");
}

/// As some templates do: what the assistant thought is left out once the conversation has gone on.
std::string forgetful_template(const json& messages, bool add_generation_prompt) {
  json kept = messages;
  for (std::size_t i = 0; i + 1 < kept.size(); ++i)
    if (const auto text = kept[i]["content"].get<std::string>(); kept[i]["role"] == "assistant" && text.starts_with("hmm "))
      kept[i]["content"] = text.substr(4);
  return plain_template(kept, add_generation_prompt);
}

/// The learnt tokens as text, runs of neighbours apart by '|'.
std::string learnt(const sft_row& row) {
  std::string out;
  for (std::size_t i = 0; i < row.targets.size(); ++i) {
    if (i > 0 && row.targets[i] != row.targets[i - 1] + 1)
      out += '|';
    const auto id = row.ids[std::size_t(row.targets[i])];
    out += id == end_id ? '~' : char(id);
  }
  return out;
}

data_section limits(std::int64_t prompt = 60, std::int64_t response = 40) {
  data_section data;
  data.max_prompt_length = prompt;
  data.max_response_length = response;
  return data;
}

class sft_rows : public testing::Test {
protected:
  sft_encoder encoder(bool with_template = true) const {
    sft_encoder out;
    out.prompts.encode = encoded;
    out.end_tokens = {end_id, 99};
    if (with_template) {
      out.render = plain_template;
      out.prompts.render = [](const json& messages) { return plain_template(messages, true); };
    }
    return out;
  }
  std::vector<sft_row> load(std::string_view text, const data_section& data = limits(), bool with_template = true) {
    return load_sft_rows({dir_.write("data.jsonl", text)}, data, encoder(with_template));
  }
  temporary_directory dir_;
};

TEST_F(sft_rows, what_is_learnt) {
  data_section always = limits(), never = limits();
  always.chat_template = "always";
  never.chat_template = "never";
  struct {
    const char* line;
    data_section data;
    const char *ids, *learnt;
    bool special;
  } const cases[] = {
      {R"({"prompt": "2+2=", "response": "4"})", limits(), "2+2=4~", "4~", true},
      {R"({"prompt": "2+2=", "response": "4"})", never, "2+2=4~", "4~", true},
      {R"({"prompt": "2+2=", "response": "4"})", always, "U:2+2=~\nA:4~", "4~", false},
      {R"({"prompt": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}], "response": "d"})",
       limits(), "U:a~\nA:b~\nU:c~\nA:d~", "d~", false}, // what the prompt holds is given
      {R"({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "bcd"}]})", limits(), "U:a~\nA:bcd~", "bcd~",
       false},
      {R"({"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"},
          {"role": "user", "content": "c"}, {"role": "assistant", "content": "d"}, {"role": "user", "content": "never answered"}]})",
       limits(), "S:s~\nU:a~\nA:b~\nU:c~\nA:d~", "b~|d~", false},
      {R"({"messages": [{"role": "assistant", "content": "hello"}], "prompt": 5})", limits(), "A:hello~", "hello~", false},
  };
  for (const auto& c : cases) {
    std::string line = c.line;
    line.erase(std::remove(line.begin(), line.end(), '\n'), line.end());
    const auto rows = load(line, c.data);
    ASSERT_EQ(rows.size(), 1U);
    EXPECT_EQ(rows[0].ids, encoded(c.ids, c.special)) << line;
    EXPECT_EQ(learnt(rows[0]), c.learnt) << line;
  }
}

TEST_F(sft_rows, a_template_that_marks_what_the_assistant_says_decides_what_is_learnt) {
  const auto chat = chat_template::parse("{% for m in messages %}{{ m.role[0] }}:{% if m.role == 'assistant' %}{% generation %}"
                                         "{{ m.content if loop.last else m.content[-1] }}~{% endgeneration %}{% else %}"
                                         "{{ m.content }}~{% endif %}{{ '\n' }}{% endfor %}",
                                         json::object(), "t.jinja");
  sft_encoder marked = encoder();
  marked.marked = [&](const json& messages) { return chat->render_marked(messages, false); };
  const auto row = [&](const char* messages) {
    return load_sft_rows({dir_.write("data.jsonl", std::string(R"({"messages": )") + messages + "}")}, limits(), marked).at(0);
  };
  const auto said = row(R"([{"role": "user", "content": "a"}, {"role": "assistant", "content": "bc"}, {"role": "user", "content": "d"}, )"
                        R"({"role": "assistant", "content": "ef"}])");
  EXPECT_EQ(said.ids, encoded("u:a~\na:c~\nu:d~\na:ef~"));
  EXPECT_EQ(learnt(said), "c~|ef~");
  EXPECT_THROW(row(R"([{"role": "user", "content": "a"}])"), error);
}

TEST_F(sft_rows, a_template_without_end_tokens_is_learnt_whole) {
  sft_encoder without = encoder();
  without.end_tokens.clear();
  const auto file = dir_.write("data.jsonl", R"({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]})"
                                             "\n"
                                             R"({"prompt": "a", "response": "b"})");
  const auto rows = load_sft_rows({file}, limits(), without);
  EXPECT_EQ(learnt(rows.at(0)), "b~\n");
  EXPECT_EQ(learnt(rows.at(1)), "b");
}

TEST_F(sft_rows, keys_are_as_data_names_them) {
  data_section data = limits();
  data.messages_key = "chat";
  data.prompt_key = "q";
  data.response_key = "r";
  const auto rows = load("{\"q\": \"x\", \"r\": \"y\"}\n\n{\"chat\": [{\"role\": \"user\", \"content\": \"a\"}, {\"role\": \"assistant\", "
                         "\"content\": \"b\"}]}\n",
                         data);
  ASSERT_EQ(rows.size(), 2U);
  EXPECT_EQ(rows[1].source, 1U);
  EXPECT_EQ(learnt(rows[0]) + learnt(rows[1]), "y~b~");
}

TEST_F(sft_rows, bad_rows_are_named) {
  data_section never = limits();
  never.chat_template = "never";
  struct {
    const char *line, *text;
    data_section data = limits();
    bool with_template = true;
  } const cases[] = {
      {"{\"a\": 1}", ":2: no key \"messages\", and no \"prompt\" with \"response\""},
      {"{\"prompt\": \"a\"}", ":2: no key \"response\""},
      {"{\"prompt\": \"a\", \"response\": \"\"}", ":2: \"response\" is empty"},
      {"{\"prompt\": \"a\", \"response\": 4}", ":2: \"response\" must be a string, found number"},
      {"{\"prompt\": 7, \"response\": \"b\"}", ":2: \"prompt\" must be a string or a list of messages, found number"},
      {"{\"prompt\": \"\", \"response\": \"b\"}", ":2: the prompt encodes to no token"},
      {"{\"messages\": \"a\"}", ":2: \"messages\" must be a list of messages, found string"},
      {"{\"messages\": null}", ":2: \"messages\" must be a list of messages, found null"},
      {"{\"messages\": []}", ":2: \"messages\" is a list without messages"},
      {"{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}]}", ":2: \"messages\" holds no message of the role \"assistant\""},
      {"{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}, {\"role\": \"assistant\", \"content\": \"\"}]}",
       ":2: message 1 of \"messages\": the assistant says nothing"},
      {"{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}, {\"role\": \"assistant\"}]}",
       ":2: message 1 of \"messages\" needs a \"content\""},
      {"{\"messages\": [5]}", ":2: message 0 of \"messages\" must be an object"},
      {"{\"messages\": [{\"role\": \"assistant\", \"content\": \"a\"}]}", "needs a chat template, and the model has none", limits(), false},
      {"{\"messages\": [{\"role\": \"assistant\", \"content\": \"a\"}]}", "data.chat_template = \"never\" takes strings only", never},
      {"{\"prompt\": \"a\"", ":2: not JSON"},
      {"[1]", ":2: a JSON object expected, found array"},
      {"{\"prompt\": \"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\", \"response\": \"b\"}",
       ":2: the row has 43 tokens, data.max_prompt_length + data.max_response_length is 15", limits(10, 5)},
  };
  for (const auto& c : cases)
    expect_error(errc::bad_input, {c.text},
                 [&] { load("{\"prompt\": \"x\", \"response\": \"y\"}\n" + std::string(c.line), c.data, c.with_template); });
  expect_error(errc::bad_input, {"no rows"}, [&] { load("\n"); });
}

TEST_F(sft_rows, a_template_that_rewrites_the_past_is_refused_where_it_matters) {
  sft_encoder forgetful = encoder();
  forgetful.render = forgetful_template;
  const auto one = [&](const char* first, const char* then) {
    const json row = {
        {"messages",
         {{{"role", "user"}, {"content", "a"}}, {{"role", "assistant"}, {"content", first}}, {{"role", "user"}, {"content", then}}}}};
    return load_sft_rows({dir_.write("data.jsonl", row.dump())}, limits(), forgetful);
  };
  EXPECT_EQ(learnt(one("plain", "c").at(0)), "plain~");
  expect_error(errc::bad_input, {"data.jsonl:1: row 0", "otherwise once it is there"}, [&] { one("hmm yes", "c"); });
}

TEST_F(sft_rows, long_rows_are_refused_left_out_or_cut) {
  const std::string text =
      "{\"prompt\": \"abcdefgh\", \"response\": \"xyz\"}\n{\"prompt\": \"a\", \"response\": \"b\"}\n"; // 13 and 4 tokens
  data_section data = limits(6, 4);
  expect_error(errc::bad_input, {":1: the row has 13 tokens"}, [&] { load(text, data); });
  data.filter_overlong_prompts = true;
  const auto filtered = load(text, data);
  ASSERT_EQ(filtered.size(), 1U);
  EXPECT_EQ(filtered[0].source, 1U);
  expect_error(errc::bad_input, {"all 2 rows", "were filtered"}, [&] {
    data_section short_ones = data;
    short_ones.max_prompt_length = short_ones.max_response_length = 1;
    load(text, short_ones);
  });
  data.filter_overlong_prompts = false;
  data.truncation = "left";
  const auto left = load(text, data);
  EXPECT_EQ(left.at(0).ids, encoded("cdefghxyz~"));
  EXPECT_EQ(learnt(left.at(0)), "xyz~");
  data.truncation = "right";
  const auto right = load(text, data);
  EXPECT_EQ(right.at(0).ids, encoded("abcdefghx", true));
  EXPECT_EQ(learnt(right.at(0)), "x");
  data.max_prompt_length = 5;
  data.max_response_length = 3;
  expect_error(errc::bad_input, {":1: cut to 8 tokens the row has nothing to learn"}, [&] { load(text, data); });
}

RC_GTEST_PROP(sft_rows_property, every_turn_of_the_assistant_and_nothing_else_is_learnt, ()) {
  const auto turns = *rc::gen::inRange(1, 6);
  json messages = json::array();
  std::string wanted;
  for (int i = 0; i < turns; ++i) {
    const bool assistant = i + 1 == turns || *rc::gen::inRange(0, 2) == 1;
    std::string text(std::size_t(*rc::gen::inRange(1, 5)), char(*rc::gen::inRange('a', 'z')));
    messages.push_back({{"role", assistant ? "assistant" : "user"}, {"content", text}});
    if (assistant)
      wanted += (wanted.empty() ? "" : "|") + text + "~";
  }
  const temporary_directory dir;
  sft_encoder encoder;
  encoder.prompts.encode = encoded;
  encoder.end_tokens = {end_id};
  encoder.render = plain_template;
  const auto rows = load_sft_rows({dir.write("data.jsonl", json{{"messages", messages}}.dump())}, limits(), encoder);
  RC_ASSERT(learnt(rows.at(0)) == wanted);
  RC_ASSERT(rows.at(0).targets.back() + 1 == std::int32_t(rows.at(0).ids.size()));
}

} // namespace
} // namespace troupe
