#include "core/error.hpp"
#include "model/cuda/cuda_lm_impl.hpp"
#include "model/kernels/cuda/softmax.hpp"
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

// What a decoding pass leaves on the device.
struct cuda_lm::draw_buffers {
  row_draw* draws = nullptr;          // [n]
  cuda::drawn_token* drawn = nullptr; // [n]
  std::int64_t n = 0;
  float logprob_temperature = 1;
  bool truncated = false;  // any of the draws
  float* logits = nullptr; // [rows, vocab], set by the pass
};

struct cuda_lm::bucket_graph {
  graph work;
  float* logits = nullptr;
};

bool cuda_lm::is_decoding(const token_batch& batch, std::span<const std::int32_t> logit_rows) const {
  const std::size_t n = batch.ids.size();
  return batch.copies.empty() && batch.embeds.empty() && batch.segments.size() == n && logit_rows.size() == n &&
         std::int64_t(n) <= most_captured_rows && tp_.size() == 1;
}

// Memory of the draws, on the device and pinned; the same as long as it suffices.
cuda_lm::draw_buffers cuda_lm::place_draws(std::span<const token_draw> draws, std::int64_t n, float logprob_temperature) {
  const std::size_t places = std::size_t(std::max<std::int64_t>(n, 1));
  const std::size_t inputs = places * sizeof(row_draw), outputs = places * sizeof(cuda::drawn_token);
  const std::size_t bytes = inputs + outputs;
  if (draws_.size() < bytes) {
    draws_ = device_buffer(2 * bytes);
    moved_ = true;
  }
  if (host_draws_.size() < inputs) {
    host_draws_ = pinned_buffer(2 * inputs);
    host_drawn_ = pinned_buffer(2 * outputs);
  }
  auto* host = static_cast<row_draw*>(host_draws_.data());
  bool truncated = false;
  for (std::size_t i = 0; i < places; ++i) {
    const auto d = i < draws.size() ? draws[i] : token_draw{.temperature = 0};
    host[i] = {d.row, d.temperature, d.u, d.top_k, d.top_p, d.min_p};
    truncated = truncated || d.top_k > 0 || d.top_p < 1 || d.min_p > 0;
  }
  copy_async(draws_.data(), host, inputs, stream_.get());
  auto* base = static_cast<std::byte*>(draws_.data());
  return {static_cast<row_draw*>(draws_.data()), reinterpret_cast<cuda::drawn_token*>(base + inputs), n, logprob_temperature, truncated};
}

// The kernels of a pass, from the embedding to the draws.
void cuda_lm::launch(draw_buffers& d, const device_batch& tokens, residual x, std::int32_t last_position, arena& memory,
                     device_cache& cache) {
  x = run_blocks(tokens, x, last_position, memory, &cache, nullptr);
  if (tokens.n_rows == 0)
    return;
  void* normalised = normalise(x, tokens.rows, tokens.n_rows, memory, nullptr);
  d.logits = memory.take_array<float>(std::size_t(tokens.n_rows * cfg_.vocab_size));
  head(normalised, tokens.n_rows, d.logits);
  if (d.n > 0)
    draw_tokens(d.logits, cfg_.vocab_size, d.draws, d.n, d.logprob_temperature, d.drawn, stream_.get());
  if (d.truncated)
    draw_truncated(d.logits, cfg_.vocab_size, d.draws, d.n, d.logprob_temperature, d.drawn, stream_.get());
}

// A decoding pass by its bucket's graph; the first one of a bucket runs kernel by kernel, and is recorded then.
void cuda_lm::replay(draw_buffers& d, const device_batch& tokens, std::int32_t last_position, device_cache& cache) {
  if (graphs_cache_ != cache.number())
    moved_ = true;
  graphs_cache_ = cache.number();
  for (const auto& b : blocks_)
    if (b.rope())
      b.rope()->upto(last_position, moved_);
  scratch_for(tokens.plan);
  if (std::exchange(moved_, false))
    graphs_.clear();
  auto& found = graphs_[{tokens.n, tokens.plan.max_keys, std::bit_cast<std::uint32_t>(d.logprob_temperature), d.truncated}];
  if (!found) {
    captured_.reset();
    launch(d, tokens, {}, last_position, captured_, cache);
    captured_.reset();
    auto made = std::make_shared<bucket_graph>();
    begin_capture(stream_.get());
    try {
      launch(d, tokens, {}, last_position, captured_, cache);
    } catch (...) {
      end_capture(stream_.get());
      throw;
    }
    made->work = end_capture(stream_.get());
    made->logits = d.logits;
    found = std::move(made);
  } else {
    found->work.launch(stream_.get());
    d.logits = found->logits;
  }
}

void cuda_lm::forward_draw(const token_batch& batch, kv_cache& cache, std::span<const std::int32_t> logit_rows,
                           std::span<const token_draw> draws, float logprob_temperature, troupe::drawn_token* drawn,
                           std::span<const std::int32_t> host_rows, float* logits) {
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
  moved_ = moved_ || upload_.moved();
  draw_buffers d = place_draws(draws, decoding ? bounds.rows : std::int64_t(draws.size()), logprob_temperature);
  if (decoding) {
    replay(d, tokens, last, blocks);
  } else {
    eager_.reset();
    launch(d, tokens, embeddings(batch, eager_), last, eager_, blocks);
  }
  if (tp_.size() > 1)
    wait("a pass of generation");
  auto* host = static_cast<cuda::drawn_token*>(host_drawn_.data());
  if (!draws.empty())
    copy_async(host, d.drawn, draws.size() * sizeof *host, stream_.get());
  const auto row = std::size_t(cfg_.vocab_size);
  if (!host_rows.empty() && host_rows.size() == logit_rows.size())
    copy_async(logits, d.logits, host_rows.size() * row * sizeof(float), stream_.get());
  else
    for (std::size_t i = 0; i < host_rows.size(); ++i)
      copy_async(logits + i * row, d.logits + std::size_t(host_rows[i]) * row, row * sizeof(float), stream_.get());
  synchronize(stream_.get());
  for (std::size_t i = 0; i < draws.size(); ++i)
    drawn[i] = {host[i].id, host[i].logprob};
}

} // namespace troupe::cuda
