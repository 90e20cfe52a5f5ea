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
constexpr std::int64_t batch_tokens = 2048;                  // of one pass
constexpr std::int64_t head_rows = 128;                      // of logits that exist at once
constexpr std::int64_t chunk_values = std::int64_t{1} << 27; // of both models' hidden states that exist at once

using sequences_view = std::span<const std::vector<std::int32_t>>;
using states = std::vector<at::Tensor>; // hidden states of each batch, [n, width] f32

// Sequences as packed batches, without targets.
std::vector<token_batch> pack_sequences(sequences_view sequences) {
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

// -log p over some tokens.
struct token_loss {
  double sum = 0;
  std::int64_t tokens = 0;
  token_loss& operator+=(const token_loss& other) {
    sum += other.sum;
    tokens += other.tokens;
    return *this;
  }
  double perplexity() const { return std::exp(sum / double(std::max<std::int64_t>(1, tokens))); }
};

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
  /// -log p of every token that follows another: adds their sum and their number.
  void add_loss(const std::vector<token_batch>& batches, std::span<states* const> sets, std::span<token_loss> losses) const {
    weight table = make_weight(blocks_.front().tensors[0]);
    if (cfg_.tie_word_embeddings)
      fill(table);
    lm_head<float> head(blocks_.back(), cfg_.tie_word_embeddings ? &table : nullptr);
    std::vector<weight*> weights;
    head.weights(weights);
    for (weight* w : weights)
      fill(*w);
    head.lay_out(where_, false);
    for (std::size_t s = 0; s < sets.size(); ++s)
      for (std::size_t i = 0; i < batches.size(); ++i)
        losses[s] += loss_of(head, batches[i], (*sets[s])[i]);
  }

private:
  token_loss loss_of(const lm_head<float>& head, const token_batch& b, const at::Tensor& hidden) const {
    std::vector<std::int32_t> rows; // those that another token of their sequence follows
    for (const auto& s : b.segments)
      for (std::int32_t r = s.row_begin; r + 1 < s.row_end; ++r)
        rows.push_back(r);
    token_loss loss;
    loss.tokens = std::int64_t(rows.size());
    if (rows.empty())
      return loss;
    const at::Tensor normalised = head.normalise(where_, hidden, std::int64_t(b.ids.size()), rows, nullptr, nullptr);
    std::vector<float> logits(std::size_t(head_rows * cfg_.vocab_size));
    for (std::int64_t begin = 0; begin < loss.tokens; begin += head_rows) {
      const std::int64_t count = std::min(head_rows, loss.tokens - begin);
      head.logits(where_, normalised, begin, count, logits.data());
      std::vector<kernels::softmax_stats> stats(static_cast<std::size_t>(count));
      kernels::softmax_rows(where_, logits.data(), count, cfg_.vocab_size, 1, false, stats.data());
      for (std::int64_t r = 0; r < count; ++r) {
        const auto next = b.ids[std::size_t(rows[std::size_t(begin + r)]) + 1];
        loss.sum -= stats[std::size_t(r)].logprob(logits[std::size_t(r * cfg_.vocab_size + next)], 1);
      }
    }
    return loss;
  }
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

void add(normal_equations& equations, const states& x, const states& y, compute& where) {
  for (std::size_t i = 0; i < x.size(); ++i)
    equations.add(where.pool(), data<float>(x[i]), data<float>(y[i]), row_weights(y[i]).data(), x[i].size(0));
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

// 1 - weighted squared error / weighted variance, of rows that come in pieces.
class explained_variance {
public:
  explicit explained_variance(std::int64_t width) : sum_(std::size_t(width)) {}
  void add(const states& found, const states& y) {
    const auto width = std::int64_t(sum_.size());
    for (std::size_t i = 0; i < y.size(); ++i) {
      const auto weights = row_weights(y[i]);
      for (std::size_t r = 0; r < weights.size(); ++r)
        add_row(weights[r], data<float>(found[i]) + std::int64_t(r) * width, data<float>(y[i]) + std::int64_t(r) * width);
    }
  }
  double value() const {
    double square_of_mean = 0;
    for (const double s : sum_)
      square_of_mean += s * s;
    return 1 - error_ / (squares_ - square_of_mean / weights_);
  }

private:
  void add_row(double w, const float* got, const float* want) {
    weights_ += w;
    for (std::size_t c = 0; c < sum_.size(); ++c) {
      const double y = want[c], off = double(got[c]) - y;
      sum_[c] += w * y;
      squares_ += w * y * y;
      error_ += w * off * off;
    }
  }
  std::vector<double> sum_; // [width] of w y
  double weights_ = 0, squares_ = 0, error_ = 0;
};

// Both models up to the cut, over a chunk of the sequences at a time.
class both_models {
public:
  both_models(const model_config& split, const safetensors_reader& first, const safetensors_reader& second, std::int64_t chunk_tokens,
              compute& where)
      : cut_8_(split.split->n_layers_8), cut_70_(split.split->whole_70 - split.split->n_layers_70), end_70_(split.split->whole_70),
        chunk_tokens_(chunk_tokens > 0 ? chunk_tokens : chunk_values / (split.layer.hidden + split.last_layer().hidden)),
        front_(sources_of(*split.split).first, first, where), back_(sources_of(*split.split).second, second, where) {}

  /// use(batches, x, y): the first model's hidden states at the cut and the second's, which are the caller's.
  template <class Use>
  void each_chunk(sequences_view sequences, Use use) const {
    for (std::size_t begin = 0, end = 0; begin < sequences.size(); begin = end) {
      std::int64_t tokens = 0;
      do
        tokens += std::int64_t(sequences[end++].size());
      while (end < sequences.size() && tokens + std::int64_t(sequences[end].size()) <= chunk_tokens_);
      const auto batches = pack_sequences(sequences.subspan(begin, end - begin));
      states x = up_to(front_, cut_8_, batches), y = up_to(back_, cut_70_, batches);
      use(batches, x, y);
    }
  }
  /// The second model's layers behind the cut and its head, on several sets of hidden states, which become those in front of the head.
  void add_losses(const std::vector<token_batch>& batches, std::span<states* const> sets, std::span<token_loss> losses) const {
    back_.run(cut_70_, end_70_, batches, sets);
    back_.add_loss(batches, sets, losses);
  }

private:
  static states up_to(const layer_by_layer& model, std::int64_t layers, const std::vector<token_batch>& batches) {
    states hidden = model.embed(batches);
    states* const one[] = {&hidden};
    model.run(0, layers, batches, one);
    return hidden;
  }
  std::int64_t cut_8_, cut_70_, end_70_, chunk_tokens_;
  layer_by_layer front_, back_;
};

std::int64_t count(sequences_view sequences) {
  std::int64_t n = 0;
  for (const auto& ids : sequences)
    n += std::int64_t(ids.size());
  return n;
}

// What the identity start and the fit achieve on sequences that were left out.
fit_report measure(const both_models& models, const block_spec& spec, const fitted_adapter& fit, sequences_view held_out, compute& where) {
  explained_variance of_before(spec.out), of_after(spec.out);
  token_loss losses[2];
  models.each_chunk(held_out, [&](const std::vector<token_batch>& batches, states& x, states& y) {
    states before = bridge(spec, identity(spec.out, spec.in), identity(spec.out, spec.out), batches, x, where);
    states after = bridge(spec, fit.linear1, fit.linear2, batches, x, where);
    x.clear();
    of_before.add(before, y);
    of_after.add(after, y);
    y.clear();
    states* const both[] = {&before, &after};
    models.add_losses(batches, both, losses);
  });
  return {0, count(held_out), of_before.value(), of_after.value(), losses[0].perplexity(), losses[1].perplexity()};
}

} // namespace

fitted_adapter fit_adapter(const model_config& split, const safetensors_reader& first, const safetensors_reader& second,
                           const std::vector<std::vector<std::int32_t>>& sequences, double ridge, compute& where,
                           std::int64_t chunk_tokens) {
  if (sequences.size() < 10)
    throw error{errc::bad_input, "fit: the text makes " + std::to_string(sequences.size()) + " sequences; at least 10 are needed"};
  const sequences_view fitting = sequences_view(sequences).first(sequences.size() - sequences.size() / 10);
  const sequences_view held_out = sequences_view(sequences).subspan(fitting.size());
  const auto blocks = layout_of(split);
  const block_spec& spec = *std::find_if(blocks.begin(), blocks.end(), [](const auto& b) { return b.kind == block_kind::adapter; });
  const both_models models(split, first, second, chunk_tokens, where);

  fitted_adapter fit;
  normal_equations equations(spec.in, spec.out);
  models.each_chunk(fitting, [&](const std::vector<token_batch>&, states& x, states& y) { add(equations, x, y, where); });
  fit.linear1 = equations.solve(where.pool(), ridge);
  fit.linear2 = identity(spec.out, spec.out);
  if (spec.relu) { // the hidden states of the first time are gone
    equations = normal_equations(spec.out, spec.out);
    models.each_chunk(fitting, [&](const std::vector<token_batch>& batches, states& x, states& y) {
      add(equations, bridge(spec, fit.linear1, fit.linear2, batches, x, where), y, where);
    });
    fit.linear2 = equations.solve(where.pool(), ridge);
  }
  fit.report = measure(models, spec, fit, held_out, where);
  fit.report.tokens = count(fitting);
  return fit;
}

} // namespace troupe
