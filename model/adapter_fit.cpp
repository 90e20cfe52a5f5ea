#include "model/adapter_fit.hpp"
#include "core/error.hpp"
#include "model/adapter_block.hpp"
#include "model/blocks.hpp"
#include "model/least_squares.hpp"
#include "model/weights/tensor_check.hpp"
#include <ATen/ops/empty.h>
#include <algorithm>
#include <cmath>

namespace troupe {

namespace {

// No result depends on these.
constexpr std::int64_t batch_tokens = 2048; // of one pass
constexpr std::int64_t head_rows = 128;     // of logits that exist at once

using token_sequences = std::vector<std::vector<std::int32_t>>;
using states = std::vector<at::Tensor>; // hidden states of each batch, [n, width] f32

// Sequences as packed batches, without targets.
std::vector<token_batch> pack_sequences(const token_sequences& sequences) {
  std::vector<token_batch> batches;
  for (const auto& ids : sequences) {
    if (batches.empty() || std::int64_t(batches.back().ids.size() + ids.size()) > batch_tokens)
      batches.emplace_back();
    token_batch& b = batches.back();
    segment s{std::int32_t(b.ids.size()), std::int32_t(b.ids.size() + ids.size()), 0, {}};
    for (std::size_t i = 0; i < ids.size(); ++i) {
      b.ids.push_back(ids[i]);
      b.positions.push_back(std::int32_t(i));
      if (i % kv_block_tokens == 0)
        s.blocks.push_back(b.n_blocks++);
    }
    b.segments.push_back(std::move(s));
  }
  return batches;
}

// One whole model, of which a block at a time is read and run.
class layer_by_layer {
public:
  layer_by_layer(const model_config& cfg, const safetensors_reader& files, compute& where)
      : cfg_(cfg), blocks_(layout_of(cfg)), files_(files), where_(where),
        rope_(std::make_shared<rope_table>(cfg.layer.rope, cfg.layer.head_dim)) {}

  states embed(const std::vector<token_batch>& batches) const {
    embedding_block<float> block(blocks_.front());
    load(block);
    states all;
    for (const auto& b : batches) {
      pass p{where_, b};
      all.push_back(block.forward(p, {}, nullptr));
    }
    return all;
  }
  /// Layers [begin, end), on several sets of states of the same batches.
  void run(std::int64_t begin, std::int64_t end, const std::vector<token_batch>& batches, std::span<states* const> sets) const {
    for (std::int64_t l = begin; l < end; ++l) {
      decoder_block<float> block(blocks_[std::size_t(l) + 1], rope_);
      load(block);
      for (states* hidden : sets)
        for (std::size_t i = 0; i < batches.size(); ++i) {
          at::Tensor cache = empty_matrix<float>(1, block.cache_block_elements() * batches[i].n_blocks);
          pass p{where_, batches[i], cache.mutable_data_ptr()};
          (*hidden)[i] = block.forward(p, (*hidden)[i], nullptr);
        }
    }
  }
  /// Mean of -log p of every token that follows another.
  double loss(const std::vector<token_batch>& batches, const states& hidden) const {
    weight table = make_weight(blocks_.front().tensors[0]);
    if (cfg_.tie_word_embeddings)
      fill(table);
    lm_head<float> head(blocks_.back(), cfg_.tie_word_embeddings ? &table : nullptr);
    std::vector<weight*> weights;
    head.weights(weights);
    for (weight* w : weights)
      fill(*w);
    head.lay_out(where_, false);
    double sum = 0;
    std::int64_t n = 0;
    std::vector<float> logits(std::size_t(head_rows * cfg_.vocab_size));
    for (std::size_t i = 0; i < batches.size(); ++i) {
      const token_batch& b = batches[i];
      std::vector<std::int32_t> rows; // those that another token of their sequence follows
      for (const auto& s : b.segments)
        for (std::int32_t r = s.row_begin; r + 1 < s.row_end; ++r)
          rows.push_back(r);
      const at::Tensor normalised = head.normalise(where_, hidden[i], std::int64_t(b.ids.size()), rows, nullptr, nullptr);
      const auto n_rows = std::int64_t(rows.size());
      for (std::int64_t begin = 0; begin < n_rows; begin += head_rows) {
        const std::int64_t count = std::min(head_rows, n_rows - begin);
        head.logits(where_, normalised, begin, count, logits.data());
        std::vector<kernels::softmax_stats> stats(static_cast<std::size_t>(count));
        kernels::softmax_rows(where_, logits.data(), count, cfg_.vocab_size, 1, false, stats.data());
        for (std::int64_t r = 0; r < count; ++r) {
          const auto next = b.ids[std::size_t(rows[std::size_t(begin + r)]) + 1];
          sum -= stats[std::size_t(r)].logprob(logits[std::size_t(r * cfg_.vocab_size + next)], 1);
        }
      }
      n += n_rows;
    }
    return sum / double(std::max<std::int64_t>(1, n));
  }

private:
  void fill(weight& w) const {
    const tensor_info& t = *files_.find(w.name);
    check_finite(files_, t);
    w.value = at::empty(w.shape, at::kFloat);
    convert_elements(t.type, t.bytes.data(), dtype::f32, static_cast<std::byte*>(w.value.mutable_data_ptr()), std::size_t(w.value.numel()));
    files_.release(t);
  }
  void load(block<float>& b) const {
    std::vector<weight*> weights;
    b.weights(weights);
    for (weight* w : weights)
      fill(*w);
    b.lay_out(where_, false);
  }

  model_config cfg_;
  std::vector<block_spec> blocks_;
  const safetensors_reader& files_;
  compute& where_;
  std::shared_ptr<rope_table> rope_;
};

// 1/|y|^2 of each row: massive activations, such as a first token's, count no more than others.
std::vector<double> row_weights(const at::Tensor& y) {
  std::vector<double> weights;
  const std::int64_t width = y.size(1);
  for (std::int64_t r = 0; r < y.size(0); ++r) {
    double norm = 0;
    for (std::int64_t i = 0; i < width; ++i)
      norm += double(data<float>(y)[r * width + i]) * data<float>(y)[r * width + i];
    weights.push_back(1 / std::max(norm, 1e-12));
  }
  return weights;
}

std::vector<float> solve(const states& x, const states& y, std::int64_t in, std::int64_t out, double ridge, compute& where) {
  normal_equations equations(in, out);
  for (std::size_t i = 0; i < x.size(); ++i)
    equations.add(where.pool(), data<float>(x[i]), data<float>(y[i]), row_weights(y[i]).data(), x[i].size(0));
  return equations.solve(where.pool(), ridge);
}

std::vector<float> identity(std::int64_t rows, std::int64_t columns) {
  std::vector<float> eye(std::size_t(rows * columns));
  for (std::int64_t i = 0; i < std::min(rows, columns); ++i)
    eye[std::size_t(i * columns + i)] = 1;
  return eye;
}

states bridge(const block_spec& spec, const std::vector<float>& linear1, const std::vector<float>& linear2,
              const std::vector<token_batch>& batches, const states& x, compute& where) {
  adapter_block<float> block(spec);
  std::vector<weight*> weights;
  block.weights(weights);
  for (std::size_t i = 0; i < 2; ++i) {
    const auto& values = i == 0 ? linear1 : linear2;
    weights[i]->value = at::empty(weights[i]->shape, at::kFloat);
    std::copy(values.begin(), values.end(), data<float>(weights[i]->value));
  }
  block.lay_out(where, false);
  states out;
  for (std::size_t i = 0; i < batches.size(); ++i) {
    pass p{where, batches[i]};
    out.push_back(block.forward(p, x[i], nullptr));
  }
  return out;
}

// 1 - weighted squared error / weighted variance.
double explained(const states& found, const states& y) {
  const std::int64_t width = y[0].size(1);
  std::vector<double> mean(std::size_t(width), 0.0);
  double total = 0, error = 0, variance = 0;
  const auto each = [&](auto&& row) {
    for (std::size_t i = 0; i < y.size(); ++i) {
      const auto weights = row_weights(y[i]);
      for (std::size_t r = 0; r < weights.size(); ++r)
        row(weights[r], data<float>(found[i]) + std::int64_t(r) * width, data<float>(y[i]) + std::int64_t(r) * width);
    }
  };
  each([&](double w, const float*, const float* want) {
    total += w;
    for (std::int64_t c = 0; c < width; ++c)
      mean[std::size_t(c)] += w * want[c];
  });
  each([&](double w, const float* got, const float* want) {
    for (std::int64_t c = 0; c < width; ++c) {
      error += w * (double(got[c]) - want[c]) * (double(got[c]) - want[c]);
      variance += w * (want[c] - mean[std::size_t(c)] / total) * (want[c] - mean[std::size_t(c)] / total);
    }
  });
  return 1 - error / variance;
}

std::int64_t count(const std::vector<token_batch>& batches) {
  std::int64_t n = 0;
  for (const auto& b : batches)
    n += std::int64_t(b.ids.size());
  return n;
}

} // namespace

fitted_adapter fit_adapter(const model_config& split, const safetensors_reader& first, const safetensors_reader& second,
                           const token_sequences& sequences, double ridge, compute& where) {
  if (sequences.size() < 10)
    throw error{errc::bad_input, "fit: the text makes " + std::to_string(sequences.size()) + " sequences; at least 10 are needed"};
  const std::size_t cut = sequences.size() - sequences.size() / 10;
  const auto fitting = pack_sequences({sequences.begin(), sequences.begin() + std::ptrdiff_t(cut)});
  const auto held_out = pack_sequences({sequences.begin() + std::ptrdiff_t(cut), sequences.end()});
  const auto whole = sources_of(*split.split);
  const std::int64_t h8 = split.layer.hidden, h70 = split.last_layer().hidden, begins = split.split->whole_70 - split.split->n_layers_70;
  const auto at_the_cut = [&](const layer_by_layer& model, std::int64_t layers, const std::vector<token_batch>& batches) {
    states hidden = model.embed(batches);
    states* const one[] = {&hidden};
    model.run(0, layers, batches, one);
    return hidden;
  };
  const layer_by_layer front(whole.first, first, where), back(whole.second, second, where);
  const states x = at_the_cut(front, split.split->n_layers_8, fitting), x_held = at_the_cut(front, split.split->n_layers_8, held_out);
  const states y = at_the_cut(back, begins, fitting), y_held = at_the_cut(back, begins, held_out);

  const auto blocks = layout_of(split);
  const block_spec& spec = *std::find_if(blocks.begin(), blocks.end(), [](const auto& b) { return b.kind == block_kind::adapter; });
  fitted_adapter fit;
  fit.linear1 = solve(x, y, h8, h70, ridge, where);
  fit.linear2 = identity(h70, h70);
  if (spec.relu)
    fit.linear2 = solve(bridge(spec, fit.linear1, fit.linear2, fitting, x, where), y, h70, h70, ridge, where);
  states before = bridge(spec, identity(h70, h8), identity(h70, h70), held_out, x_held, where);
  states after = bridge(spec, fit.linear1, fit.linear2, held_out, x_held, where);
  fit.report = {count(fitting), count(held_out), explained(before, y_held), explained(after, y_held), 0, 0};
  states* const both[] = {&before, &after};
  back.run(begins, split.split->whole_70, held_out, both);
  fit.report.perplexity_before = std::exp(back.loss(held_out, before));
  fit.report.perplexity_after = std::exp(back.loss(held_out, after));
  return fit;
}

} // namespace troupe
