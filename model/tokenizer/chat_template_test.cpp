#include "core/error.hpp"
#include "core/files.hpp"
#include "model/tokenizer/chat_template.hpp"
#include <gtest/gtest.h>

namespace {

using json = nlohmann::ordered_json;

const json& reference() {
  static const json all = json::parse(troupe::read_file(TROUPE_SOURCE_DIR "/tests/reference/chat/cases.json"));
  return all;
}

// What a template gives, or the error's code and text.
std::string render(const std::string& source, const json& messages, bool add, const json& variables) {
  try {
    return troupe::chat_template::parse(source, json::object(), "t.jinja", reference()["now"])->render(messages, add, variables);
  } catch (const troupe::error& e) {
    return std::string(e.code() == troupe::errc::bad_input     ? "bad_input: "
                       : e.code() == troupe::errc::unsupported ? "unsupported: "
                                                               : "other: ") +
           e.what();
  }
}

TEST(chat_template, templates_render_as_in_transformers) {
  std::size_t compared = 0;
  for (const auto& c : reference()["cases"]) {
    const auto got = render(reference()["templates"][c["template"].get<std::string>()],
                            reference()["conversations"][c["conversation"].get<std::size_t>()], c["add"], c["variables"]);
    if (c.contains("text"))
      EXPECT_EQ(got, c["text"]) << c["template"] << " " << c["conversation"];
    else
      EXPECT_TRUE(got.starts_with("bad_input: t.jinja")) << got << " for " << c.dump();
    ++compared;
  }
  EXPECT_GE(compared, 500u);
}

TEST(chat_template, what_the_assistant_says_is_marked_as_in_transformers) {
  std::size_t marked = 0;
  for (const auto& c : reference()["cases"]) {
    if (!c.contains("text"))
      continue;
    const auto tmpl = troupe::chat_template::parse(reference()["templates"][c["template"].get<std::string>()], json::object(), "t.jinja",
                                                   reference()["now"]);
    const auto got = tmpl->render_marked(reference()["conversations"][c["conversation"].get<std::size_t>()], c["add"], c["variables"]);
    EXPECT_EQ(json(got.assistant), c.value("spans", json::array())) << c["template"] << " " << c["conversation"];
    EXPECT_TRUE(got.assistant.empty() || tmpl->marks());
    marked += got.assistant.size();
  }
  EXPECT_GE(marked, 20u);
}

TEST(chat_template, the_date_is_fixed) {
  const auto tmpl = troupe::chat_template::parse("{{ strftime_now('%Y-%m-%d') }}", json::object(), "t.jinja", 1000000000);
  EXPECT_EQ(tmpl->render(json::array(), false), "2001-09-09");
  EXPECT_FALSE(tmpl->marks());
}

TEST(chat_template, expressions_and_blocks_give_what_jinja_gives) {
  const auto& messages = reference()["conversations"][1];
  for (const auto& c : reference()["snippets"]) {
    const auto got = render(c["source"], messages, false, json::object());
    if (c.contains("text"))
      EXPECT_EQ(got, c["text"]) << c["source"];
    else
      EXPECT_TRUE(got.starts_with("bad_input: t.jinja:1: ") || got.starts_with("unsupported: t.jinja:1: "))
          << got << " for " << c["source"];
  }
}

TEST(chat_template, unsupported_constructs_are_named_with_their_line) {
  const struct {
    const char *source, *construct;
  } cases[] = {
      {"\n{% include 'x' %}", "t.jinja:2: {% include %}"},
      {"\n\n{{ 1 | pprint }}", "t.jinja:3: the filter \"pprint\""},
      {"{{ 1 is filter }}", "t.jinja:1: the test \"filter\""},
      {"{{ 'a'.casefold() }}", "t.jinja:1: the method str.casefold"},
      {"{{ [1].append(2) }}", "t.jinja:1: the method list.append"},
      {"{{ 'a%e' % 1 }}", "t.jinja:1: the conversion %e of a format"},
      {"{{ '{:>3}'.format(1) }}", "t.jinja:1: a format specification in str.format"},
      {"{{ [{'a': 1}] | groupby('a') }}", "t.jinja:1: the filter \"groupby\""},
      {"\n{{ {'a': 1}.items() }}", "t.jinja:2: the text of a dict view"},
      {"{{ [[]] | sort(attribute='a,b') }}", "t.jinja:1: sort by more than one attribute"},
      {"{% macro m() %}{{ varargs }}{% endmacro %}{{ m() }}", "t.jinja:1: the name varargs"},
      {"{% macro m() %}{% endmacro %}\n\n{{ m.name }}", "t.jinja:3: an attribute of a function"},
      {"{{ ''.__class__ }}", "t.jinja:1: the attribute \"__class__\""},
      {"{{ 9223372036854775807 + 1 }}", "t.jinja:1: an integer beyond 64 bits"},
      {"{{ ('a' | safe) * 2 }}", "t.jinja:1: operator * on text that went through safe"},
  };
  for (const auto& c : cases) {
    const auto got = render(c.source, json::array(), false, json::object());
    EXPECT_TRUE(got.starts_with(std::string("unsupported: ") + c.construct)) << got;
  }
}

TEST(chat_template, work_depth_and_size_are_bounded) {
  const std::string many(20000, '(');
  const std::string deep_not = [] {
    std::string s;
    for (int i = 0; i < 5000; ++i)
      s += "not ";
    return s;
  }();
  std::string blocks, attributes = "x", sums = "1";
  for (int i = 0; i < 5000; ++i) {
    blocks += "{% if 1 %}";
    attributes += ".a";
    sums += "+1";
  }
  const std::string cases[] = {
      "{{ " + many + " }}",
      "{{ " + deep_not + "1 }}",
      blocks,
      "{{ " + attributes + " }}",
      "{{ " + sums + " }}",
      "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
      "{% for a in range(100000) %}{% for b in range(100000) %}x{% endfor %}{% endfor %}",
      "{{ 'x' * 9999999999 }}",
      "{{ '%9999999999d' % 1 }}",
      "{{ 'x'.center(9999999999) }}",
      "{% for a in range(100000) %}{{ '%1000000d' % 1 }}{% endfor %}",
      "{% for a in range(100000) %}{{ dict(*[dict(a=1)]) }}{{ range(*[0, 99999]) }}{% endfor %}",
      "{{ [0] * 9999999999 }}",
      "{% set ns = namespace(s='xxxxxxxx') %}{% for i in range(99) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
      "{% set ns = namespace(l=[1]) %}{% for i in range(99) %}{% set ns.l = ns.l + ns.l %}{% endfor %}",
      "{% set ns = namespace(l=[1]) %}{% for i in range(400) %}{% set ns.l = [ns.l] %}{% endfor %}{{ ns.l }}",
  };
  for (const auto& source : cases) {
    const auto got = render(source, json::array(), false, json::object());
    EXPECT_TRUE(got.starts_with("bad_input: ") || got.starts_with("unsupported: "))
        << got.substr(0, 200) << " for " << source.substr(0, 100);
  }
}

TEST(chat_template, is_read_from_a_model_directory) {
  const auto dir = std::filesystem::path(testing::TempDir()) / "chat_template_test";
  std::filesystem::remove_all(dir);
  std::filesystem::create_directories(dir);
  EXPECT_EQ(troupe::chat_template::load(dir), nullptr);
  troupe::write_file(dir / "tokenizer_config.json", R"({"chat_template": "config {{ bos_token }}{{ eos_token }}", "bos_token": "<s>",
                                                      "eos_token": {"content": "</s>", "lstrip": false}})");
  const auto messages = json::parse(R"([{"role": "user", "content": "x"}])");
  EXPECT_EQ(troupe::chat_template::load(dir)->render(messages, false), "config <s></s>");
  troupe::write_file(dir / "chat_template.jinja", "file {{ bos_token }}");
  EXPECT_EQ(troupe::chat_template::load(dir)->render(messages, false), "file <s>");
  troupe::write_file(dir / "tokenizer_config.json", "[]");
  EXPECT_THROW(troupe::chat_template::load(dir), troupe::error);
  std::filesystem::remove_all(dir);
}

// A template with a byte changed or cut parses and renders, or is refused; nothing else.
TEST(chat_template, mutated_templates_are_read_or_refused) {
  const auto& messages = reference()["conversations"][7];
  std::uint64_t state = 1;
  const auto random = [&](std::size_t n) {
    state = state * 6364136223846793005ull + 1442695040888963407ull;
    return static_cast<std::size_t>((state >> 33) % n);
  };
  const std::string bytes = "{}%#-+|.,()[]'\"\\ \n=~0az";
  std::size_t read = 0, refused = 0;
  for (const auto& [name, source] : reference()["templates"].items())
    for (int i = 0; i < 60; ++i) {
      auto text = source.get<std::string>();
      for (std::size_t n = 1 + random(3); n > 0; --n) {
        const auto at = random(text.size());
        if (random(4) == 0)
          text.erase(at, 1 + random(20));
        else
          text[at] = bytes[random(bytes.size())];
      }
      const auto got = render(text, messages, true, json::object());
      const bool error = got.starts_with("bad_input: ") || got.starts_with("unsupported: ");
      (error ? refused : read) += 1;
      EXPECT_FALSE(got.starts_with("other: ")) << got << " for " << text;
    }
  EXPECT_GT(read, 50u);
  EXPECT_GT(refused, 50u);
}

} // namespace
