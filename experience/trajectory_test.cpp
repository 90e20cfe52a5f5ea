#include "experience/test_util.hpp"
#include "experience/trajectory.hpp"
#include <bit>
#include <limits>
#include <random>
#include <rapidcheck/gtest.h>

namespace rc {
using namespace troupe;

template <>
struct Arbitrary<weights_version> {
  static Gen<weights_version> arbitrary() {
    return gen::build<weights_version>(gen::set(&weights_version::incarnation), gen::set(&weights_version::step));
  }
};
template <>
struct Arbitrary<sample> {
  static Gen<sample> arbitrary() {
    return gen::exec([] {
      sample s;
      const auto n = *gen::inRange<std::size_t>(0, 9);
      s.output_ids = *gen::container<std::vector<std::int32_t>>(n, gen::arbitrary<std::int32_t>());
      s.logprobs = *gen::container<std::vector<float>>(n, gen::arbitrary<float>());
      s.versions = *gen::container<std::vector<weights_version>>(n, gen::arbitrary<weights_version>());
      s.finish = *gen::element(finish_reason::stop, finish_reason::length, finish_reason::abort);
      return s;
    });
  }
};
template <>
struct Arbitrary<trajectory_group> {
  static Gen<trajectory_group> arbitrary() {
    return gen::build<trajectory_group>(
        gen::set(&trajectory_group::key,
                 gen::construct<group_key>(gen::arbitrary<std::uint32_t>(), gen::arbitrary<std::uint32_t>(), gen::arbitrary<bool>())),
        gen::set(&trajectory_group::version), gen::set(&trajectory_group::source), gen::set(&trajectory_group::prompt_ids),
        gen::set(&trajectory_group::samples));
  }
};
template <>
struct Arbitrary<scored_group> {
  static Gen<scored_group> arbitrary() {
    return gen::exec([] {
      scored_group g;
      g.group = *gen::arbitrary<trajectory_group>();
      g.answer = *gen::arbitrary<std::string>();
      const auto column = [n = g.group.samples.size()] { return *gen::arbitrary<bool>() ? n : 0; };
      g.texts = *gen::container<std::vector<std::string>>(column(), gen::arbitrary<std::string>());
      g.rewards = *gen::container<std::vector<double>>(column(), gen::arbitrary<double>());
      g.advantages = *gen::container<std::vector<double>>(column(), gen::arbitrary<double>());
      return g;
    });
  }
};
} // namespace rc

namespace troupe {
namespace {

trajectory_group small_group() {
  trajectory_group g;
  g.key = {12, 3, true};
  g.version = {1, 11};
  g.source = 1ull << 40;
  g.prompt_ids = {1, 2, 3};
  g.samples = {{{5, 6}, {-0.5f, -1e-30f}, {{1, 11}, {1, 12}}, finish_reason::stop}, {{}, {}, {}, finish_reason::abort}};
  return g;
}

RC_GTEST_PROP(trajectory, a_group_comes_back_the_same, (const trajectory_group& g)) { RC_ASSERT(unpack_group(pack_group(g)) == g); }

RC_GTEST_PROP(trajectory, scored_groups_come_back_the_same, (const std::vector<scored_group>& groups)) {
  RC_ASSERT(unpack_scored(pack_scored(groups)) == groups);
}

TEST(trajectory, the_bits_of_nan_come_back) {
  trajectory_group g = small_group();
  g.samples[0].logprobs[0] = std::bit_cast<float>(0x7fc01234u);
  EXPECT_EQ(std::bit_cast<std::uint32_t>(unpack_group(pack_group(g)).samples[0].logprobs[0]), 0x7fc01234u);
}

TEST(trajectory, the_wire_form_is_fixed) {
  trajectory_group g;
  g.key = {1, 2, false};
  g.version = {3, 4};
  g.source = 5;
  g.prompt_ids = {6};
  const std::string bytes = pack_group(g);
  const unsigned char expected[] = {'T', 'G', 'T', 'R', 1, 0, 0, 0,                         // magic, format
                                    1,   0,   0,   0,   2, 0, 0, 0, 0,                      // key
                                    3,   0,   0,   0,   4, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, // version, source
                                    1,   0,   0,   0,   6, 0, 0, 0, 0, 0, 0, 0};            // prompt, samples
  EXPECT_EQ(bytes, std::string(reinterpret_cast<const char*>(expected), sizeof expected));
}

TEST(trajectory, every_cut_and_every_excess_is_refused) {
  const std::string whole = pack_group(small_group());
  for (std::size_t n = 0; n < whole.size(); ++n)
    expect_error(errc::bad_input, {"trajectory"}, [&] { unpack_group(std::string_view(whole).substr(0, n)); });
  expect_error(errc::bad_input, {"1 bytes too many"}, [&] { unpack_group(whole + "x"); });
  expect_error(errc::bad_input, {"not such a message"}, [&] { unpack_scored(whole); });
  std::string later = whole;
  later[4] = 2;
  expect_error(errc::bad_input, {"format 2"}, [&] { unpack_group(later); });
}

TEST(trajectory, a_lying_count_allocates_nothing) {
  const std::string whole = pack_group(small_group());
  constexpr std::size_t prompt_count = 8 + 9 + 8 + 8;
  for (std::uint32_t count : {0xffffffffu, 0x40000000u, 1000u}) {
    std::string bytes = whole;
    bytes.replace(prompt_count, 4, reinterpret_cast<const char*>(&count), 4);
    expect_error(errc::bad_input, {"a count of " + std::to_string(count), "does not fit"}, [&] { unpack_group(bytes); });
  }
}

TEST(trajectory, mutations_are_refused_or_parse) {
  scored_group scored{small_group(), "7", {"a", ""}, {1, 0}, {0.5, -0.5}};
  const std::string one = pack_group(small_group()), many = pack_scored({scored, scored});
  std::mt19937_64 random(7);
  int parsed = 0;
  for (int i = 0; i < 20000; ++i) {
    std::string bytes = i % 2 ? one : many;
    for (std::uint64_t k = random() % 3 + 1; k-- > 0;)
      bytes[random() % bytes.size()] = char(random());
    if (random() % 4 == 0)
      bytes.resize(random() % bytes.size());
    try {
      if (i % 2)
        unpack_group(bytes);
      else
        unpack_scored(bytes);
      ++parsed;
    } catch (const error& e) {
      ASSERT_EQ(int(e.code()), int(errc::bad_input));
    }
  }
  EXPECT_GT(parsed, 0); // ids and numbers may be anything
}

TEST(trajectory, columns_that_disagree_are_not_packed) {
  trajectory_group g = small_group();
  g.samples[0].logprobs.pop_back();
  expect_error(errc::bad_shape, {"2 tokens", "1 log-probabilities"}, [&] { pack_group(g); });
  expect_error(errc::bad_shape, {"2 samples", "1 rewards"}, [&] { pack_scored({{small_group(), "", {}, {1}, {}}}); });
}

TEST(trajectory, versions_are_ordered_by_incarnation_first) {
  EXPECT_LT((weights_version{0, 9}), (weights_version{1, 0}));
  EXPECT_LT((weights_version{1, 0}), (weights_version{1, 1}));
}

} // namespace
} // namespace troupe
