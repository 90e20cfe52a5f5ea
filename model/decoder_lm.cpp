#include "model/decoder_lm.hpp"
#include "core/error.hpp"
#include "model/kernels/thread_pool.hpp"
#include "model/zero_pages.hpp"
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
template <class T>
class block_cache final : public kv_cache {
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
  std::vector<std::int32_t> rows; // ascending
  std::vector<std::int32_t> of;   // [n_targets] index into rows
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
    throw error{errc::bad_shape, "model: a pass needs as many positions as tokens, and at least one; it has " +
                                     std::to_string(b.positions.size()) + " and " + std::to_string(b.ids.size())};
  if (b.embeds.size() % b.ids.size() != 0)
    throw error{errc::bad_shape,
                "model: " + std::to_string(b.embeds.size()) + " numbers are no embeddings of " + std::to_string(b.ids.size()) + " tokens"};
  for (const auto id : b.ids)
    if (id < 0 || id >= vocab)
      throw error{errc::bad_shape, "model: token id " + std::to_string(id) + " is outside the vocabulary of " + std::to_string(vocab)};
  if (b.n_blocks > cache_blocks)
    throw error{errc::bad_shape,
                "model: a pass over " + std::to_string(b.n_blocks) + " blocks and a cache of " + std::to_string(cache_blocks)};
}

} // namespace

// What one forward pass keeps, of the batch or of a part of it that goes through the pipeline by itself.
template <class T>
struct decoder_lm<T>::part_tape {
  batch_part part;
  float temperature = 1;
  target_index index;
  std::vector<saved_tensors> blocks;
  at::Tensor normalised, gathered, inverse;  // of the target rows
  std::vector<kernels::softmax_stats> stats; // of the target rows
  std::vector<at::Tensor> logits;            // a chunk each, or empty
  std::int64_t n_tokens() const { return std::int64_t(part.batch.tokens.ids.size()); }
};

template <class T>
struct decoder_lm<T>::pass_tape final : tape {
  std::vector<part_tape> parts;
  std::size_t n_targets = 0;
};

template <class T>
decoder_lm<T>::decoder_lm(model_config cfg, composition<T> parts, const model_options& options, compute& where)
    : cfg_(std::move(cfg)), parts_(std::move(parts)), options_(options), where_(where) {
  if (options_.parallel) {
    ranks_ = options_.parallel->ranks;
    tp_ = tensor_parallel(ranks_.tp, options_.parallel->sequence_parallel);
  }
  std::vector<std::size_t> ends;
  for (const auto& b : parts_.blocks) {
    b->weights(weights_);
    ends.push_back(weights_.size());
  }
  if (parts_.head)
    parts_.head->weights(weights_);
  for (weight* w : weights_)
    place(*w);
  for (std::size_t i = 0; i < ends.size(); ++i)
    trained_.push_back(std::any_of(weights_.begin() + std::ptrdiff_t(i == 0 ? 0 : ends[i - 1]), weights_.begin() + std::ptrdiff_t(ends[i]),
                                   [](const weight* w) { return w->trainable; }));
}

// Gives a weight its memory and, where that is the model's own, a parameter.
template <class T>
void decoder_lm<T>::place(weight& w) {
  w.trainable = options_.training && std::any_of(options_.trainable.begin(), options_.trainable.end(),
                                                 [&](const std::string& glob) { return glob_match(glob, w.name); });
  const bool copy = tp_.rank() % w.replicas != 0 || (parts_.head && &w == parts_.head->copied());
  if (options_.parallel && options_.parallel->place)
    return options_.parallel->place(w, copy);
  w.value = zero_pages(w.shape, sizeof(T) == 2 ? at::kBFloat16 : at::kFloat);
  if (w.trainable) {
    w.master = sizeof(T) == 4 ? w.value : zero_pages(w.shape, at::kFloat);
    w.grad = zero_pages(w.shape, at::kFloat);
  }
  parameter p;
  p.name = w.name;
  p.shape = w.shape;
  p.global_shape = w.global_shape;
  p.dim = w.dim;
  p.begin = w.begin;
  p.copy = copy;
  p.trainable = w.trainable;
  const auto n = std::size_t(w.value.numel());
  p.value = {static_cast<std::byte*>(w.value.mutable_data_ptr()), n * sizeof(T)};
  if (w.trainable) {
    p.master = {data<float>(w.master), n};
    p.grad = {data<float>(w.grad), n};
  }
  parameters_.push_back(std::move(p));
}

template <class T>
std::size_t decoder_lm<T>::lowest() const {
  return std::clamp(parts_.lowest_trainable, parts_.first, parts_.first + parts_.blocks.size()) - parts_.first;
}

template <class T>
void decoder_lm<T>::lay_out(bool trained_alone) {
  // A block needs its backward layout only where a gradient passes through it.
  for (std::size_t i = 0; i < parts_.blocks.size(); ++i)
    if (!trained_alone || trained_[i])
      parts_.blocks[i]->lay_out(where_, options_.training && i >= lowest());
  if (parts_.head && (!trained_alone || parts_.head->trainable()))
    parts_.head->lay_out(where_, options_.training);
}

template <class T>
void decoder_lm<T>::publish_masters() {
  if constexpr (sizeof(T) == 2)
    for (weight* w : weights_)
      if (w->trainable)
        kernels::convert(where_, data<float>(w->master), w->master.numel(), data<T>(w->value));
  lay_out(true);
}

template <class T>
void decoder_lm<T>::publish_values(std::span<const std::size_t>) {
  lay_out(false);
}

template <class T>
std::unique_ptr<kv_cache> decoder_lm<T>::make_cache(std::int32_t n_blocks) {
  std::vector<std::int64_t> elements;
  for (const auto& b : parts_.blocks)
    if (b->has_cache())
      elements.push_back(b->cache_block_elements());
  return std::make_unique<block_cache<T>>(std::move(elements), n_blocks);
}

template <class T>
std::size_t decoder_lm<T>::cache_block_bytes() const {
  std::int64_t n = 0;
  for (const auto& b : parts_.blocks)
    n += b->cache_block_elements();
  return std::size_t(n) * sizeof(T);
}

// ---- between stages ----

// The residual stream from the stage before, in T, or its gradient from the one behind, in f32.
template <class T>
at::Tensor decoder_lm<T>::receive(std::int64_t rows, std::int64_t width, bool gradient) const {
  at::Tensor x = gradient ? empty_matrix<float>(rows, width) : empty_matrix<T>(rows, width);
  ranks_.pp->recv(x.mutable_data_ptr(), x.nbytes(), ranks_.pp_rank + (gradient ? 1 : -1),
                  gradient ? "a stage's gradient" : "a stage's input");
  return x;
}

template <class T>
void decoder_lm<T>::pass_on(const at::Tensor& x, int to) const {
  ranks_.pp->send(x.const_data_ptr(), x.nbytes(), to, to < ranks_.pp_rank ? "a stage's gradient" : "a stage's input");
}

// grads held by the first and by the last stage, of this pass alone -> their sum, in that order, on both, added to `before`.
template <class T>
void decoder_lm<T>::share_table_gradient(const at::Tensor& before) {
  weight& table = *parts_.shared_table;
  at::Tensor own = table.grad, other = at::empty(table.shape, at::kFloat);
  table.grad = before;
  const int peer = ranks_.first_stage() ? ranks_.shape.pp - 1 : 0;
  ranks_.pp->send(own.const_data_ptr(), own.nbytes(), peer, table.name);
  ranks_.pp->recv(other.mutable_data_ptr(), other.nbytes(), peer, table.name);
  float *sum = data<float>(table.grad), *a = data<float>(own), *b = data<float>(other);
  if (!ranks_.first_stage())
    std::swap(a, b);
  where_.pool().split(own.numel(), [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i)
      sum[i] += a[i] + b[i];
  });
}

// ---- forward ----

template <class T>
void decoder_lm<T>::forward(const token_batch& batch, kv_cache& cache, std::span<const std::int32_t> logit_rows, float* logits) {
  require_logits();
  auto& blocks = dynamic_cast<block_cache<T>&>(cache);
  check_batch(batch, cfg_.vocab_size, blocks.n_blocks());
  pass p{where_, batch};
  const auto n = std::int64_t(batch.ids.size()), n_rows = std::int64_t(logit_rows.size());
  at::Tensor hidden = first_stage() ? at::Tensor{} : receive(tp_.rows(n), parts_.in, false);
  std::size_t layer = 0;
  for (const auto& b : parts_.blocks) {
    p.layer_cache = b->has_cache() ? blocks.layer(layer++) : nullptr;
    hidden = b->forward(p, hidden, nullptr);
  }
  if (!parts_.head)
    pass_on(hidden, ranks_.pp_rank + 1);
  if (logit_rows.empty())
    return;
  if (parts_.head) {
    const vocabulary_slice& slice = parts_.head->vocabulary();
    const at::Tensor normalised = parts_.head->normalise(where_, hidden, n, logit_rows, nullptr, nullptr);
    if (tp_.size() == 1) {
      parts_.head->logits(where_, normalised, 0, n_rows, logits);
    } else {
      const at::Tensor own = empty_matrix<float>(n_rows, slice.count());
      parts_.head->logits(where_, normalised, 0, n_rows, data<float>(own));
      slice.gather(data<float>(own), n_rows, logits);
    }
  }
  if (ranks_.shape.pp > 1)
    ranks_.pp->broadcast(logits, std::size_t(n_rows * cfg_.vocab_size) * sizeof(float), ranks_.shape.pp - 1, "logits");
}

template <class T>
target_values decoder_lm<T>::score(const packed_batch& batch, float temperature, bool entropy, std::unique_ptr<tape>* save) {
  require_logits();
  for (const auto id : batch.targets)
    if (id < 0 || id >= cfg_.vocab_size)
      throw error{errc::bad_shape,
                  "model: target id " + std::to_string(id) + " is outside the vocabulary of " + std::to_string(cfg_.vocab_size)};
  target_values values;
  values.logprobs.resize(batch.targets.size());
  values.entropy.resize(entropy ? batch.targets.size() : 0);
  auto t = run_parts(batch, save != nullptr, [&](part_tape& part, const at::Tensor& hidden) {
    part.temperature = temperature;
    score_head(part, hidden, entropy, save != nullptr, values);
  });
  if (ranks_.shape.pp > 1) {
    ranks_.pp->broadcast(values.logprobs.data(), values.logprobs.size() * sizeof(float), ranks_.shape.pp - 1, "log-probabilities");
    ranks_.pp->broadcast(values.entropy.data(), values.entropy.size() * sizeof(float), ranks_.shape.pp - 1, "entropies");
  }
  if (save)
    *save = std::move(t);
  return values;
}

template <class T>
void decoder_lm<T>::require_logits() const {
  if (cfg_.head != head_kind::lm)
    throw error{errc::unsupported, "model: " + cfg_.architecture + " gives no logits: its head is of another kind; a CausalLM is wanted"};
}

// The blocks over a batch, in parts where the pipeline has stages; head: the last stage's work on a part.
template <class T>
std::unique_ptr<typename decoder_lm<T>::pass_tape>
decoder_lm<T>::run_parts(const packed_batch& batch, bool save, const std::function<void(part_tape&, const at::Tensor& hidden)>& head) {
  check_batch(batch.tokens, cfg_.vocab_size, batch.tokens.n_blocks);
  auto t = std::make_unique<pass_tape>();
  t->n_targets = batch.targets.size();
  // Twice as many parts as stages keep two thirds of the stages at work.
  for (auto& part : cut_batch(batch, ranks_.shape.pp > 1 ? 2 * ranks_.shape.pp : 1)) {
    part_tape& kept = t->parts.emplace_back();
    kept.part = std::move(part);
    kept.index = index_targets(kept.part.batch.target_rows);
    const at::Tensor hidden = score_blocks(kept, save);
    if (parts_.head)
      head(kept, hidden);
    else
      pass_on(hidden, ranks_.pp_rank + 1);
    if (!save)
      t->parts.clear();
  }
  return t;
}

template <class T>
std::vector<float> decoder_lm<T>::outputs(const packed_batch& batch, std::unique_ptr<tape>* save) {
  std::vector<float> out(batch.targets.size() * std::size_t(parts_.columns));
  auto t = run_parts(batch, save != nullptr,
                     [&](part_tape& part, const at::Tensor& hidden) { output_head(part, hidden, save != nullptr, out.data()); });
  if (ranks_.shape.pp > 1)
    ranks_.pp->broadcast(out.data(), out.size() * sizeof(float), ranks_.shape.pp - 1, "outputs");
  if (save)
    *save = std::move(t);
  return out;
}

template <class T>
void decoder_lm<T>::output_head(part_tape& t, const at::Tensor& hidden, bool save, float* out) {
  const vocabulary_slice& slice = parts_.head->vocabulary();
  const auto n_rows = std::int64_t(t.index.rows.size());
  t.normalised =
      parts_.head->normalise(where_, hidden, t.n_tokens(), t.index.rows, save ? &t.gathered : nullptr, save ? &t.inverse : nullptr);
  at::Tensor all = empty_matrix<float>(n_rows, slice.count());
  parts_.head->logits(where_, t.normalised, 0, n_rows, data<float>(all));
  if (slice.count() < slice.total()) {
    const at::Tensor own = all;
    all = empty_matrix<float>(n_rows, slice.total());
    slice.gather(data<float>(own), n_rows, data<float>(all));
  }
  for (std::size_t i = 0; i < t.index.of.size(); ++i)
    std::copy_n(data<float>(all) + t.index.of[i] * slice.total(), slice.total(), out + t.part.targets[i] * slice.total());
}

template <class T>
at::Tensor decoder_lm<T>::score_blocks(part_tape& t, bool save) {
  const token_batch& tokens = t.part.batch.tokens;
  pass p{where_, tokens};
  at::Tensor hidden = first_stage() ? at::Tensor{} : receive(tp_.rows(t.n_tokens()), parts_.in, false), cache;
  for (std::size_t i = 0; i < parts_.blocks.size(); ++i) {
    block<T>& b = *parts_.blocks[i];
    if (b.has_cache()) {
      const std::int64_t size = b.cache_block_elements() * tokens.n_blocks;
      if (!cache.defined() || cache.numel() < size)
        cache = empty_matrix<T>(1, size);
      p.layer_cache = cache.mutable_data_ptr();
    }
    saved_tensors* keep = save && i >= lowest() ? &t.blocks.emplace_back() : nullptr;
    hidden = b.forward(p, hidden, keep);
  }
  return hidden;
}

template <class T>
void decoder_lm<T>::score_head(part_tape& t, const at::Tensor& hidden, bool entropy, bool save, target_values& values) {
  const vocabulary_slice& slice = parts_.head->vocabulary();
  const auto n_rows = std::int64_t(t.index.rows.size());
  t.normalised =
      parts_.head->normalise(where_, hidden, t.n_tokens(), t.index.rows, save ? &t.gathered : nullptr, save ? &t.inverse : nullptr);
  t.stats.resize(std::size_t(n_rows));
  const bool keep_logits = save && n_rows * slice.count() * 4 <= kept_logits_bytes;
  std::vector<std::vector<std::size_t>> targets_of(static_cast<std::size_t>(n_rows));
  for (std::size_t i = 0; i < t.index.of.size(); ++i)
    targets_of[std::size_t(t.index.of[i])].push_back(i);
  at::Tensor chunk;
  for (std::int64_t begin = 0; begin < n_rows; begin += head_chunk) {
    const std::int64_t count = std::min(head_chunk, n_rows - begin);
    if (keep_logits || !chunk.defined() || chunk.size(0) < count)
      chunk = empty_matrix<float>(count, slice.count());
    parts_.head->logits(where_, t.normalised, begin, count, data<float>(chunk));
    std::vector<vocabulary_slice::target> targets;
    std::vector<std::size_t> which;
    for (std::int64_t r = 0; r < count; ++r)
      for (const auto i : targets_of[std::size_t(begin + r)]) {
        targets.push_back({std::int32_t(r), t.part.batch.targets[i]});
        which.push_back(i);
      }
    std::vector<float> logits(targets.size());
    slice.softmax(where_, data<float>(chunk), count, t.temperature, entropy || save, targets, t.stats.data() + begin, logits.data());
    for (std::size_t i = 0; i < targets.size(); ++i)
      values.logprobs[std::size_t(t.part.targets[which[i]])] =
          t.stats[std::size_t(begin + targets[i].row)].logprob(logits[i], t.temperature);
    if (keep_logits)
      t.logits.push_back(chunk);
  }
  if (entropy)
    for (std::size_t i = 0; i < t.index.of.size(); ++i)
      values.entropy[std::size_t(t.part.targets[i])] = t.stats[std::size_t(t.index.of[i])].entropy();
}

// ---- backward ----

// What reaches each row of logits, targets that agree added up.
template <class T>
at::Tensor decoder_lm<T>::backward_head(part_tape& t, std::span<const float> d_logprob, std::span<const float> d_entropy) {
  const vocabulary_slice& slice = parts_.head->vocabulary();
  const auto n_rows = std::int64_t(t.index.rows.size());
  std::vector<kernels::row_gradient> rows(static_cast<std::size_t>(n_rows));
  for (std::size_t i = 0; i < t.index.of.size(); ++i) {
    auto& row = rows[std::size_t(t.index.of[i])];
    const auto whole = std::size_t(t.part.targets[i]);
    const auto at = std::find(row.ids.begin(), row.ids.end(), t.part.batch.targets[i]);
    if (at == row.ids.end()) {
      row.ids.push_back(t.part.batch.targets[i]);
      row.d_logprob.push_back(d_logprob[whole]);
    } else {
      row.d_logprob[std::size_t(at - row.ids.begin())] += d_logprob[whole];
    }
    if (!d_entropy.empty())
      row.d_entropy += d_entropy[whole];
  }
  for (auto& row : rows)
    row = slice.own(row);
  at::Tensor d_normalised = empty_matrix<float>(n_rows, t.normalised.size(1));
  for (std::int64_t begin = 0; begin < n_rows; begin += head_chunk) {
    const std::int64_t count = std::min(head_chunk, n_rows - begin);
    at::Tensor logits;
    if (!t.logits.empty()) {
      logits = t.logits[std::size_t(begin / head_chunk)];
    } else {
      logits = empty_matrix<float>(count, slice.count());
      parts_.head->logits(where_, t.normalised, begin, count, data<float>(logits));
    }
    at::Tensor d_logits = empty_matrix<T>(count, slice.count());
    kernels::softmax_backward(where_, data<float>(logits), count, slice.count(), t.temperature, t.stats.data() + begin, rows.data() + begin,
                              data<T>(d_logits));
    parts_.head->backward_logits(where_, t.normalised, begin, count, d_logits, d_normalised);
  }
  return parts_.head->backward_norm(where_, d_normalised, t.gathered, t.inverse, t.index.rows, t.n_tokens());
}

// The gradient of `outputs`, rows that several targets share added up.
template <class T>
at::Tensor decoder_lm<T>::backward_output_head(part_tape& t, std::span<const float> d_outputs) {
  const vocabulary_slice& slice = parts_.head->vocabulary();
  const auto n_rows = std::int64_t(t.index.rows.size());
  at::Tensor sum = at::zeros({n_rows, slice.count()}, at::kFloat);
  for (std::size_t i = 0; i < t.index.of.size(); ++i)
    for (std::int64_t c = 0; c < slice.count(); ++c)
      data<float>(sum)[t.index.of[i] * slice.count() + c] += d_outputs[std::size_t(t.part.targets[i] * slice.total() + slice.begin() + c)];
  at::Tensor d_out = empty_matrix<T>(n_rows, slice.count()), d_normalised = empty_matrix<float>(n_rows, t.normalised.size(1));
  kernels::convert(where_, data<float>(sum), sum.numel(), data<T>(d_out));
  parts_.head->backward_logits(where_, t.normalised, 0, n_rows, d_out, d_normalised);
  return parts_.head->backward_norm(where_, d_normalised, t.gathered, t.inverse, t.index.rows, t.n_tokens());
}

template <class T>
void decoder_lm<T>::backward_part(part_tape& t, const std::function<at::Tensor(part_tape&)>& head) {
  const std::size_t last = parts_.first + parts_.blocks.size();
  if (!parts_.head && parts_.lowest_trainable >= last)
    return; // no gradient comes this far
  at::Tensor d_hidden = parts_.head ? head(t) : receive(tp_.rows(t.n_tokens()), parts_.out, true);
  const kernels::key_rows keys = kernels::find_key_rows(t.part.batch.tokens);
  pass p{where_, t.part.batch.tokens, nullptr, &keys};
  const std::size_t lowest_own = lowest();
  for (std::size_t i = parts_.blocks.size(); i-- > lowest_own;) {
    saved_tensors& saved = t.blocks[i - lowest_own];
    d_hidden = parts_.blocks[i]->backward(p, saved, std::move(d_hidden), parts_.first + i > parts_.lowest_trainable);
    saved.clear();
  }
  if (parts_.lowest_trainable < parts_.first)
    pass_on(d_hidden, ranks_.pp_rank - 1);
}

// head: the last stage's gradient of its input, from that of what it gave.
template <class T>
void decoder_lm<T>::backward_parts(pass_tape& t, const std::function<at::Tensor(part_tape&)>& head) {
  if (t.n_targets == 0 || (parts_.head && !parts_.head->trainable() && parts_.lowest_trainable == parts_.first + parts_.blocks.size()))
    return;
  weight* shared = parts_.shared_table && parts_.shared_table->trainable ? parts_.shared_table : nullptr;
  const at::Tensor before = shared ? shared->grad : at::Tensor{};
  if (shared)
    shared->grad = at::zeros(shared->shape, at::kFloat);
  for (auto& part : t.parts)
    if (!part.index.of.empty())
      backward_part(part, head);
  if (shared)
    share_table_gradient(before);
}

template <class T>
void decoder_lm<T>::backward(tape& saved, std::span<const float> d_logprob, std::span<const float> d_entropy) {
  auto& t = dynamic_cast<pass_tape&>(saved);
  if (d_logprob.size() != t.n_targets || (!d_entropy.empty() && d_entropy.size() != d_logprob.size()))
    throw error{errc::bad_shape,
                "model backward: " + std::to_string(d_logprob.size()) + " gradients for " + std::to_string(t.n_targets) + " targets"};
  backward_parts(t, [&](part_tape& part) { return backward_head(part, d_logprob, d_entropy); });
}

template <class T>
void decoder_lm<T>::backward_outputs(tape& saved, std::span<const float> d_outputs) {
  auto& t = dynamic_cast<pass_tape&>(saved);
  if (d_outputs.size() != t.n_targets * std::size_t(parts_.columns))
    throw error{errc::bad_shape, "model backward: " + std::to_string(d_outputs.size()) + " gradients for " + std::to_string(t.n_targets) +
                                     " targets of " + std::to_string(parts_.columns) + " columns"};
  backward_parts(t, [&](part_tape& part) { return backward_output_head(part, d_outputs); });
}

template <class T>
void decoder_lm<T>::zero_grads() {
  for (const weight* w : weights_)
    if (w->trainable) {
      const std::int64_t columns = w->grad.size(-1), rows = w->grad.numel() / std::max<std::int64_t>(columns, 1);
      const std::int64_t apart = w->grad.dim() > 1 ? w->grad.stride(0) : columns;
      where_.pool().split(rows, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t r = begin; r < end; ++r)
          std::memset(data<float>(w->grad) + r * apart, 0, std::size_t(columns) * sizeof(float));
      });
    }
}

template <class T>
float decoder_lm<T>::logprob(const float* logits, std::int32_t id, float temperature) const {
  return vocabulary_slice(tp_, cfg_.vocab_size, 0, 0).softmax_row(where_.which(), logits, temperature).logprob(logits[id], temperature);
}

template class decoder_lm<float>;
template class decoder_lm<bf16>;

} // namespace troupe
