#include "core/error.hpp"
#include "model/adapter_fit.hpp"
#include "model/least_squares.hpp"
#include "model/registry.hpp"
#include "model/weights/convert.hpp"
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

std::string split_json(const scratch& dir, int front, int back, bool mlp) {
  const nlohmann::json json = {{"architectures", {"CustomSplitLLamaForCausalLM"}},
                               {"path8b", (dir / "a").string()},
                               {"path70b", (dir / "b").string()},
                               {"num_layers_8", front},
                               {"num_layers_70", back},
                               {"vocab_size", 61},
                               {"mlp", mlp},
                               {"adapter_init", "fit"}};
  return json.dump();
}

model_config split_of(const scratch& dir, int front, int back, bool mlp) {
  return parse_model_config(split_json(dir, front, back, mlp), "split.json");
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

// How the hidden states are cut in chunks changes no bit.
TEST(AdapterFit, NoResultDependsOnTheChunks) {
  const scratch dir;
  test::write_model(dir / "a", tiny_config(32, 3, 4, 2), dtype::f32);
  test::write_model(dir / "b", tiny_config(48, 3, 4, 1), dtype::f32);
  compute where(2);
  const safetensors_reader a(dir / "a"), b(dir / "b");
  for (const bool mlp : {false, true}) {
    const auto whole = fit_adapter(split_of(dir, 1, 2, mlp), a, b, text(30), 1e-6, where);
    for (const std::int64_t chunk : {1, 130}) { // one sequence, three
      const auto cut = fit_adapter(split_of(dir, 1, 2, mlp), a, b, text(30), 1e-6, where, chunk);
      EXPECT_EQ(cut.linear1, whole.linear1) << chunk;
      EXPECT_EQ(cut.linear2, whole.linear2) << chunk;
      EXPECT_EQ(cut.report.tokens, whole.report.tokens);
      EXPECT_EQ(cut.report.held_out, whole.report.held_out);
      EXPECT_DOUBLE_EQ(cut.report.explained_before, whole.report.explained_before);
      EXPECT_DOUBLE_EQ(cut.report.explained_after, whole.report.explained_after);
      EXPECT_NEAR(cut.report.perplexity_after, whole.report.perplexity_after, 1e-9 * whole.report.perplexity_after);
    }
  }
}

// ---- a model and itself in another width ----

using matrix = std::vector<double>; // row-major

matrix product(const matrix& a, const matrix& b, std::size_t rows, std::size_t inner, std::size_t columns) {
  matrix c(rows * columns);
  for (std::size_t r = 0; r < rows; ++r)
    for (std::size_t i = 0; i < inner; ++i)
      for (std::size_t k = 0; k < columns; ++k)
        c[r * columns + k] += a[r * inner + i] * b[i * columns + k];
  return c;
}

matrix transposed(const matrix& a, std::size_t rows, std::size_t columns) {
  matrix t(a.size());
  for (std::size_t r = 0; r < rows; ++r)
    for (std::size_t c = 0; c < columns; ++c)
      t[c * rows + r] = a[r * columns + c];
  return t;
}

// [rows, columns], rows >= columns: orthogonal columns of length sqrt(rows / columns), so that the root mean square of q x is that of x.
matrix random_embedding(std::size_t rows, std::size_t columns) {
  const auto start = random(rows * columns, 77);
  matrix q(start.begin(), start.end());
  for (std::size_t c = 0; c < columns; ++c) {
    for (std::size_t other = 0; other <= c; ++other) { // of itself: its length
      double dot = 0;
      for (std::size_t r = 0; r < rows; ++r)
        dot += q[r * columns + other] * q[r * columns + c];
      for (std::size_t r = 0; r < rows; ++r)
        q[r * columns + c] = other == c ? q[r * columns + c] / std::sqrt(dot) : q[r * columns + c] - dot * q[r * columns + other];
    }
  }
  for (double& x : q)
    x *= std::sqrt(double(rows) / double(columns));
  return q;
}

/// The function of the model in `from`, whose head is untied, with a residual stream of another width: q x in place of x. A norm's gain
/// goes into the projections behind it, which read q^T / q^T q; what adds to the stream is multiplied by q.
void widen(const std::filesystem::path& from, const std::filesystem::path& to, const matrix& q, std::size_t wide) {
  const safetensors_reader files(from);
  auto json = nlohmann::json::parse(read_file(from / "config.json"));
  const auto h = json["hidden_size"].get<std::size_t>();
  json["head_dim"] = h / json["num_attention_heads"].get<std::size_t>();
  json["hidden_size"] = wide;
  std::filesystem::create_directories(to);
  write_file(to / "config.json", json.dump());
  const auto values = [&](const std::string& name) {
    const auto read = test::read<float>(files, name);
    return matrix(read.begin(), read.end());
  };
  matrix back = transposed(q, wide, h); // q^T / (wide / h)
  for (double& x : back)
    x *= double(h) / double(wide);
  const auto gain_of = [&](const std::string& name) { // of the norm in front of a projection
    const std::string layer = name.substr(0, name.find('.', std::string("model.layers.").size()) + 1);
    return values(name == "lm_head.weight"                      ? "model.norm.weight"
                  : name.find("self_attn") != std::string::npos ? layer + "input_layernorm.weight"
                                                                : layer + "post_attention_layernorm.weight");
  };
  std::vector<std::vector<float>> made;
  std::vector<tensor_to_write> tensors;
  for (const auto& spec : tensors_of(load_model_config(to))) {
    matrix w = values(spec.name);
    const std::size_t rows = w.size() / h;
    if (spec.shape.size() == 1)
      w.assign(wide, 1.0);
    else if (spec.name == "model.embed_tokens.weight")
      w = product(w, transposed(q, wide, h), rows, h, wide);
    else if (spec.name.find("o_proj") != std::string::npos || spec.name.find("down_proj") != std::string::npos)
      w = product(q, w, wide, h, w.size() / h);
    else {
      const matrix gain = gain_of(spec.name);
      for (std::size_t i = 0; i < w.size(); ++i)
        w[i] *= gain[i % h];
      w = product(w, back, rows, h, wide);
    }
    made.emplace_back(w.begin(), w.end());
    tensors.push_back({spec.name, dtype::f32, spec.shape, {}});
  }
  for (std::size_t i = 0; i < tensors.size(); ++i)
    tensors[i].bytes = std::as_bytes(std::span(made[i]));
  write_safetensors(to, tensors);
}

std::vector<float> logits_of(const std::filesystem::path& dir, compute& where) {
  batch_builder builder;
  for (const auto& ids : text(3))
    builder.add_sequence(ids, std::vector<std::int32_t>{3, 20, 39});
  return load_model(dir, {dtype::f32, false, {}, nullptr}, where)->outputs(builder.take(), nullptr);
}

double largest_difference(const std::vector<float>& a, const std::vector<float>& b) {
  EXPECT_EQ(a.size(), b.size());
  double most = 0;
  for (std::size_t i = 0; i < a.size(); ++i)
    most = std::max(most, std::abs(double(a[i]) - b[i]));
  return most;
}

// Two widths, nothing left out between them: the bridge is known, and with it the split model is the first one.
TEST(AdapterFit, FindsTheKnownMapBetweenAModelAndItselfWidened) {
  const scratch dir;
  const std::size_t h = 32, wide = 44;
  test::write_model(dir / "narrow", tiny_config(int(h), 4, 4, 2), dtype::f32);
  const matrix q = random_embedding(wide, h);
  widen(dir / "narrow", dir / "wide", q, wide);
  compute where(2);
  const auto logits = logits_of(dir / "narrow", where);
  EXPECT_LT(largest_difference(logits_of(dir / "wide", where), logits), 1e-5) << "the widening keeps the function";
  for (const bool up : {true, false}) {
    const scratch split;
    std::filesystem::create_directory_symlink(dir / (up ? "narrow" : "wide"), split / "a");
    std::filesystem::create_directory_symlink(dir / (up ? "wide" : "narrow"), split / "b");
    const safetensors_reader a(split / "a"), b(split / "b");
    const auto fit = fit_adapter(split_of(split, 2, 2, false), a, b, text(60), 1e-10, where);
    // Upwards q itself; downwards, where inputs fill a part of their space, the shortest of many: q^T / q^T q.
    ASSERT_EQ(fit.linear1.size(), wide * h);
    double off = 0;
    for (std::size_t r = 0; r < wide; ++r)
      for (std::size_t c = 0; c < h; ++c)
        off = std::max(
            off, std::abs((up ? double(fit.linear1[r * h + c]) : fit.linear1[c * wide + r] * double(wide) / double(h)) - q[r * h + c]));
    EXPECT_LT(off, 1e-3) << up;
    EXPECT_GT(fit.report.explained_after, 1 - 1e-6);
    EXPECT_LT(fit.report.explained_before, 0.5);
    write_file(split / "split.json", split_json(split, 2, 2, false));
    const new_adapter adapter{fit.linear1, fit.linear2, "{}"};
    convert_split(split / "split.json", split / "whole", std::nullopt, 0, &adapter);
    EXPECT_LT(largest_difference(logits_of(split / "whole", where), logits), 1e-3) << up;
  }
}

} // namespace
} // namespace troupe
