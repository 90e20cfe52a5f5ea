#include "core/error.hpp"
#include "model/cuda/cuda_lm_impl.hpp"
#include "model/kernels/cuda/attention_tiles.hpp"
#include "model/kernels/cuda/elementwise.hpp"
#include "model/kernels/cuda/softmax.hpp"
#include <algorithm>
#include <map>

namespace troupe::cuda {

namespace {

constexpr std::int64_t norm_partials = 256; // rows of partial sums that rms_norm_backward's scratch holds

/// Host values behind each other in one array of the device.
template <class T>
const T* put(arena& memory, const std::vector<T>& values, stream where) {
  T* to = memory.take_array<T>(values.size());
  if (!values.empty())
    copy_async(to, values.data(), values.size() * sizeof(T), where);
  return to;
}

/// What reaches each row of logits, targets that agree added up.
struct row_gradients {
  std::vector<std::int32_t> begin{0}, ids; // [n_rows + 1], [entries]
  std::vector<float> d_logprob;            // [entries]
  std::vector<float> d_entropy;            // [n_rows]
};

row_gradients by_row(const cuda_tape& t, std::span<const float> d_logprob, std::span<const float> d_entropy) {
  std::vector<std::vector<std::size_t>> targets(t.rows.size());
  for (std::size_t i = 0; i < t.of.size(); ++i)
    targets[std::size_t(t.of[i])].push_back(i);
  row_gradients g;
  g.d_entropy.resize(t.rows.size());
  for (std::size_t r = 0; r < targets.size(); ++r) {
    const auto first = std::ptrdiff_t(g.ids.size());
    for (const auto i : targets[r]) {
      const auto found = std::find(g.ids.begin() + first, g.ids.end(), t.batch.targets[i]);
      if (found == g.ids.end()) {
        g.ids.push_back(t.batch.targets[i]);
        g.d_logprob.push_back(d_logprob[i]);
      } else {
        g.d_logprob[std::size_t(found - g.ids.begin())] += d_logprob[i];
      }
      if (!d_entropy.empty())
        g.d_entropy[r] += d_entropy[i];
    }
    g.begin.push_back(std::int32_t(g.ids.size()));
  }
  return g;
}

} // namespace

// d_logits -> the gradient of the rows' normalised hidden states; the head's gains.
float* cuda_lm::backward_head(cuda_tape& t, std::span<const float> d_logprob, std::span<const float> d_entropy) {
  const std::int64_t vocab = cfg_.vocab_size, h = layout_.back().in, n_rows = t.n_rows(), chunk = std::min(chunk_rows(), n_rows);
  const row_gradients g = by_row(t, d_logprob, d_entropy);
  arena& memory = *t.memory;
  const auto *ids = put(memory, g.ids, stream_.get()), *begin = put(memory, g.begin, stream_.get());
  const auto *d_lp = put(memory, g.d_logprob, stream_.get()),
             *d_ent = d_entropy.empty() ? nullptr : put(memory, g.d_entropy, stream_.get());
  auto* d_normalised = memory.take_array<float>(std::size_t(n_rows * h));
  auto* logits = memory.take_array<float>(std::size_t(chunk * vocab));
  void* d_logits = memory.take(std::size_t(chunk * vocab) * size_of(compute_type()));
  for (std::int64_t at = 0; at < n_rows; at += chunk) {
    const std::int64_t count = std::min(chunk, n_rows - at);
    const auto* x = static_cast<const std::byte*>(t.normalised) + std::size_t(at * h) * size_of(compute_type());
    head(x, count, logits);
    softmax_backward(compute_type(), logits, count, vocab, t.temperature, t.stats + at, begin + at, ids, d_lp, d_ent ? d_ent + at : nullptr,
                     d_logits, stream_.get());
    const void* own = own_columns(d_logits, count);
    if (matrix_.grad)
      matmul_.backward_weight(compute_type(), own, x, count, matrix_.rows, h, matrix_.grad, stream_.get());
    matmul_.backward_input(compute_type(), own, matrix_.value, count, matrix_.rows, h, d_normalised + at * h, stream_.get());
  }
  tp_.sum(dtype::f32, d_normalised, n_rows * h, work_[0], stream_.get(), "the gradient of the head's input");
  return head_norm_backward(t, d_normalised);
}

// This rank's columns of d_logits [n_rows, vocab], contiguous; the array itself where one rank has all.
const void* cuda_lm::own_columns(const void* d_logits, std::int64_t n_rows) {
  if (widths_.empty())
    return d_logits;
  const std::size_t size = size_of(compute_type()), width = std::size_t(matrix_.rows) * size;
  const auto begin = std::size_t(layout_.back().tied ? own_ids().begin : weights_.begin("lm_head.weight")) * size;
  work_[0].reset();
  void* own = work_[0].take(std::size_t(n_rows) * width);
  copy_rows_async(own, width, static_cast<const std::byte*>(d_logits) + begin, std::size_t(cfg_.vocab_size) * size, width,
                  std::size_t(n_rows), stream_.get());
  return own;
}

float* cuda_lm::backward_output_head(cuda_tape& t, std::span<const float> d_outputs) {
  const std::int64_t columns = layout_.back().out, h = layout_.back().in, n_rows = t.n_rows();
  std::vector<float> sum(std::size_t(n_rows * columns));
  for (std::size_t i = 0; i < t.of.size(); ++i)
    for (std::int64_t c = 0; c < columns; ++c)
      sum[std::size_t(t.of[i] * columns + c)] += d_outputs[i * std::size_t(columns) + std::size_t(c)];
  arena& memory = *t.memory;
  const float* wide = put(memory, sum, stream_.get());
  auto* d_normalised = memory.take_array<float>(std::size_t(n_rows * h));
  void* d_out = memory.take(sum.size() * size_of(compute_type()));
  convert(wide, std::int64_t(sum.size()), compute_type(), d_out, stream_.get());
  if (!matrix_.value) {
    widen(compute_type(), d_out, n_rows * h, d_normalised, stream_.get());
    return head_norm_backward(t, d_normalised);
  }
  if (bias_.grad)
    bias_backward(compute_type(), d_out, n_rows, columns, bias_.grad, stream_.get());
  if (matrix_.grad)
    matmul_.backward_weight(compute_type(), d_out, t.normalised, n_rows, columns, h, matrix_.grad, stream_.get());
  matmul_.backward_input(compute_type(), d_out, matrix_.value, n_rows, columns, h, d_normalised, stream_.get());
  return head_norm_backward(t, d_normalised);
}

// -> d_hidden [n, h] f32, zeros in rows that no target uses.
float* cuda_lm::head_norm_backward(cuda_tape& t, float* d_normalised) {
  const std::int64_t h = layout_.back().in, n_rows = t.n_rows(), n = t.tokens.n;
  arena& memory = *t.memory;
  auto *d_rows = memory.take_array<float>(std::size_t(n_rows * h)), *d_hidden = memory.take_array<float>(std::size_t(n * h));
  auto* scratch = memory.take_array<float>(std::size_t(n_rows + norm_partials * h));
  rms_norm_backward(compute_type(), d_normalised, h, t.gathered, h, norm_.value, float(layout_.back().layer.rms_norm_eps), n_rows, 1, h,
                    d_rows, h, false, norm_.grad, scratch, stream_.get());
  fill_zero(d_hidden, std::size_t(n * h) * sizeof(float), stream_.get());
  scatter_rows(dtype::f32, d_rows, t.tokens.rows, n_rows, h, d_hidden, stream_.get());
  return d_hidden;
}

attention_gradient_plan cuda_lm::gradient_plan(cuda_tape& t) {
  const token_batch& batch = t.batch.tokens;
  const attention_tiles tiles = find_attention_tiles(batch, kernels::find_key_rows(batch));
  arena& memory = *t.memory;
  attention_gradient_plan plan;
  plan.n_rows = int(tiles.positions.size());
  plan.n_pairs = tiles.n_pairs();
  plan.tile_begin = put(memory, tiles.tile_begin, stream_.get());
  plan.positions = put(memory, tiles.positions, stream_.get());
  plan.key_lists = put(memory, tiles.key_lists, stream_.get());
  plan.query_lists = put(memory, tiles.query_lists, stream_.get());
  plan.key_entries = put(memory, tiles.key_entries, stream_.get());
  plan.query_entries = put(memory, tiles.query_entries, stream_.get());
  plan.masks = put(memory, tiles.masks, stream_.get());
  synchronize(stream_.get()); // the host's arrays end here
  return plan;
}

void cuda_lm::backward_blocks(cuda_tape& t, float* d_hidden) {
  const attention_gradient_plan plan = gradient_plan(t);
  bool moved = false;
  device_pass p{matmul_, tp_, stream_.get(), compute_type(), *t.memory, &work_[0], t.tokens, nullptr, nullptr, &plan};
  for (std::size_t i = blocks_.size(); i-- > std::max<std::size_t>(lowest_, 1);) {
    const device_block& b = blocks_[i];
    work_[0].reset(); // a block's intermediates end with it
    float* d_in = b.backward(p, t.layers[i - lowest_], d_hidden, b.rope() ? b.rope()->upto(t.last_position, moved) : nullptr, i > lowest_);
    if (!d_in)
      return;
    if (d_in != d_hidden) { // of another width, and in the layer's memory
      d_hidden = t.memory->take_array<float>(std::size_t(t.tokens.n * b.spec().in));
      copy_async(d_hidden, d_in, std::size_t(t.tokens.n * b.spec().in) * sizeof(float), stream_.get());
    }
  }
  moved_ = moved_ || moved;
  if (lowest_ == 0)
    embedding_backward(t, d_hidden);
}

void cuda_lm::embedding_backward(cuda_tape& t, const float* d_hidden) {
  const stacked table = weights_.find(layout_.front(), {"weight"});
  if (!table.grad || !t.batch.tokens.embeds.empty())
    return;
  std::map<std::int32_t, std::vector<std::int32_t>> rows;
  const id_range own = own_ids();
  for (std::size_t r = 0; r < t.batch.tokens.ids.size(); ++r)
    if (const auto id = t.batch.tokens.ids[r]; id >= own.begin && id < own.end)
      rows[std::int32_t(id - own.begin)].push_back(std::int32_t(r));
  std::vector<std::int32_t> ids, begin{0}, order;
  for (const auto& [id, of] : rows) {
    ids.push_back(id);
    order.insert(order.end(), of.begin(), of.end());
    begin.push_back(std::int32_t(order.size()));
  }
  arena& memory = *t.memory;
  const auto *d_ids = put(memory, ids, stream_.get()), *d_begin = put(memory, begin, stream_.get()),
             *d_order = put(memory, order, stream_.get());
  embed_backward(d_ids, d_begin, d_order, std::int64_t(ids.size()), d_hidden, table.columns, table.grad, stream_.get());
  synchronize(stream_.get());
}

void cuda_lm::backward(tape& saved, std::span<const float> d_logprob, std::span<const float> d_entropy) {
  auto& t = dynamic_cast<cuda_tape&>(saved);
  if (d_logprob.size() != t.batch.targets.size() || (!d_entropy.empty() && d_entropy.size() != d_logprob.size()))
    throw error{errc::bad_shape, "model backward: " + std::to_string(d_logprob.size()) + " gradients for " +
                                     std::to_string(t.batch.targets.size()) + " targets"};
  enter();
  if (!t.rows.empty())
    backward_blocks(t, backward_head(t, d_logprob, d_entropy));
}

void cuda_lm::backward_outputs(tape& saved, std::span<const float> d_outputs) {
  auto& t = dynamic_cast<cuda_tape&>(saved);
  if (d_outputs.size() != t.batch.targets.size() * std::size_t(layout_.back().out))
    throw error{errc::bad_shape, "model backward: " + std::to_string(d_outputs.size()) + " gradients for " +
                                     std::to_string(t.batch.targets.size()) + " targets of " + std::to_string(layout_.back().out) +
                                     " columns"};
  enter();
  if (!t.rows.empty())
    backward_blocks(t, backward_output_head(t, d_outputs));
}

} // namespace troupe::cuda
