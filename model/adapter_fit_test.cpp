#include "core/error.hpp"
#include "model/adapter_fit.hpp"
#include "model/least_squares.hpp"
#include "model/weights/split_test_support.hpp"
#include <cmath>
#include <gtest/gtest.h>

namespace troupe {
namespace {

using test::message_of;
using test::scratch;
using test::tiny_config;

std::vector<float> random(std::size_t n, std::uint32_t stream) {
  std::vector<float> values(n);
  for (std::size_t i = 0; i < n; ++i)
    values[i] = draw_uniform({11, draw::init, stream, std::uint32_t(i)}) - 0.5f;
  return values;
}

TEST(LeastSquares, FindsTheMapThatMadeTheRows) {
  const std::int64_t in = 37, out = 53, rows = 200;
  const auto w = random(std::size_t(in * out), 1), x = random(std::size_t(rows * in), 2);
  std::vector<float> y(std::size_t(rows * out));
  for (std::int64_t r = 0; r < rows; ++r)
    for (std::int64_t o = 0; o < out; ++o)
      for (std::int64_t i = 0; i < in; ++i)
        y[std::size_t(r * out + o)] += w[std::size_t(o * in + i)] * x[std::size_t(r * in + i)];
  std::vector<double> weights;
  for (std::int64_t r = 0; r < rows; ++r)
    weights.push_back(0.1 + double(r % 7));
  std::vector<std::vector<float>> found;
  for (const int threads : {1, 2}) {
    thread_pool pool(threads);
    normal_equations equations(in, out);
    for (std::int64_t begin = 0; begin < rows; begin += 64)
      equations.add(pool, x.data() + begin * in, y.data() + begin * out, weights.data() + begin, std::min<std::int64_t>(64, rows - begin));
    found.push_back(equations.solve(pool, 1e-12));
    for (std::size_t i = 0; i < w.size(); ++i)
      ASSERT_NEAR(found.back()[i], w[i], 2e-6) << i;
    // More ridge, smaller weights.
    double with = 0, without = 0;
    for (const float v : equations.solve(pool, 10))
      with += double(v) * v;
    for (const float v : found.back())
      without += double(v) * v;
    EXPECT_LT(with, 0.1 * without);
  }
  EXPECT_EQ(found[0], found[1]) << "threads change no bit";
}

TEST(LeastSquares, DependentInputsNeedARidge) {
  thread_pool pool(1);
  normal_equations equations(2, 1);
  const float x[] = {1, 1, 2, 2}, y[] = {2, 4};
  const double weights[] = {1, 1};
  equations.add(pool, x, y, weights, 2);
  EXPECT_NE(message_of("/none", errc::failed, [&] { equations.solve(pool, 0); }).find("linearly dependent"), std::string::npos);
  const auto w = equations.solve(pool, 1e-9);
  EXPECT_NEAR(w[0], 1, 1e-6);
  EXPECT_NEAR(w[1], 1, 1e-6);
}

std::vector<std::vector<std::int32_t>> text(std::size_t n) {
  std::vector<std::vector<std::int32_t>> sequences(n);
  for (std::size_t s = 0; s < n; ++s)
    for (std::uint32_t i = 0; i < 40 + s % 5; ++i)
      sequences[s].push_back(std::int32_t(draw_bits({3, draw::init, std::uint32_t(s), i})[0] % 61));
  return sequences;
}

model_config split_of(const scratch& dir, int front, int back, bool mlp) {
  const nlohmann::json json = {{"architectures", {"CustomSplitLLamaForCausalLM"}},
                               {"path8b", (dir / "a").string()},
                               {"path70b", (dir / "b").string()},
                               {"num_layers_8", front},
                               {"num_layers_70", back},
                               {"vocab_size", 61},
                               {"mlp", mlp},
                               {"adapter_init", "fit"}};
  return parse_model_config(json.dump(), "split.json");
}

// Both halves one model, nothing left out: the fit must find the identity.
TEST(AdapterFit, FindsTheIdentityWhereNothingIsLeftOut) {
  const scratch dir;
  for (const auto* name : {"a", "b"})
    test::write_model(dir / name, tiny_config(32, 4, 4, 2, R"({"tie_word_embeddings": true})"), dtype::f32);
  compute where(2);
  const safetensors_reader a(dir / "a"), b(dir / "b");
  const auto fit = fit_adapter(split_of(dir, 2, 2, false), a, b, text(40), 1e-10, where);
  for (std::int64_t r = 0; r < 32; ++r)
    for (std::int64_t c = 0; c < 32; ++c) {
      ASSERT_NEAR(fit.linear1[std::size_t(r * 32 + c)], r == c, 1e-4) << r << " " << c;
      ASSERT_EQ(fit.linear2[std::size_t(r * 32 + c)], r == c ? 1.0f : 0.0f);
    }
  EXPECT_EQ(fit.report.tokens + fit.report.held_out, 40 * 42);
  EXPECT_EQ(fit.report.held_out, 41 + 42 + 43 + 44);
  EXPECT_DOUBLE_EQ(fit.report.explained_before, 1);
  EXPECT_NEAR(fit.report.explained_after, 1, 1e-6);
  EXPECT_NEAR(fit.report.perplexity_after, fit.report.perplexity_before, 1e-3 * fit.report.perplexity_before);
}

// Between models of other widths a fit explains more than the identity does.
TEST(AdapterFit, ExplainsMoreThanTheIdentity) {
  const scratch dir;
  test::write_model(dir / "a", tiny_config(32, 4, 4, 2), dtype::f32);
  test::write_model(dir / "b", tiny_config(48, 4, 4, 1), dtype::f32);
  compute where(2);
  const safetensors_reader a(dir / "a"), b(dir / "b");
  for (const bool mlp : {false, true}) {
    const auto fit = fit_adapter(split_of(dir, 1, 2, mlp), a, b, text(60), 1e-6, where);
    EXPECT_EQ(fit.linear1.size(), 48u * 32);
    EXPECT_GT(fit.report.explained_after, fit.report.explained_before + 0.2) << mlp;
    EXPECT_EQ(fit.linear2[1] == 0, !mlp) << "solved a second time behind the ReLU";
  }
  EXPECT_EQ(message_of("/none", errc::bad_input, [&] { fit_adapter(split_of(dir, 1, 2, false), a, b, text(9), 0, where); }),
            "fit: the text makes 9 sequences; at least 10 are needed");
}

} // namespace
} // namespace troupe
