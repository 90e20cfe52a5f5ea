#include "model/decoder_lm.hpp"
#include "core/error.hpp"
#include "model/kernels/thread_pool.hpp"
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <algorithm>
#include <cstring>
#include <map>
#include <sys/mman.h>

namespace troupe {

using kernels::bf16;

namespace {

constexpr std::int64_t head_chunk = 256;                          // rows of logits that exist at once
constexpr std::int64_t kept_logits_bytes = std::int64_t{1} << 30; // logits that a tape may keep instead of computing them again

// Blocks of all layers, [layer][block][elements]; memory is taken as blocks are written.
template <class T> class block_cache final : public kv_cache {
public:
  block_cache(std::vector<std::int64_t> elements, std::int32_t n_blocks) : elements_(std::move(elements)), n_blocks_(n_blocks) {
    for (const auto e : elements_) {
      offsets_.push_back(size_);
      size_ += std::size_t(e) * std::size_t(n_blocks) * sizeof(T);
    }
    memory_ = mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory_ == MAP_FAILED)
      throw error{errc::failed, "key/value cache: " + std::to_string(size_) + " bytes for " + std::to_string(n_blocks) +
                                    " blocks are not to be had; lower rollout.max_num_seqs"};
    madvise(memory_, size_, MADV_HUGEPAGE);
  }
  ~block_cache() override { munmap(memory_, size_); }
  block_cache(const block_cache&) = delete;
  block_cache& operator=(const block_cache&) = delete;

  std::int32_t n_blocks() const override { return n_blocks_; }
  T* layer(std::size_t i) const { return reinterpret_cast<T*>(static_cast<char*>(memory_) + offsets_[i]); }
  void copy_block(std::int32_t from, std::int32_t to) override {
    for (std::size_t i = 0; i < elements_.size(); ++i)
      std::memcpy(layer(i) + to * elements_[i], layer(i) + from * elements_[i], std::size_t(elements_[i]) * sizeof(T));
  }

private:
  std::vector<std::int64_t> elements_;
  std::vector<std::size_t> offsets_;
  std::size_t size_ = 0;
  std::int32_t n_blocks_;
  void* memory_ = nullptr;
};

// Rows of the pass that targets are predicted from, each once, and which of them each target uses.
struct target_index {
  std::vector<std::int32_t> rows;    // ascending
  std::vector<std::int32_t> of;      // [n_targets] index into rows
};

target_index index_targets(const std::vector<std::int32_t>& target_rows) {
  target_index t;
  t.rows = target_rows;
  std::sort(t.rows.begin(), t.rows.end());
  t.rows.erase(std::unique(t.rows.begin(), t.rows.end()), t.rows.end());
  for (const auto r : target_rows)
    t.of.push_back(std::int32_t(std::lower_bound(t.rows.begin(), t.rows.end(), r) - t.rows.begin()));
  return t;
}

void check_batch(const token_batch& b, std::int64_t vocab, std::int32_t cache_blocks) {
  if (b.ids.empty() || b.ids.size() != b.positions.size())
    throw error{errc::bad_shape, "model: a pass needs as many positions as tokens, and at least one; it has " + std::to_string(b.positions.size()) +
                                     " and " + std::to_string(b.ids.size())};
  for (const auto id : b.ids)
    if (id < 0 || id >= vocab)
      throw error{errc::bad_shape, "model: token id " + std::to_string(id) + " is outside the vocabulary of " + std::to_string(vocab)};
  if (b.n_blocks > cache_blocks)
    throw error{errc::bad_shape, "model: a pass over " + std::to_string(b.n_blocks) + " blocks and a cache of " + std::to_string(cache_blocks)};
}

} // namespace

template <class T> struct decoder_lm<T>::pass_tape final : tape {
  packed_batch batch;
  float temperature = 1;
  target_index index;
  std::vector<saved_tensors> blocks;
  at::Tensor normalised, gathered, inverse;             // of the target rows
  std::vector<kernels::softmax_stats> stats;            // of the target rows
  std::vector<at::Tensor> logits;                       // a chunk each, or empty
};

template <class T>
decoder_lm<T>::decoder_lm(model_config cfg, composition<T> parts, const model_options& options, compute& where)
    : cfg_(std::move(cfg)), parts_(std::move(parts)), options_(options), where_(where) {
  const auto own = sizeof(T) == 2 ? at::kBFloat16 : at::kFloat;
  std::vector<weight*> all;
  std::vector<std::size_t> ends;
  for (const auto& b : parts_.blocks) {
    b->weights(all);
    ends.push_back(all.size());
  }
  parts_.head->weights(all);
  weights_ = all;
  lowest_trainable_ = parts_.blocks.size();
  for (std::size_t i = 0; i < all.size(); ++i) {
    weight& w = *all[i];
    w.trainable = options_.training && std::any_of(options_.trainable.begin(), options_.trainable.end(),
                                                   [&](const std::string& glob) { return glob_match(glob, w.name); });
    w.value = at::zeros(w.shape, own);
    if (options_.training)
      w.master = sizeof(T) == 4 ? w.value : at::zeros(w.shape, at::kFloat);
    if (w.trainable)
      w.grad = at::zeros(w.shape, at::kFloat);
    parameter p;
    p.name = w.name;
    p.shape = w.shape;
    p.trainable = w.trainable;
    const auto n = std::size_t(w.value.numel());
    p.value = {static_cast<std::byte*>(w.value.mutable_data_ptr()), n * sizeof(T)};
    if (options_.training)
      p.master = {data<float>(w.master), n};
    if (w.trainable)
      p.grad = {data<float>(w.grad), n};
    parameters_.push_back(std::move(p));
    const auto owner = std::size_t(std::upper_bound(ends.begin(), ends.end(), i) - ends.begin());
    if (w.trainable)
      lowest_trainable_ = std::min(lowest_trainable_, owner);
  }
}

template <class T> void decoder_lm<T>::lay_out() {
  // A block needs its backward layout only where a gradient passes through it.
  for (std::size_t i = 0; i < parts_.blocks.size(); ++i)
    parts_.blocks[i]->lay_out(where_, options_.training && i >= lowest_trainable_);
  parts_.head->lay_out(where_, options_.training);
}

template <class T> void decoder_lm<T>::publish_masters() {
  if constexpr (sizeof(T) == 2)
    for (weight* w : weights_)
      kernels::convert(where_, data<float>(w->master), w->master.numel(), data<T>(w->value));
  lay_out();
}

template <class T> void decoder_lm<T>::publish_values(std::span<const std::size_t>) { lay_out(); }

template <class T> std::unique_ptr<kv_cache> decoder_lm<T>::make_cache(std::int32_t n_blocks) {
  std::vector<std::int64_t> elements;
  for (const auto& b : parts_.blocks)
    if (b->has_cache())
      elements.push_back(b->cache_block_elements());
  return std::make_unique<block_cache<T>>(std::move(elements), n_blocks);
}

template <class T> std::size_t decoder_lm<T>::cache_block_bytes() const {
  std::int64_t n = 0;
  for (const auto& b : parts_.blocks)
    n += b->cache_block_elements();
  return std::size_t(n) * sizeof(T);
}

template <class T>
void decoder_lm<T>::forward(const token_batch& batch, kv_cache& cache, std::span<const std::int32_t> logit_rows, float* logits) {
  auto& blocks = dynamic_cast<block_cache<T>&>(cache);
  check_batch(batch, cfg_.vocab_size, blocks.n_blocks());
  pass p{where_, batch};
  at::Tensor hidden;
  std::size_t layer = 0;
  for (const auto& b : parts_.blocks) {
    p.layer_cache = b->has_cache() ? blocks.layer(layer++) : nullptr;
    hidden = b->forward(p, hidden, nullptr);
  }
  if (logit_rows.empty())
    return;
  const at::Tensor normalised = parts_.head->normalise(where_, hidden, logit_rows, nullptr, nullptr);
  parts_.head->logits(where_, normalised, 0, std::int64_t(logit_rows.size()), logits);
}

template <class T>
target_values decoder_lm<T>::score(const packed_batch& batch, float temperature, bool entropy, std::unique_ptr<tape>* save) {
  check_batch(batch.tokens, cfg_.vocab_size, batch.tokens.n_blocks);
  auto t = std::make_unique<pass_tape>();
  t->temperature = temperature;
  t->index = index_targets(batch.target_rows);
  pass p{where_, batch.tokens};
  at::Tensor hidden, cache;
  for (std::size_t i = 0; i < parts_.blocks.size(); ++i) {
    block<T>& b = *parts_.blocks[i];
    if (b.has_cache()) {
      const std::int64_t size = b.cache_block_elements() * batch.tokens.n_blocks;
      if (!cache.defined() || cache.numel() < size)
        cache = empty_matrix<T>(1, size);
      p.layer_cache = cache.mutable_data_ptr();
    }
    saved_tensors* keep = save && i >= lowest_trainable_ ? &t->blocks.emplace_back() : nullptr;
    hidden = b.forward(p, hidden, keep);
  }

  const auto n_rows = std::int64_t(t->index.rows.size()), vocab = cfg_.vocab_size;
  t->normalised = parts_.head->normalise(where_, hidden, t->index.rows, save ? &t->gathered : nullptr, save ? &t->inverse : nullptr);
  t->stats.resize(std::size_t(n_rows));
  const bool keep_logits = save && n_rows * vocab * 4 <= kept_logits_bytes;
  target_values values;
  values.logprobs.resize(batch.targets.size());
  std::vector<std::vector<std::size_t>> targets_of(static_cast<std::size_t>(n_rows));
  for (std::size_t i = 0; i < batch.targets.size(); ++i) {
    if (batch.targets[i] < 0 || batch.targets[i] >= vocab)
      throw error{errc::bad_shape, "model: target id " + std::to_string(batch.targets[i]) + " is outside the vocabulary of " + std::to_string(vocab)};
    targets_of[std::size_t(t->index.of[i])].push_back(i);
  }
  at::Tensor chunk;
  for (std::int64_t begin = 0; begin < n_rows; begin += head_chunk) {
    const std::int64_t count = std::min(head_chunk, n_rows - begin);
    if (keep_logits || !chunk.defined() || chunk.size(0) < count)
      chunk = empty_matrix<float>(count, vocab);
    float* logits = data<float>(chunk);
    parts_.head->logits(where_, t->normalised, begin, count, logits);
    kernels::softmax_rows(where_, logits, count, vocab, temperature, entropy || save != nullptr, t->stats.data() + begin);
    for (std::int64_t r = 0; r < count; ++r)
      for (const auto i : targets_of[std::size_t(begin + r)])
        values.logprobs[i] = t->stats[std::size_t(begin + r)].logprob(logits[r * vocab + batch.targets[i]], temperature);
    if (keep_logits)
      t->logits.push_back(chunk);
  }
  if (entropy)
    for (const auto of : t->index.of)
      values.entropy.push_back(t->stats[std::size_t(of)].entropy());
  if (save) {
    t->batch = batch;
    *save = std::move(t);
  }
  return values;
}

template <class T>
at::Tensor decoder_lm<T>::backward_head(pass_tape& t, std::span<const float> d_logprob, std::span<const float> d_entropy) {
  const auto n_rows = std::int64_t(t.index.rows.size()), vocab = cfg_.vocab_size;
  std::vector<kernels::row_gradient> rows(static_cast<std::size_t>(n_rows));
  for (std::size_t i = 0; i < t.index.of.size(); ++i) {
    auto& row = rows[std::size_t(t.index.of[i])];
    const auto at = std::find(row.ids.begin(), row.ids.end(), t.batch.targets[i]);
    if (at == row.ids.end()) {
      row.ids.push_back(t.batch.targets[i]);
      row.d_logprob.push_back(d_logprob[i]);
    } else {
      row.d_logprob[std::size_t(at - row.ids.begin())] += d_logprob[i];
    }
    if (!d_entropy.empty())
      row.d_entropy += d_entropy[i];
  }
  at::Tensor d_normalised = empty_matrix<float>(n_rows, t.normalised.size(1));
  for (std::int64_t begin = 0; begin < n_rows; begin += head_chunk) {
    const std::int64_t count = std::min(head_chunk, n_rows - begin);
    at::Tensor logits;
    if (!t.logits.empty()) {
      logits = t.logits[std::size_t(begin / head_chunk)];
    } else {
      logits = empty_matrix<float>(count, vocab);
      parts_.head->logits(where_, t.normalised, begin, count, data<float>(logits));
    }
    at::Tensor d_logits = empty_matrix<T>(count, vocab);
    kernels::softmax_backward(where_, data<float>(logits), count, vocab, t.temperature, t.stats.data() + begin, rows.data() + begin,
                              data<T>(d_logits));
    parts_.head->backward_logits(where_, t.normalised, begin, count, d_logits, d_normalised);
  }
  return parts_.head->backward_norm(where_, d_normalised, t.gathered, t.inverse, t.index.rows, std::int64_t(t.batch.tokens.ids.size()));
}

template <class T> void decoder_lm<T>::backward(tape& saved, std::span<const float> d_logprob, std::span<const float> d_entropy) {
  auto& t = dynamic_cast<pass_tape&>(saved);
  if (d_logprob.size() != t.index.of.size() || (!d_entropy.empty() && d_entropy.size() != d_logprob.size()))
    throw error{errc::bad_shape, "model backward: " + std::to_string(d_logprob.size()) + " gradients for " + std::to_string(t.index.of.size()) + " targets"};
  if (t.index.of.empty() || (lowest_trainable_ == parts_.blocks.size() && !parts_.head->trainable()))
    return;
  at::Tensor d_hidden = backward_head(t, d_logprob, d_entropy);
  const kernels::key_rows keys = kernels::find_key_rows(t.batch.tokens);
  pass p{where_, t.batch.tokens, nullptr, &keys};
  for (std::size_t i = parts_.blocks.size(); i-- > lowest_trainable_;) {
    d_hidden = parts_.blocks[i]->backward(p, t.blocks[i - lowest_trainable_], std::move(d_hidden), i > lowest_trainable_);
    t.blocks[i - lowest_trainable_].clear();
  }
}

template <class T> void decoder_lm<T>::zero_grads() {
  for (const auto& p : parameters_)
    where_.pool().split(std::int64_t(p.grad.size()), [&](std::int64_t begin, std::int64_t end) {
      std::memset(p.grad.data() + begin, 0, std::size_t(end - begin) * sizeof(float));
    });
}

template <class T> float decoder_lm<T>::logprob(const float* logits, std::int32_t id, float temperature) const {
  return kernels::softmax_row(where_.which(), logits, cfg_.vocab_size, temperature, false).logprob(logits[id], temperature);
}

template class decoder_lm<float>;
template class decoder_lm<bf16>;

} // namespace troupe
