#include "experience/reward.hpp"
#include "experience/test_util.hpp"
#include <rapidcheck/gtest.h>

namespace troupe {
namespace {

TEST(reward, last_number_of_a_text) {
  // Expected: Python's re.findall(r"-?[0-9]+(?:\.[0-9]+)?", re.sub(r"(?<=[0-9]),(?=[0-9])", "", text))[-1]
  const std::vector<std::pair<std::string_view, std::string_view>> cases = {{"", ""},
                                                                            {"none", ""},
                                                                            {"7", "7"},
                                                                            {"a + b = 7.", "7"},
                                                                            {"2 + 3 = 5", "5"},
                                                                            {"-5", "-5"},
                                                                            {"3-5", "-5"},
                                                                            {"3 - 5", "5"},
                                                                            {"--5", "-5"},
                                                                            {"1.5", "1.5"},
                                                                            {"1.2.3", "3"},
                                                                            {".5", "5"},
                                                                            {"1,234", "1234"},
                                                                            {"1, 2", "2"},
                                                                            {"1,2,3", "123"},
                                                                            {"1,234.50!", "1234.50"},
                                                                            {"5,", "5"},
                                                                            {",5", "5"},
                                                                            {"007", "007"},
                                                                            {"1e5", "5"},
                                                                            {"\xd9\xa3", ""},
                                                                            {"7\n", "7"},
                                                                            {"-", ""},
                                                                            {"12-", "12"},
                                                                            {"5 \xe2\x88\x92"
                                                                             "3",
                                                                             "3"},
                                                                            {"1.-2", "-2"},
                                                                            {"\xff"
                                                                             "9",
                                                                             "9"},
                                                                            {"1.5.", "1.5"}};
  for (const auto& [text, expected] : cases)
    EXPECT_EQ(last_number(text), expected) << text;
}

TEST(reward, numbers_are_compared_exactly) {
  const std::vector<std::pair<std::string_view, std::string_view>> equal = {
      {"7", "7.0"},     {"7", "007"}, {"0", "-0"},   {"0", "0.000"}, {"-1.50", "-01.5"},        {"100", "1e2"}, {"0.07", "7e-2"},
      {"1.20e1", "12"}, {"+5", "5"},  {".5", "0.5"}, {"5.", "5"},    {"1e999999", "10e999998"}, {"0e7", "0"},   {"0.1", "1E-1"}};
  for (const auto& [a, b] : equal)
    EXPECT_TRUE(same_number(a, b)) << a << " " << b;
  const std::vector<std::pair<std::string_view, std::string_view>> different = {{"7", "-7"},
                                                                                {"7", "70"},
                                                                                {"0.1", "0.10000000000000001"},
                                                                                {"9007199254740993", "9007199254740992"},
                                                                                {"1e2", "1e3"},
                                                                                {"", ""},
                                                                                {"-", "-"},
                                                                                {".", "."},
                                                                                {"a", "a"},
                                                                                {"1 ", "1"},
                                                                                {"1e", "1"},
                                                                                {"1e1000000", "1e1000000"},
                                                                                {"0x1", "1"},
                                                                                {"nan", "nan"},
                                                                                {"--1", "--1"},
                                                                                {"1e+-1", "0.1"}};
  for (const auto& [a, b] : different)
    EXPECT_FALSE(same_number(a, b)) << a << " " << b;
}

RC_GTEST_PROP(reward, integers_are_the_same_however_they_are_spelt, (std::int64_t n)) {
  const std::string text = std::to_string(n);
  RC_ASSERT(same_number(text, text + ".00"));
  RC_ASSERT(same_number(text, text + "0e-1"));
  RC_ASSERT(!same_number(text, std::to_string(std::uint64_t(n) + 1)));
}

RC_GTEST_PROP(reward, any_bytes_are_taken, (const std::string& text)) {
  const std::string found = last_number(text);
  RC_ASSERT(found.empty() == (text.find_first_of("0123456789") == std::string::npos));
  RC_ASSERT(found.empty() || same_number(found, found));
  const std::string_view inner = strip(text);
  RC_ASSERT(strip(inner) == inner);
}

TEST(reward, strip_is_pythons) {
  const std::vector<std::pair<std::string_view, std::string_view>> cases = {{"", ""},
                                                                            {" \t\r\n\v\f a b \x1c\x1d\x1e\x1f", "a b"},
                                                                            {"\xc2\xa0\xe3\x80\x80x\xe2\x80\xa8\xc2\x85", "x"},
                                                                            {"\xe2\x80\x8bx", "\xe2\x80\x8bx"},
                                                                            {"\xe2\x80\x80\xe2\x80\x8a", ""},
                                                                            {"x\xa0", "x\xa0"},
                                                                            {"\xe1\x9a\x80", ""},
                                                                            {"\xe2\x81\x9f"
                                                                             "a\xe2\x80\xaf",
                                                                             "a"}};
  for (const auto& [text, expected] : cases)
    EXPECT_EQ(strip(text), expected);
}

struct reward_case {
  const char *function, *text, *answer;
  finish_reason finish;
  double expected;
};

TEST(reward, table_of_rewards) {
  const auto stop = finish_reason::stop, length = finish_reason::length, abort = finish_reason::abort;
  const std::vector<reward_case> cases = {{"last_number", "2 + 5 = 7", "7", stop, 1},
                                          {"last_number", "2 + 5 = 7", "7", length, 0},
                                          {"last_number", "7", "7", abort, 0},
                                          {"last_number", "7.0", "7", stop, 1},
                                          {"last_number", "1,000", "1000", stop, 1},
                                          {"last_number", "1000", "1,000", stop, 1},
                                          {"last_number", "7 or 8", "7", stop, 0},
                                          {"last_number", "seven", "7", stop, 0},
                                          {"last_number", "", "7", stop, 0},
                                          {"last_number", "0.1", "1e-1", stop, 1},
                                          {"last_number", "-7", "7", stop, 0},
                                          {"last_number", "7", " 7\n", stop, 1},
                                          {"exact_match", "7", "7", stop, 1},
                                          {"exact_match", " 7\n", "7", stop, 1},
                                          {"exact_match", "7", "7", length, 1},
                                          {"exact_match", "7.0", "7", stop, 0},
                                          {"exact_match", "", "7", stop, 0},
                                          {"exact_match", " ", "", stop, 1},
                                          {"exact_match", "Paris\xc2\xa0", "Paris", stop, 1}};
  for (const reward_case& c : cases) {
    reward_section section;
    section.function = c.function;
    const auto reward = make_reward(section);
    EXPECT_EQ((*reward)({c.text, c.answer, c.finish}), c.expected) << c.function << ": " << c.text << " / " << c.answer;
    EXPECT_EQ(reward->objection(c.answer), "");
  }
}

TEST(reward, answers_that_nothing_can_earn_are_objected_to) {
  reward_section section;
  section.function = "last_number";
  for (const char* answer : {"", "seven", "1 2", "true", "1/2"})
    EXPECT_NE(make_reward(section)->objection(answer), "") << answer;
  section.function = "exact_match";
  for (const char* answer : {" 7", "7\n", "\xc2\xa0"})
    EXPECT_NE(make_reward(section)->objection(answer), "") << answer;
}

TEST(reward, an_unknown_name_is_refused_with_the_known_ones) {
  reward_section section;
  section.function = "lastnumber";
  expect_error(errc::bad_config, {"reward.function", "lastnumber", "last_number", "exact_match"}, [&] { make_reward(section); });
  EXPECT_EQ(reward_names(), (std::vector<std::string>{"last_number", "exact_match"}));
}

} // namespace
} // namespace troupe
