#include "model/cuda/cuda_lm.hpp"
#include "core/error.hpp"
#include "model/cuda/cuda_lm_impl.hpp"
#include "model/kernels/cuda/elementwise.hpp"
#include "model/kernels/cuda/softmax.hpp"
#include "model/kernels/elementwise.hpp"
#include <algorithm>

namespace troupe {
namespace cuda {

namespace {

device_tp make_tp(const model_options& options) {
  if (!options.parallel || options.parallel->ranks.shape.tp == 1)
    return {};
  return device_tp(make_nccl_communicator(options.parallel->ranks.tp, "gpu tp"));
}

constexpr std::int64_t head_chunk_bytes = std::int64_t{512} << 20; // of logits that exist at once while scoring

} // namespace

cuda_lm::cuda_lm(model_config cfg, const model_options& options, compute& where)
    : cfg_(std::move(cfg)), options_(options), where_(where), tp_(make_tp(options)), layout_(layout_of(cfg_)),
      weights_(layout_, options.compute_type, options, tp_.rank(), tp_.size()) {
  std::shared_ptr<device_rope> rope;
  for (std::size_t i = 0; i + 1 < layout_.size(); ++i) {
    const block_spec& spec = layout_[i];
    if (spec.kind == block_kind::adapter)
      rope = nullptr; // the second half has its own
    else if (spec.kind == block_kind::decoder && !rope)
      rope = std::make_shared<device_rope>(spec.layer.rope, spec.layer.head_dim);
    blocks_.emplace_back(spec, weights_, rope, tp_.size());
  }
  const block_spec& head = layout_.back();
  norm_ = weights_.find(head, {"model.norm.weight"});
  matrix_ = head.kind == block_kind::lm_head
                ? (head.tied ? weights_.find(layout_.front(), {"weight"}) : weights_.find(head, {"lm_head.weight"}))
                : weights_.find(head, {"score.weight"});
  bias_ = weights_.find(head, {"score.bias"});
  if (tp_.size() > 1 && head.kind == block_kind::lm_head)
    for (int r = 0; r < tp_.size(); ++r) {
      const shard_range part = shard_of(head.tied ? layout_.front().tensors[0] : head.tensors[1], r, tp_.size());
      widths_.push_back(part.end - part.begin);
    }
  lowest_ = blocks_.size();
  for (std::size_t i = blocks_.size(); i-- > 0;)
    if (blocks_[i].trained())
      lowest_ = i;
}

void cuda_lm::publish_masters() {
  enter();
  std::vector<std::size_t> changed;
  for (std::size_t i = 0; i < parameters().size(); ++i) {
    const parameter& p = parameters()[i];
    if (!p.trainable)
      continue;
    changed.push_back(i);
    if (compute_type() == dtype::bf16)
      kernels::convert(where_, p.master.data(), std::int64_t(p.master.size()), reinterpret_cast<kernels::bf16*>(p.value.data()));
  }
  if (!changed.empty())
    weights_.upload(changed, stream_.get());
}

std::unique_ptr<kv_cache> cuda_lm::make_cache(std::int32_t n_blocks) {
  enter();
  std::vector<std::size_t> bytes;
  for (const auto& b : blocks_)
    if (b.has_cache())
      bytes.push_back(std::size_t(b.heads().block_elements()) * size_of(compute_type()));
  return std::make_unique<device_cache>(std::move(bytes), n_blocks, stream_.get());
}

std::size_t cuda_lm::cache_block_bytes() const {
  std::size_t bytes = 0;
  for (const auto& b : blocks_)
    bytes += b.has_cache() ? std::size_t(b.heads().block_elements()) * size_of(compute_type()) : 0;
  return bytes;
}

std::int64_t cuda_lm::cache_memory() const {
  enter();
  const auto free = double(device_memory().free);
  return std::int64_t(options_.training ? free / 2 : 0.9 * free); // a learner needs room for what it keeps
}

void* cuda_lm::scratch_for(const attention_plan& plan) {
  std::size_t bytes = 0;
  for (const auto& b : blocks_)
    if (b.has_cache())
      bytes = std::max(bytes, attention_scratch_bytes(b.heads(), plan.n_segments, plan.max_keys));
  if (scratch_.size() < bytes) {
    scratch_ = device_buffer(2 * bytes);
    fill_zero(scratch_.data(), scratch_.size(), stream_.get());
    moved_ = true;
  }
  return scratch_.data();
}

void cuda_lm::check(const token_batch& b, std::int32_t cache_blocks) const {
  if (b.ids.empty() || b.ids.size() != b.positions.size())
    throw error{errc::bad_shape, "model: a pass needs as many positions as tokens, and at least one; it has " +
                                     std::to_string(b.positions.size()) + " and " + std::to_string(b.ids.size())};
  for (const auto id : b.ids)
    if (id < 0 || id >= cfg_.vocab_size)
      throw error{errc::bad_shape,
                  "model: token id " + std::to_string(id) + " is outside the vocabulary of " + std::to_string(cfg_.vocab_size)};
  if (b.n_blocks > cache_blocks)
    throw error{errc::bad_shape,
                "model: a pass over " + std::to_string(b.n_blocks) + " blocks and a cache of " + std::to_string(cache_blocks)};
  if (b.embeds.size() % b.ids.size() != 0 || (!b.embeds.empty() && std::int64_t(b.embeds.size() / b.ids.size()) != layout_.front().out))
    throw error{errc::bad_shape, "model: embeddings of " + std::to_string(b.ids.size()) + " tokens hold " +
                                     std::to_string(b.embeds.size()) + " numbers; width " + std::to_string(layout_.front().out) +
                                     " is wanted"};
}

void cuda_lm::require_logits() const {
  if (cfg_.head != head_kind::lm)
    throw error{errc::unsupported, "model: " + cfg_.architecture + " gives no logits: its head is of another kind; a CausalLM is wanted"};
}

residual cuda_lm::embeddings(const token_batch& batch, arena& memory) {
  if (batch.embeds.empty())
    return {};
  const std::size_t bytes = batch.embeds.size() * sizeof(float);
  void* wide = memory.take(bytes);
  copy_async(wide, batch.embeds.data(), bytes, stream_.get());
  void* x = memory.take(batch.embeds.size() * size_of(compute_type()));
  convert(static_cast<float*>(wide), std::int64_t(batch.embeds.size()), compute_type(), x, stream_.get());
  return {x, nullptr};
}

residual cuda_lm::run_blocks(const device_batch& tokens, residual x, std::int32_t last_position, arena& memory, device_cache* cache,
                             std::vector<saved_layer>* save) {
  device_pass p{matmul_, tp_, stream_.get(), compute_type(), memory, nullptr, tokens, nullptr, scratch_for(tokens.plan)};
  void* shared = nullptr; // one layer's blocks, where nothing reads them later
  std::size_t layer = 0, shared_bytes = 0;
  for (std::size_t i = 0; i < blocks_.size(); ++i) {
    const device_block& b = blocks_[i];
    p.work = &work_[i % 2]; // the block before left what this one reads in the other
    p.work->reset();
    if (b.has_cache() && cache)
      p.layer_cache = cache->layer(layer++);
    else if (b.has_cache()) {
      const auto bytes = std::size_t(b.heads().block_elements()) * size_of(compute_type()) * std::size_t(cacheless_blocks_);
      if (bytes > shared_bytes)
        shared = memory.take(shared_bytes = bytes);
      p.layer_cache = shared;
    }
    saved_layer* keep = save && i >= lowest_ ? &save->emplace_back() : nullptr;
    x = b.forward(p, x, b.rope() ? b.rope()->upto(last_position, moved_) : nullptr, keep);
  }
  return x;
}

// The rows that the head reads, normalised: [n_rows, h]. gathered: the same before the norm.
void* cuda_lm::normalise(const residual& x, const std::int32_t* rows, std::int64_t n_rows, arena& memory, void** gathered) {
  const std::int64_t h = layout_.back().in;
  const std::size_t bytes = std::size_t(n_rows * h) * size_of(compute_type());
  void *sum = memory.take(bytes), *delta = x.delta ? memory.take(bytes) : nullptr, *norm = memory.take(bytes);
  gather_rows(compute_type(), x.sum, rows, n_rows, h, sum, stream_.get());
  if (delta)
    gather_rows(compute_type(), x.delta, rows, n_rows, h, delta, stream_.get());
  add_rms_norm(compute_type(), delta, sum, norm_.value, float(layout_.back().layer.rms_norm_eps), n_rows, h, norm, stream_.get());
  if (gathered)
    *gathered = sum;
  return norm;
}

// out [n_rows, columns of the whole head] f32, on every rank.
void cuda_lm::head(const void* normalised, std::int64_t n_rows, float* out) {
  const std::int64_t h = layout_.back().in;
  if (!matrix_.value)
    return widen(compute_type(), normalised, n_rows * h, out, stream_.get());
  if (widths_.empty())
    return matmul_.forward(compute_type(), normalised, matrix_.value, nullptr, n_rows, matrix_.rows, h, out, dtype::f32, stream_.get());
  work_[0].reset();
  auto* own = work_[0].take_array<float>(std::size_t(n_rows * widths_[0])); // the first is the widest
  matmul_.forward(compute_type(), normalised, matrix_.value, nullptr, n_rows, matrix_.rows, h, own, dtype::f32, stream_.get());
  tp_.gather_columns(own, n_rows, widths_, out, work_[0], stream_.get(), "logits");
}

id_range cuda_lm::own_ids() const {
  const std::int64_t begin = weights_.begin(layout_.front().prefix + "weight");
  return {begin, begin + weights_.find(layout_.front(), {"weight"}).rows};
}

// ---- scoring ----

std::unique_ptr<cuda_tape> cuda_lm::run_scored(const packed_batch& batch, bool save) {
  enter();
  check(batch.tokens, batch.tokens.n_blocks);
  auto t = std::make_unique<cuda_tape>();
  t->memory = take_arena();
  t->batch = batch;
  t->rows = batch.target_rows;
  std::sort(t->rows.begin(), t->rows.end());
  t->rows.erase(std::unique(t->rows.begin(), t->rows.end()), t->rows.end());
  for (const auto r : batch.target_rows)
    t->of.push_back(std::int32_t(std::lower_bound(t->rows.begin(), t->rows.end(), r) - t->rows.begin()));
  t->tokens = t->upload.put(batch.tokens, t->rows, {}, own_ids(), stream_.get());
  cacheless_blocks_ = batch.tokens.n_blocks;
  t->last_position = *std::max_element(batch.tokens.positions.begin(), batch.tokens.positions.end());
  const residual x =
      run_blocks(t->tokens, embeddings(batch.tokens, *t->memory), t->last_position, *t->memory, nullptr, save ? &t->layers : nullptr);
  t->normalised = normalise(x, t->tokens.rows, t->n_rows(), *t->memory, &t->gathered);
  return t;
}

std::int64_t cuda_lm::chunk_rows() const {
  return std::max<std::int64_t>(1, head_chunk_bytes / std::int64_t(sizeof(float)) / std::max<std::int64_t>(1, layout_.back().out));
}

target_values cuda_lm::score(const packed_batch& batch, float temperature, bool entropy, std::unique_ptr<tape>* save) {
  require_logits();
  for (const auto id : batch.targets)
    if (id < 0 || id >= cfg_.vocab_size)
      throw error{errc::bad_shape,
                  "model: target id " + std::to_string(id) + " is outside the vocabulary of " + std::to_string(cfg_.vocab_size)};
  target_values values;
  values.logprobs.resize(batch.targets.size());
  if (batch.targets.empty() && !save)
    return values;
  auto t = run_scored(batch, save != nullptr);
  t->temperature = temperature;
  t->stats = t->memory->take_array<kernels::softmax_stats>(std::size_t(t->n_rows()));
  score_head(*t, entropy || save, values);
  if (entropy) {
    std::vector<kernels::softmax_stats> stats(t->rows.size());
    copy_async(stats.data(), t->stats, stats.size() * sizeof stats[0], stream_.get());
    synchronize(stream_.get());
    for (const auto of : t->of)
      values.entropy.push_back(stats[std::size_t(of)].entropy());
  }
  if (save)
    *save = std::move(t);
  return values;
}

void cuda_lm::score_head(cuda_tape& t, bool moment, target_values& values) {
  const std::int64_t vocab = cfg_.vocab_size, chunk = std::min(chunk_rows(), t.n_rows());
  const std::size_t h = std::size_t(layout_.back().in) * size_of(compute_type()), n = t.batch.targets.size();
  // Targets sorted by row, so that a chunk's are together.
  std::vector<std::size_t> order(n);
  for (std::size_t i = 0; i < n; ++i)
    order[i] = i;
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return t.of[a] < t.of[b]; });
  std::vector<std::int32_t> packed; // rows within their chunk, then ids
  for (const auto i : order)
    packed.push_back(std::int32_t(t.of[i] % std::max<std::int64_t>(chunk, 1)));
  for (const auto i : order)
    packed.push_back(t.batch.targets[i]);
  auto* where = t.memory->take_array<std::int32_t>(packed.size());
  auto* logprobs = t.memory->take_array<float>(n);
  auto* logits = t.memory->take_array<float>(std::size_t(chunk * vocab));
  copy_async(where, packed.data(), packed.size() * sizeof packed[0], stream_.get());
  for (std::int64_t begin = 0, at = 0; begin < t.n_rows(); begin += chunk) {
    const std::int64_t count = std::min(chunk, t.n_rows() - begin);
    std::int64_t end = at;
    while (end < std::int64_t(n) && t.of[order[std::size_t(end)]] < begin + count)
      ++end;
    head(static_cast<const std::byte*>(t.normalised) + std::size_t(begin) * h, count, logits);
    softmax_rows(logits, count, vocab, t.temperature, moment, t.stats + begin, stream_.get());
    logprobs_of(logits, vocab, t.temperature, t.stats + begin, where + at, where + std::int64_t(n) + at, end - at, logprobs + at,
                stream_.get());
    at = end;
  }
  wait("log-probabilities");
  std::vector<float> sorted(n);
  copy_async(sorted.data(), logprobs, n * sizeof(float), stream_.get());
  synchronize(stream_.get());
  for (std::size_t i = 0; i < n; ++i)
    values.logprobs[order[i]] = sorted[i];
}

std::vector<float> cuda_lm::outputs(const packed_batch& batch, std::unique_ptr<tape>* save) {
  const auto columns = std::size_t(layout_.back().out);
  std::vector<float> out(batch.targets.size() * columns);
  auto t = run_scored(batch, save != nullptr);
  std::vector<float> rows(t->rows.size() * columns);
  auto* all = t->memory->take_array<float>(rows.size());
  head(t->normalised, t->n_rows(), all);
  wait("outputs");
  copy_async(rows.data(), all, rows.size() * sizeof(float), stream_.get());
  synchronize(stream_.get());
  const float bias = bias_.value ? host_bias() : 0.0f;
  for (std::size_t i = 0; i < t->of.size(); ++i)
    for (std::size_t c = 0; c < columns; ++c)
      out[i * columns + c] = rows[std::size_t(t->of[i]) * columns + c] + bias;
  if (save)
    *save = std::move(t);
  return out;
}

float cuda_lm::host_bias() {
  const auto& last = parameters().back();
  return compute_type() == dtype::f32 ? *reinterpret_cast<const float*>(last.value.data())
                                      : kernels::widen(*reinterpret_cast<const kernels::bf16*>(last.value.data()));
}

std::shared_ptr<arena> cuda_lm::take_arena() {
  for (const auto& a : arenas_)
    if (a.use_count() == 1) {
      a->reset();
      return a;
    }
  return arenas_.emplace_back(std::make_shared<arena>());
}

float cuda_lm::logprob(const float* logits, std::int32_t id, float temperature) const {
  return softmax_row_host(logits, cfg_.vocab_size, temperature, false).logprob(logits[id], temperature);
}

} // namespace cuda

std::shared_ptr<causal_lm> make_cuda_model(const model_config& cfg, const model_options& options, compute& where) {
  if (options.parallel && options.parallel->ranks.shape.pp > 1)
    throw error{errc::unsupported, "device cuda: pipeline stages run on the CPU in this version; use pipeline_parallel_size = 1"};
  if (options.parallel && options.parallel->place)
    throw error{errc::unsupported, "device cuda: ranks that share a model on GPUs are processes; use placement.processes = true"};
  if (where.gpu() >= cuda::device_count())
    throw error{errc::bad_usage, "device cuda:" + std::to_string(where.gpu()) + ": this machine has " +
                                     std::to_string(cuda::device_count()) +
                                     " GPUs that this process can use; use --device cpu or a lower number"};
  cuda::set_device(where.gpu());
  return std::make_shared<cuda::cuda_lm>(cfg, options, where);
}

} // namespace troupe
