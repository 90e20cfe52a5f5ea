#include "core/error.hpp"
#include "model/parallel/data_parallel.hpp"
#include "model/parallel/local_ranks.hpp"
#include "model/parallel/model_support.hpp"
#include "model/parallel/stages.hpp"
#include "model/parallel/tensor_parallel.hpp"
#include "model/parallel/test_support.hpp"
#include <bit>
#include <mutex>
#include <numeric>

namespace troupe {
namespace {

struct layout_case {
  mesh shape;
  bool sequence;
};

std::string name_of(const layout_case& c) {
  return "tp " + std::to_string(c.shape.tp) + " pp " + std::to_string(c.shape.pp) + (c.sequence ? " sp" : "");
}

// Adds a rank's part of every gradient to the whole tensors; a copy must hold the bits of what it copies.
void collect(causal_lm& model, std::map<std::string, std::vector<float>>& whole, std::map<std::string, std::vector<bool>>& seen) {
  for (const parameter& p : model.parameters()) {
    if (!p.trainable)
      continue;
    const std::int64_t width = p.global_shape.size() > 1 ? p.global_shape[1] : 1, own = p.shape.size() > 1 ? p.shape[1] : 1;
    auto& to = whole[p.name];
    auto& there = seen[p.name];
    to.resize(std::size_t(p.global_shape[0] * width));
    there.resize(to.size());
    for (std::int64_t r = 0; r < p.shape[0]; ++r)
      for (std::int64_t c = 0; c < own; ++c) {
        const auto at = std::size_t((r + (p.dim == 0 ? p.begin : 0)) * width + c + (p.dim == 1 ? p.begin : 0));
        const float g = p.grad[std::size_t(r * own + c)];
        if (there[at]) {
          ASSERT_EQ(std::bit_cast<std::uint32_t>(to[at]), std::bit_cast<std::uint32_t>(g)) << p.name << " differs between ranks";
        } else {
          to[at] = g;
          there[at] = true;
        }
      }
  }
}

// One pass of a layout, its ranks as threads. Every rank must return the same values.
pass_result run_layout(const model_config& cfg, dtype type, const layout_case& c, const packed_batch& batch, bool training = true,
                       std::vector<std::string> trainable = {"*"}) {
  thread_world world(std::chrono::seconds(20));
  const auto contexts = make_contexts(world, c.shape);
  pass_result result;
  std::map<std::string, std::vector<bool>> seen;
  std::mutex mutex;
  const std::vector<std::int32_t> sequence = {3, 60, 31, 0, 17, 44, 5, 59, 12, 8};
  expect_no_errors(run_ranks(c.shape.size(), [&](int r) {
    try {
      compute where(1);
      auto setup = std::make_shared<rank_setup>();
      setup->ranks = contexts[std::size_t(r)];
      setup->sequence_parallel = c.sequence;
      const auto model = make_model(cfg, {type, training, trainable, setup}, where);
      fill_by_name(*model);
      pass_result own = run_pass(*model, batch, training);
      own.decoded = decode(*model, sequence, 6);
      const std::lock_guard lock(mutex);
      collect(*model, result.grads, seen);
      if (result.logprobs.empty()) {
        own.grads = std::move(result.grads);
        result = std::move(own);
        return;
      }
      EXPECT_EQ(own.logprobs, result.logprobs) << name_of(c) << " rank " << r;
      EXPECT_EQ(own.entropy, result.entropy) << name_of(c) << " rank " << r;
      EXPECT_EQ(own.decoded, result.decoded) << name_of(c) << " rank " << r;
    } catch (const error& e) {
      world.abort(e.what());
      throw;
    }
  }));
  for (const auto& [name, there] : seen)
    EXPECT_EQ(std::count(there.begin(), there.end(), false), 0) << name << " is not whole";
  return result;
}

void expect_close(const std::map<std::string, std::vector<float>>& grads, const std::map<std::string, std::vector<float>>& expected,
                  float tolerance, const std::string& where) {
  ASSERT_EQ(grads.size(), expected.size()) << where;
  for (const auto& [name, values] : expected) {
    float largest = 0;
    for (const float v : values)
      largest = std::max(largest, std::abs(v));
    const auto& got = grads.at(name);
    ASSERT_EQ(got.size(), values.size()) << name;
    for (std::size_t i = 0; i < values.size(); ++i)
      ASSERT_NEAR(got[i], values[i], tolerance * largest) << where << ": " << name << " " << i;
  }
}

void expect_same_bits(const std::vector<float>& a, const std::vector<float>& b, const std::string& where) {
  ASSERT_EQ(a.size(), b.size()) << where;
  EXPECT_EQ(0, std::memcmp(a.data(), b.data(), a.size() * 4)) << where;
}

std::vector<layout_case> layouts(int tp) {
  std::vector<layout_case> all;
  for (const int pp : {1, 2, 3})
    for (const bool sequence : {false, true})
      if ((pp > 1 || sequence) && (tp > 1 || !sequence))
        all.push_back({{pp, 1, tp}, sequence});
  return all;
}

// All layouts of a model against one rank, and against each other at equal TP.
void check_layouts(const model_config& cfg, const std::vector<int>& sizes) {
  const packed_batch batch = tiny_batch(3, 0);
  for (const dtype type : {dtype::f32, dtype::bf16}) {
    const float coarse = type == dtype::f32 ? 1.f : 1e4f; // bf16: other sums are rounded to bf16 across TP
    const pass_result one = run_layout(cfg, type, {{1, 1, 1}, false}, batch);
    for (const int tp : sizes) {
      const pass_result base = tp == 1 ? one : run_layout(cfg, type, {{1, 1, tp}, false}, batch);
      for (std::size_t i = 0; i < one.logprobs.size(); ++i)
        ASSERT_NEAR(base.logprobs[i], one.logprobs[i], 1e-5 * coarse) << "tp " << tp << " target " << i;
      if (type == dtype::f32)
        expect_close(base.grads, one.grads, 2e-5f, "tp " + std::to_string(tp));
      for (const auto& c : layouts(tp)) {
        const pass_result got = run_layout(cfg, type, c, batch);
        expect_same_bits(got.logprobs, base.logprobs, name_of(c));
        expect_same_bits(got.entropy, base.entropy, name_of(c));
        expect_same_bits(got.decoded, base.decoded, name_of(c));
        expect_close(got.grads, base.grads, type == dtype::f32 ? 2e-6f : 2e-2f, name_of(c));
      }
    }
  }
}

TEST(Parallel, LayoutsOfALlamaAgree) { check_layouts(tiny_llama(4, false), {1, 2, 4}); }
TEST(Parallel, LayoutsOfATiedLlamaWithFewKeyHeadsAgree) { check_layouts(tiny_llama(1, true), {1, 2, 4}); }
TEST(Parallel, LayoutsWithTwoRanksAKeyHeadAgree) { check_layouts(tiny_llama(2, true), {4}); }

// Biases on both sides of every sum, head norms and a window; at 4 ranks two share a key head.
TEST(Parallel, LayoutsOfTheOtherFamiliesAgree) {
  model_config cfg = tiny_llama(2, false);
  cfg.layer.qkv_bias = cfg.layer.o_bias = cfg.layer.mlp_bias = cfg.layer.qk_norm = true;
  cfg.layer.window = 3;
  cfg.windowed.assign(std::size_t(cfg.n_layers), true);
  cfg.windowed[1] = false;
  check_layouts(cfg, {1, 2, 4});
}

TEST(Parallel, EveryRemainderOfTheRowsIsPadded) {
  const model_config cfg = tiny_llama(2, false);
  for (int extra = 0; extra < 4; ++extra) {
    const packed_batch batch = tiny_batch(1, extra);
    const auto with = run_layout(cfg, dtype::f32, {{1, 1, 4}, true}, batch),
               without = run_layout(cfg, dtype::f32, {{1, 1, 4}, false}, batch);
    expect_same_bits(with.logprobs, without.logprobs, std::to_string(batch.tokens.ids.size()) + " rows");
    expect_close(with.grads, without.grads, 2e-6f, std::to_string(batch.tokens.ids.size()) + " rows");
  }
}

TEST(Parallel, DecodingGivesTheBitsOfScoring) {
  const model_config cfg = tiny_llama(2, true);
  const std::vector<std::int32_t> sequence = {3, 60, 31, 0, 17, 44, 5, 59, 12, 8};
  batch_builder builder;
  builder.add_sequence(sequence, 6);
  const packed_batch batch = builder.take();
  for (const dtype type : {dtype::f32, dtype::bf16})
    for (const layout_case c : {layout_case{{1, 1, 2}, false}, layout_case{{1, 1, 4}, true}, layout_case{{3, 1, 2}, false}}) {
      const auto got = run_layout(cfg, type, c, batch, false);
      expect_same_bits(got.decoded, got.logprobs, name_of(c));
    }
}

TEST(Parallel, FrozenPartsHaveNoGradientInAnyStage) {
  const model_config cfg = tiny_llama(2, true);
  const packed_batch batch = tiny_batch(2, 1);
  for (const std::vector<std::string>& globs : {std::vector<std::string>{"model.layers.1.mlp.*"},
                                                {"model.norm.weight"},
                                                {"model.layers.0.*", "model.layers.2.self_attn.k_proj.weight"},
                                                {"model.embed_tokens.weight"}}) {
    const auto one = run_layout(cfg, dtype::f32, {{1, 1, 1}, false}, batch, true, globs);
    const auto many = run_layout(cfg, dtype::f32, {{3, 1, 2}, true}, batch, true, globs);
    EXPECT_FALSE(one.grads.empty());
    expect_close(many.grads, one.grads, 2e-5f, globs[0]);
  }
}

TEST(Parallel, ReplicasAddTheirGradientsInRankOrder) {
  const model_config cfg = tiny_llama(2, true);
  const mesh shape{1, 3, 2};
  const auto parts = cut_batch(tiny_batch(3, 0), 3);
  ASSERT_EQ(parts.size(), 3U);
  thread_world world(std::chrono::seconds(20));
  const auto contexts = make_contexts(world, shape);
  std::vector<std::vector<float>> own(6), sums(6); // gradients of all tensors, before and after
  expect_no_errors(run_ranks(6, [&](int r) {
    const rank_context& c = contexts[std::size_t(r)];
    compute where(1);
    auto setup = std::make_shared<rank_setup>();
    setup->ranks = c;
    const auto model = make_model(cfg, {dtype::f32, true, {"*"}, setup}, where);
    fill_by_name(*model);
    run_pass(*model, parts[std::size_t(c.dp_rank)].batch, true);
    for (const parameter& p : model->parameters())
      own[std::size_t(r)].insert(own[std::size_t(r)].end(), p.grad.begin(), p.grad.end());
    add_gradients_of_replicas(*model, c, where);
    for (const parameter& p : model->parameters())
      sums[std::size_t(r)].insert(sums[std::size_t(r)].end(), p.grad.begin(), p.grad.end());
  }));
  for (int t = 0; t < 2; ++t) {
    const auto at = [&](int d) { return std::size_t(shape.rank_of(0, d, t)); };
    std::vector<float> expected = own[at(0)];
    for (const int d : {1, 2})
      for (std::size_t i = 0; i < expected.size(); ++i)
        expected[i] += own[at(d)][i];
    for (const int d : {0, 1, 2})
      expect_same_bits(sums[at(d)], expected, "tp " + std::to_string(t) + " dp " + std::to_string(d));
  }
}

// y = x W^T with W [12, 24] cut by columns; x whole on every rank, or cut as W is.
TEST(Parallel, ARowParallelLinearCutsItsInputWhereItIsWhole) {
  const std::int64_t n = 5, in = 24, out = 12;
  const auto x = tiny_gradients(std::size_t(n * in), 1), w = tiny_gradients(std::size_t(out * in), 2), dy = tiny_gradients(60, 3);
  const tensor_spec spec{"w", {out, in}, shard_rule::columns};
  const auto matrix = [](const std::vector<float>& from, std::int64_t rows, std::int64_t width, std::int64_t begin, std::int64_t count) {
    at::Tensor t = empty_matrix<float>(rows, count);
    for (std::int64_t r = 0; r < rows; ++r)
      std::copy_n(from.begin() + r * width + begin, count, data<float>(t) + r * count);
    return t;
  };
  const auto values = [](const at::Tensor& t) { return std::vector<float>(data<float>(t), data<float>(t) + t.numel()); };
  for (const int tp : {2, 4}) {
    thread_world world(std::chrono::seconds(20));
    const auto contexts = make_contexts(world, {1, 1, tp});
    std::vector<std::vector<float>> y_whole(4), y_cut(4), dx_whole(4), dx_cut(4);
    expect_no_errors(run_ranks(tp, [&](int r) {
      compute where(1);
      const tensor_parallel group(contexts[std::size_t(r)].tp, false);
      const std::int64_t own = in / tp;
      weight part = make_weight(spec, r, tp);
      part.value = matrix(w, out, in, r * own, own);
      stacked_linear<float> linear({&part}, false);
      linear.lay_out(where, true);
      const auto i = std::size_t(r);
      y_whole[i] = values(row_parallel(where, group, linear, matrix(x, n, in, 0, in), nullptr, "y", false));
      y_cut[i] = values(row_parallel(where, group, linear, matrix(x, n, in, r * own, own), nullptr, "y"));
      const at::Tensor d = matrix(dy, n, out, 0, out);
      dx_whole[i] = values(row_parallel_backward(where, group, linear, d, "dx", false));
      dx_cut[i] = values(row_parallel_backward(where, group, linear, d, "dx"));
    }));
    for (int r = 0; r < tp; ++r) {
      const auto i = std::size_t(r);
      EXPECT_EQ(y_whole[i], y_cut[i]);
      EXPECT_EQ(dx_whole[i], dx_whole[0]);
      ASSERT_EQ(dx_whole[i].size(), std::size_t(n * in));
      for (std::int64_t row = 0; row < n; ++row) {
        for (std::int64_t c = 0; c < in / tp; ++c)
          EXPECT_EQ(dx_whole[i][std::size_t(row * in + r * (in / tp) + c)], dx_cut[i][std::size_t(row * (in / tp) + c)]);
        for (std::int64_t o = 0; o < out; ++o) {
          double sum = 0;
          for (std::int64_t k = 0; k < in; ++k)
            sum += double(x[std::size_t(row * in + k)]) * double(w[std::size_t(o * in + k)]);
          EXPECT_NEAR(y_whole[i][std::size_t(row * out + o)], sum, 1e-5);
        }
        for (std::int64_t k = 0; k < in; ++k) {
          double sum = 0;
          for (std::int64_t o = 0; o < out; ++o)
            sum += double(dy[std::size_t(row * out + o)]) * double(w[std::size_t(o * in + k)]);
          EXPECT_NEAR(dx_whole[i][std::size_t(row * in + k)], sum, 1e-5);
        }
      }
    }
  }
}

#ifndef __SANITIZE_THREAD__
TEST(Parallel, ProcessesGiveTheBitsOfThreads) {
  struct process_case {
    std::string model;
    layout_case c;
    std::string type;
  };
  for (const auto& [name, c, type] : {process_case{"llama", {{1, 1, 2}, false}, "bf16"}, process_case{"split", {{2, 1, 2}, true}, "f32"}}) {
    const model_config cfg = name == "llama" ? tiny_llama(2, true) : split_of_two_widths();
    const dtype element = type == "f32" ? dtype::f32 : dtype::bf16;
    const int n = c.shape.size();
    thread_world world(std::chrono::seconds(20));
    const auto contexts = make_contexts(world, c.shape);
    std::vector<rank_digest> expected(static_cast<std::size_t>(n));
    expect_no_errors(run_ranks(n, [&, sequence = c.sequence](int r) {
      expected[std::size_t(r)] = digest_of_rank(cfg, element, contexts[std::size_t(r)], sequence);
    }));
    auto workers =
        start_workers(TROUPE_PARALLEL_WORKER, n,
                      {"model", std::to_string(c.shape.pp), "1", std::to_string(c.shape.tp), c.sequence ? "1" : "0", type, name});
    for (int r = 0; r < n; ++r) {
      EXPECT_EQ(workers[std::size_t(r)].line(), expected[std::size_t(r)].text()) << name << " rank " << r;
      EXPECT_EQ(workers[std::size_t(r)].wait(), 0);
    }
  }
}

// One model to its user, over processes or over threads: log-probabilities, entropies, decoding, gradients.
TEST(Parallel, ProcessesThatShareAModelGiveTheBitsOfThreads) {
  struct shared_case {
    std::string model, type;
    mesh shape;
    bool sequence;
  };
  for (const auto& c : {shared_case{"llama", "bf16", {1, 1, 2}, false}, shared_case{"llama", "f32", {2, 2, 2}, true},
                        shared_case{"split", "bf16", {3, 1, 1}, false}, shared_case{"llama", "bf16", {1, 3, 1}, false}}) {
    SCOPED_TRACE(c.model + " pp " + std::to_string(c.shape.pp) + " dp " + std::to_string(c.shape.dp) + " tp " + std::to_string(c.shape.tp));
    auto workers = start_workers(TROUPE_PARALLEL_WORKER, c.shape.size(),
                                 {"share", std::to_string(c.shape.pp), std::to_string(c.shape.dp), std::to_string(c.shape.tp),
                                  c.sequence ? "1" : "0", c.type, c.model});
    compute where(1);
    const auto threads = make_local_ranks(c.model == "llama" ? tiny_llama(2, true) : split_of_two_widths(),
                                          {c.type == "f32" ? dtype::f32 : dtype::bf16, true, {"*"}, nullptr}, c.shape, c.sequence, where);
    fill_by_name(*threads);
    rank_digest expected = digest_of_use(*threads);
    for (const parameter& p : threads->parameters())
      add_bits(expected.grads, p.grad);
    EXPECT_EQ(workers[0].line(), expected.text());
    for (std::size_t r = 0; r < workers.size(); ++r) {
      if (r > 0) {
        EXPECT_EQ(workers[r].line(), "followed");
      }
      EXPECT_EQ(workers[r].wait(), 0);
    }
  }
}
#endif

TEST(Parallel, LayoutsThatCannotBeAreRefusedByName) {
  const std::vector<std::pair<mesh, std::string>> cases = {
      {{1, 1, 3}, "q_proj"}, // 4 heads
      {{9, 1, 1}, "pipeline_parallel_size = 9"},
  };
  for (const auto& [shape, word] : cases) {
    thread_world world(std::chrono::seconds(5));
    auto setup = std::make_shared<rank_setup>();
    setup->ranks = make_contexts(world, shape)[0];
    compute where(1);
    try {
      make_model(tiny_llama(2, true), {dtype::f32, false, {}, setup}, where);
      FAIL() << word;
    } catch (const error& e) {
      EXPECT_EQ(e.code(), errc::bad_config);
      EXPECT_NE(std::string(e.what()).find(word), std::string::npos) << e.what();
    }
  }
}

TEST(Parallel, StagesAreBalancedByCost) {
  std::vector<block_spec> blocks(6);
  const double costs[] = {0, 1, 1, 1, 1, 4};
  for (std::size_t i = 0; i < 6; ++i)
    blocks[i].cost = costs[i];
  EXPECT_EQ(stage_cuts(blocks, 1), (std::vector<std::size_t>{0, 6}));
  EXPECT_EQ(stage_cuts(blocks, 2), (std::vector<std::size_t>{0, 5, 6}));
  const auto six = stage_cuts(blocks, 6);
  EXPECT_EQ(six, (std::vector<std::size_t>{0, 1, 2, 3, 4, 5, 6}));
  EXPECT_THROW(stage_cuts(blocks, 7), error);
  EXPECT_THROW(stage_cuts(blocks, 0), error);
}

TEST(CutBatch, PartsScoreLikeTheWhole) {
  compute where(1);
  const auto model = make_model(tiny_llama(2, true), {dtype::f32, false, {}}, where);
  fill_by_name(*model);
  const packed_batch whole = tiny_batch(5, 0);
  const auto expected = model->score(whole, 1.f, false, nullptr).logprobs;
  for (const int n : {1, 2, 3, 5, 9}) {
    const auto parts = cut_batch(whole, n);
    EXPECT_LE(parts.size(), std::size_t(n));
    EXPECT_GE(parts.size(), std::size_t(std::min(n, 2)));
    std::vector<float> all(expected.size());
    std::size_t targets = 0;
    for (const auto& part : parts) {
      const auto got = model->score(part.batch, 1.f, false, nullptr).logprobs;
      ASSERT_EQ(got.size(), part.targets.size());
      targets += got.size();
      for (std::size_t i = 0; i < got.size(); ++i)
        all[std::size_t(part.targets[i])] = got[i];
    }
    EXPECT_EQ(targets, expected.size());
    expect_same_bits(all, expected, std::to_string(n) + " parts");
  }
}

} // namespace
} // namespace troupe
