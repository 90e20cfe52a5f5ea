#include "experience/records.hpp"
#include "experience/test_util.hpp"
#include <bit>
#include <cmath>
#include <fstream>
#include <limits>
#include <random>
#include <rapidcheck/gtest.h>

namespace troupe {
namespace {

std::string text_of_file(const std::filesystem::path& file) {
  std::ifstream in(file, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

scored_group example() {
  scored_group g;
  g.group.key = {12, 3, false};
  g.group.version = {0, 11};
  g.group.source = 5;
  g.group.prompt_ids = {1, 2};
  g.group.samples = {{{7, 8}, {-0.1f, -2.0f}, {{0, 11}, {0, 11}}, finish_reason::stop},
                     {{9, 10}, {-1e-7f, -3.5f}, {{0, 11}, {0, 12}}, finish_reason::length},
                     {{}, {}, {}, finish_reason::abort}};
  g.answer = "7";
  g.texts = {"a \"b\"\n\xc3\xa9", "", "x"};
  g.rewards = {1, 0.1, 0};
  g.advantages = {1.5, -0.30000000000000004, 0};
  return g;
}

TEST(records, a_line_is_as_the_interface_says) {
  const temporary_directory dir;
  write_rollouts(dir.path(), 12, {example()});
  EXPECT_EQ(rollouts_file(dir.path(), 12).filename(), "step-000012.jsonl");
  EXPECT_EQ(
      text_of_file(rollouts_file(dir.path(), 12)),
      R"({"step": 12, "index": 3, "sample": 0, "source": 5, "input_ids": [1, 2], "output_ids": [7, 8], "logprobs": [-0.100000001, -2], )"
      R"("text": "a \"b\"\n)"
      "\xc3\xa9"
      R"(", "answer": "7", "reward": 1, "advantage": 1.5, "weights_version": 11, "finish_reason": "stop"})"
      "\n"
      R"({"step": 12, "index": 3, "sample": 1, "source": 5, "input_ids": [1, 2], "output_ids": [9, 10], "logprobs": [-1.00000001e-07, -3.5], )"
      R"("text": "", "answer": "7", "reward": 0.1, "advantage": -0.30000000000000004, "weights_version": [11, 12], "finish_reason": "length"})"
      "\n"
      R"({"step": 12, "index": 3, "sample": 2, "source": 5, "input_ids": [1, 2], "output_ids": [], "logprobs": [], "text": "x", )"
      R"("answer": "7", "reward": 0, "advantage": 0, "weights_version": 11, "finish_reason": "abort"})"
      "\n");
  EXPECT_EQ(read_rollouts(dir.path(), 12), (std::vector<scored_group>{example()}));
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(dir.path() / "rollouts"), {}), 1); // nothing is left beside
}

TEST(records, an_incarnation_does_not_show) {
  const temporary_directory a, b;
  scored_group redone = example();
  redone.group.version.incarnation = 2;
  for (sample& s : redone.group.samples)
    for (weights_version& v : s.versions)
      v.incarnation = 2;
  write_rollouts(a.path(), 12, {example()});
  write_rollouts(b.path(), 12, {redone});
  EXPECT_EQ(text_of_file(rollouts_file(a.path(), 12)), text_of_file(rollouts_file(b.path(), 12)));
}

TEST(records, bits_come_back) {
  std::mt19937_64 random(3);
  scored_group g = example();
  g.group.samples.resize(1);
  g.texts.resize(1);
  sample& s = g.group.samples[0];
  s = {};
  for (float f :
       {0.0f, -0.0f, std::numeric_limits<float>::denorm_min(), std::numeric_limits<float>::max(), -std::numeric_limits<float>::min()})
    s.logprobs.push_back(f);
  while (s.logprobs.size() < 5000)
    if (const float f = std::bit_cast<float>(std::uint32_t(random())); std::isfinite(f))
      s.logprobs.push_back(f);
  s.output_ids.assign(s.logprobs.size(), -1);
  s.versions.assign(s.logprobs.size(), {0, 11});
  for (int i = 0; i < 50;) {
    const double x = std::bit_cast<double>(random()), y = std::bit_cast<double>(random());
    if (!std::isfinite(x) || !std::isfinite(y))
      continue;
    ++i;
    g.rewards = {x};
    g.advantages = {y};
    const temporary_directory dir;
    write_rollouts(dir.path(), 12, {g});
    const scored_group back = read_rollouts(dir.path(), 12).at(0);
    ASSERT_EQ(std::bit_cast<std::uint64_t>(back.rewards[0]), std::bit_cast<std::uint64_t>(x));
    ASSERT_EQ(std::bit_cast<std::uint64_t>(back.advantages[0]), std::bit_cast<std::uint64_t>(y));
    for (std::size_t k = 0; k < s.logprobs.size(); ++k)
      ASSERT_EQ(std::bit_cast<std::uint32_t>(back.group.samples[0].logprobs[k]), std::bit_cast<std::uint32_t>(s.logprobs[k]));
    s.logprobs.resize(3);
    s.output_ids.resize(3);
    s.versions.resize(3);
  }
}

TEST(records, without_advantages_there_is_no_key) {
  const temporary_directory dir;
  scored_group g = example();
  g.advantages.clear();
  write_rollouts(dir.path(), 12, {g, [] {
                                    auto h = example();
                                    h.group.key.index = 4;
                                    return h;
                                  }()});
  const auto back = read_rollouts(dir.path(), 12);
  ASSERT_EQ(back.size(), 2u);
  EXPECT_TRUE(back[0].advantages.empty());
  EXPECT_EQ(back[1].advantages, example().advantages);
}

TEST(records, what_cannot_be_written) {
  const temporary_directory dir;
  scored_group g = example();
  g.rewards[1] = std::numeric_limits<double>::quiet_NaN();
  expect_error(errc::failed, {"step 12", "index 3", "sample 1"}, [&] { write_rollouts(dir.path(), 12, {g}); });
  EXPECT_FALSE(std::filesystem::exists(rollouts_file(dir.path(), 12)));
  g = example();
  g.texts.pop_back();
  expect_error(errc::bad_shape, {"3 samples, 2 texts"}, [&] { write_rollouts(dir.path(), 12, {g}); });
  const std::string file = dir.write("plain", "x");
  expect_error(errc::io, {"plain/rollouts"}, [&] { write_rollouts(file, 12, {example()}); });
}

TEST(records, damaged_files_are_named_by_line) {
  const temporary_directory dir;
  write_rollouts(dir.path(), 12, {example()});
  const std::string whole = text_of_file(rollouts_file(dir.path(), 12));
  const std::vector<std::tuple<std::string, std::string, std::string>> cases = {
      {"\"step\": 12", "\"step\": 13", ":1: "},
      {"\"sample\": 1", "\"sample\": 2", ":2: "},
      {"\"sample\": 0", "\"sample\": -1", ":1: "},
      {"[7, 8]", "[7]", "1 output_ids, 2 logprobs"},
      {"[7, 8]", "[7, 2147483648]", "32 bits"},
      {"[11, 12]", "[11]", "1 versions"},
      {"\"stop\"", "\"done\"", "finish_reason"},
      {"\"reward\": 1", "\"reward\": \"1\"", "reward"},
      {"\"logprobs\": [-0.100000001", "\"logprobs\": [1e300", "finite"},
      {"\"advantage\": 1.5, ", "", "on every line"},
      {"\"text\": \"x\", ", "", "no key \"text\""},
      {"\"answer\": \"7\"", "\"answer\": \"8\"", ":2: "},
      {"}\n", "\n", "not JSON"}};
  for (const auto& [from, to, part] : cases) {
    std::string text = whole;
    text.replace(text.find(from), from.size(), to);
    std::ofstream(rollouts_file(dir.path(), 12), std::ios::binary) << text;
    expect_error(errc::bad_input, {"step-000012.jsonl:", part}, [&] { read_rollouts(dir.path(), 12); });
  }
  expect_error(errc::bad_input, {"step-000099.jsonl"}, [&] { read_rollouts(dir.path(), 99); });
}

} // namespace
} // namespace troupe
