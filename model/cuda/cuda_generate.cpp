#include "core/error.hpp"
#include "model/cuda/cuda_lm_impl.hpp"
#include "model/kernels/cuda/elementwise.hpp"
#include "model/kernels/cuda/few_rows.hpp"
#include <algorithm>
#include <atomic>
#include <bit>

namespace troupe::cuda {

namespace {

constexpr std::int64_t most_captured_rows = 1024;

// Rows of the graph that a decoding pass of n rows runs in.
std::int64_t bucket_rows(std::int64_t n) {
  const std::int64_t step = n <= 8 ? 1 : n <= 32 ? 4 : n <= 128 ? 16 : n <= 512 ? 32 : 64;
  return (n + step - 1) / step * step;
}

std::uint64_t next_cache_number() {
  static std::atomic<std::uint64_t> last{0};
  return ++last;
}

} // namespace

device_cache::device_cache(std::vector<std::size_t> block_bytes, std::int32_t n_blocks, stream where)
    : block_bytes_(std::move(block_bytes)), n_blocks_(n_blocks), where_(where), number_(next_cache_number()) {
  std::size_t size = 0;
  for (const auto bytes : block_bytes_) {
    offsets_.push_back(size);
    size += bytes * std::size_t(n_blocks);
  }
  require_memory(size, "the key/value cache", "lower rollout.max_num_seqs (--max-num-seqs)");
  memory_ = device_buffer(size);
  fill_zero(memory_.data(), size, where_); // a product with an unused place must not meet a NaN
}

void device_cache::copy_block(std::int32_t from, std::int32_t to) {
  for (std::size_t i = 0; i < block_bytes_.size(); ++i) {
    auto* base = static_cast<std::byte*>(layer(i));
    copy_async(base + std::size_t(to) * block_bytes_[i], base + std::size_t(from) * block_bytes_[i], block_bytes_[i], where_);
  }
}

struct cuda_lm::bucket_graph {
  graph work;
  float* logits = nullptr;
};

bool cuda_lm::is_decoding(const token_batch& batch, std::span<const std::int32_t> logit_rows) const {
  const std::size_t n = batch.ids.size();
  return batch.copies.empty() && batch.embeds.empty() && batch.segments.size() == n && logit_rows.size() == n &&
         std::int64_t(n) <= most_captured_rows && tp_.size() == 1;
}

// The kernels of a pass, from the embedding to the draws; -> logits [tokens.n_rows, vocab].
float* cuda_lm::launch(const draw_arrays& draws, const device_batch& tokens, residual x, std::int32_t last_position, arena& memory,
                       device_cache& cache) {
  x = run_blocks(tokens, x, last_position, memory, &cache, nullptr);
  if (tokens.n_rows == 0)
    return nullptr;
  auto* logits = memory.take_array<float>(std::size_t(tokens.n_rows * cfg_.vocab_size));
  const std::int64_t h = layout_.back().in, n_rows = tokens.n_rows;
  if (!x.delta && widths_.empty() && matmul_.exact() &&
      few_rows::takes(compute_type(), n_rows, cfg_.vocab_size, h)) { // the norm and the product in one
    const std::size_t bytes = std::size_t(n_rows * h) * size_of(compute_type());
    void *sum = memory.take(bytes), *room = memory.take(bytes);
    gather_rows(compute_type(), x.sum, tokens.rows, n_rows, h, sum, stream_.get());
    few_rows::product(
        {sum, matrix_.value, nullptr, n_rows, cfg_.vocab_size, h, norm_.value, float(layout_.back().layer.rms_norm_eps), room}, logits,
        dtype::f32, stream_.get());
  } else {
    head(normalise(x, tokens.rows, n_rows, memory, nullptr), n_rows, logits);
  }
  float* scratch = draws.edits ? memory.take_array<float>(std::size_t(std::min(draws.n, edited_rows) * cfg_.vocab_size)) : nullptr;
  draw_tokens(logits, cfg_.vocab_size, draws, scratch, stream_.get());
  return logits;
}

// A decoding pass by its bucket's graph; the first one of a bucket runs kernel by kernel, and is recorded then.
float* cuda_lm::replay(const draw_arrays& draws, const device_batch& tokens, std::int32_t last_position, device_cache& cache) {
  if (graphs_cache_ != cache.number())
    moved_ = true;
  graphs_cache_ = cache.number();
  for (const auto& b : blocks_)
    if (b.rope())
      b.rope()->upto(last_position, moved_);
  scratch_for(tokens.plan);
  if (std::exchange(moved_, false))
    graphs_.clear();
  auto& found = graphs_[{tokens.n, draws.n > 0, tokens.plan.max_keys, draws.truncated, draws.edits != nullptr, draws.top != nullptr}];
  if (found) {
    found->work.launch(stream_.get());
    return found->logits;
  }
  captured_.reset();
  float* logits = launch(draws, tokens, {}, last_position, captured_, cache);
  captured_.reset();
  auto made = std::make_shared<bucket_graph>();
  begin_capture(stream_.get());
  try {
    made->logits = launch(draws, tokens, {}, last_position, captured_, cache);
  } catch (...) {
    end_capture(stream_.get());
    throw;
  }
  made->work = end_capture(stream_.get());
  found = std::move(made);
  return logits;
}

// A pass, queued; -> its logits on the device.
float* cuda_lm::queue_pass(const token_batch& batch, kv_cache& cache, std::span<const std::int32_t> logit_rows,
                           std::span<const token_draw> draws) {
  require_logits();
  enter();
  auto& blocks = dynamic_cast<device_cache&>(cache);
  check(batch, blocks.n_blocks());
  const std::int32_t last = *std::max_element(batch.positions.begin(), batch.positions.end());
  const bool decoding = is_decoding(batch, logit_rows);
  pass_bounds bounds;
  if (decoding)
    bounds = {bucket_rows(std::int64_t(batch.ids.size())),
              std::int32_t(std::max<std::uint32_t>(256, std::bit_ceil(std::uint32_t(last + 1))))};
  const device_batch tokens = upload_.put(batch, logit_rows, bounds, own_ids(), stream_.get());
  const auto places = draws.empty() || !decoding ? std::int64_t(draws.size()) : bounds.rows;
  const draw_arrays arrays = draws_.put(draws, places, stream_.get());
  moved_ = moved_ || upload_.moved() || draws_.moved();
  if (decoding)
    return replay(arrays, tokens, last, blocks);
  eager_.reset();
  float* logits = launch(arrays, tokens, embeddings(batch, eager_), last, eager_, blocks);
  if (tp_.size() > 1)
    wait("a pass of generation");
  return logits;
}

void cuda_lm::forward(const token_batch& batch, kv_cache& cache, std::span<const std::int32_t> logit_rows, float* logits) {
  const float* on_device = queue_pass(batch, cache, logit_rows, {});
  copy_async(logits, on_device, logit_rows.size() * std::size_t(cfg_.vocab_size) * sizeof(float), stream_.get());
  synchronize(stream_.get());
}

void cuda_lm::forward_draw(const token_batch& batch, kv_cache& cache, std::span<const std::int32_t> logit_rows,
                           std::span<const token_draw> draws, troupe::drawn_token* drawn) {
  queue_pass(batch, cache, logit_rows, draws);
  draws_.fetch(draws.size(), stream_.get());
  synchronize(stream_.get());
  draws_.read(draws, drawn);
}

} // namespace troupe::cuda
