#include "model/parallel/local_ranks.hpp"
#include "core/error.hpp"
#include "model/block.hpp"
#include "model/kernels/elementwise.hpp"
#include "model/kernels/thread_pool.hpp"
#include "model/parallel/data_parallel.hpp"
#include "model/zero_pages.hpp"
#include <ATen/ops/from_blob.h>
#include <algorithm>
#include <condition_variable>
#include <map>
#include <mutex>
#include <thread>

namespace troupe {

using kernels::bf16;

namespace {

// Threads that all do the same job, one a rank. One caller at a time.
class rank_threads {
public:
  explicit rank_threads(int n) {
    failures_.resize(std::size_t(n));
    for (int r = 0; r < n; ++r)
      threads_.emplace_back([this, r] { work(r); });
  }
  ~rank_threads() {
    {
      const std::lock_guard lock(mutex_);
      stop_ = true;
    }
    changed_.notify_all();
    for (auto& t : threads_)
      t.join();
  }
  rank_threads(const rank_threads&) = delete;
  rank_threads& operator=(const rank_threads&) = delete;

  /// job(rank) everywhere; on_failure is called by the first rank that throws, so that the others do not wait for it. Rethrows that.
  void run(const std::function<void(int)>& job, const std::function<void(const std::string&)>& on_failure) {
    std::unique_lock lock(mutex_);
    job_ = &job;
    on_failure_ = &on_failure;
    first_.reset();
    left_ = int(threads_.size());
    ++round_;
    changed_.notify_all();
    changed_.wait(lock, [&] { return left_ == 0; });
    if (first_)
      std::rethrow_exception(failures_[*first_]);
  }

private:
  void work(int r) {
    std::unique_lock lock(mutex_);
    for (std::uint64_t seen = 0;;) {
      changed_.wait(lock, [&] { return stop_ || round_ != seen; });
      if (stop_)
        return;
      seen = round_;
      lock.unlock();
      std::string text;
      std::exception_ptr failure;
      try {
        (*job_)(r);
      } catch (const std::exception& e) {
        failure = std::current_exception();
        text = e.what();
      }
      lock.lock();
      if (failure && !first_) {
        first_ = std::size_t(r);
        failures_[std::size_t(r)] = failure;
        (*on_failure_)(text);
      }
      if (--left_ == 0)
        changed_.notify_all();
    }
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  const std::function<void(int)>* job_ = nullptr;
  const std::function<void(const std::string&)>* on_failure_ = nullptr;
  std::optional<std::size_t> first_;
  std::vector<std::exception_ptr> failures_;
  int left_ = 0;
  std::uint64_t round_ = 0;
  bool stop_ = false;
  std::vector<std::thread> threads_;
};

// A tensor of the whole model.
struct whole_tensor {
  at::Tensor value, master, grad;
  bool trainable = false;
};

class ranks_cache final : public kv_cache {
public:
  explicit ranks_cache(std::vector<std::unique_ptr<kv_cache>> all) : of_rank(std::move(all)) {}
  std::int32_t n_blocks() const override { return of_rank[0]->n_blocks(); }
  void copy_block(std::int32_t from, std::int32_t to) override {
    for (const auto& c : of_rank)
      if (c)
        c->copy_block(from, to);
  }
  std::vector<std::unique_ptr<kv_cache>> of_rank; // null: a data-parallel rank that does not generate
};

class ranks_tape final : public tape {
public:
  ranks_tape(const packed_batch& batch, const mesh& shape) : parts(batch, shape.dp), of_rank(std::size_t(shape.size())) {}
  replica_parts parts;
  std::vector<std::unique_ptr<tape>> of_rank;
};

class local_ranks final : public causal_lm {
public:
  local_ranks(const model_config& cfg, const model_options& options, const mesh& shape, bool sequence_parallel, compute& where,
              causal_lm* values_of);

  const model_config& config() const override { return models_[0]->config(); }
  dtype compute_type() const override { return models_[0]->compute_type(); }
  std::span<parameter> parameters() override { return parameters_; }
  void publish_masters() override;
  void publish_values(std::span<const std::size_t>) override {
    run([this](int r) { model(r).publish_values(); });
  }
  std::unique_ptr<kv_cache> make_cache(std::int32_t n_blocks) override;
  std::size_t cache_block_bytes() const override;
  void forward(const token_batch& batch, kv_cache& cache, std::span<const std::int32_t> logit_rows, float* logits) override;
  target_values score(const packed_batch& batch, float temperature, bool entropy, std::unique_ptr<tape>* save) override;
  void backward(tape& saved, std::span<const float> d_logprob, std::span<const float> d_entropy) override;
  std::vector<float> outputs(const packed_batch& batch, std::unique_ptr<tape>* save) override;
  void backward_outputs(tape& saved, std::span<const float> d_outputs) override;
  void zero_grads() override {
    run([this](int r) { model(r).zero_grads(); });
  }
  void sum_gradients() override {
    if (shape_.dp > 1)
      run([this](int r) { add_replicas(r); });
  }
  float logprob(const float* logits, std::int32_t id, float temperature) const override {
    return models_[0]->logprob(logits, id, temperature);
  }

private:
  causal_lm& model(int r) const { return *models_[std::size_t(r)]; }
  int dp_rank(int r) const { return contexts_[std::size_t(r)].dp_rank; }
  void make_tensors(const model_config& cfg, const model_options& options, causal_lm* values_of);
  void place(int rank, weight& w, bool copy);
  void add_replicas(int rank);
  void run(const std::function<void(int)>& job);
  template <class Ask>
  auto by_part(const packed_batch& batch, ranks_tape& t, bool save, Ask ask);
  void backward_by_part(const ranks_tape& t, const std::function<void(causal_lm&, tape&, std::size_t)>& back);

  const mesh shape_;
  const std::size_t columns_; // of the head
  compute& where_;
  std::map<std::string, std::size_t> index_; // of a tensor's name in the two that follow
  std::vector<whole_tensor> tensors_;
  std::vector<parameter> parameters_;
  thread_world world_{std::chrono::minutes(30)}; // threads do not vanish, and one may compute for long
  std::vector<rank_context> contexts_;
  std::vector<std::unique_ptr<compute>> computes_;
  std::vector<std::shared_ptr<causal_lm>> models_;
  struct own_gradient {
    weight* of;
    bool counts;
  };
  std::vector<std::vector<own_gradient>> gradients_; // by rank, in the order of its blocks
  rank_threads threads_;
};

local_ranks::local_ranks(const model_config& cfg, const model_options& options, const mesh& shape, bool sequence_parallel, compute& where,
                         causal_lm* values_of)
    : shape_(shape), columns_(std::size_t(layout_of(cfg).back().out)), where_(where), contexts_(make_contexts(world_, shape)),
      models_(std::size_t(shape.size())), gradients_(std::size_t(shape.size())), threads_(shape.size()) {
  make_tensors(cfg, options, values_of);
  for (int r = 0; r < shape.size(); ++r) {
    computes_.push_back(std::make_unique<compute>(std::max(1, where.threads() / shape.size()), where.which()));
    auto setup = std::make_shared<rank_setup>();
    setup->ranks = contexts_[std::size_t(r)];
    setup->sequence_parallel = sequence_parallel;
    setup->place = [this, r](weight& w, bool copy) { place(r, w, copy); };
    model_options own = options;
    own.parallel = setup;
    models_[std::size_t(r)] = make_model(cfg, own, *computes_.back());
  }
  for (std::size_t i = 0; i < parameters_.size(); ++i) {
    const whole_tensor& t = tensors_[i];
    parameter& p = parameters_[i];
    p.trainable = t.trainable;
    p.value = {static_cast<std::byte*>(t.value.mutable_data_ptr()), t.value.nbytes()};
    if (t.trainable) {
      p.master = {data<float>(t.master), p.numel()};
      p.grad = {data<float>(t.grad), p.numel()};
    }
  }
}

void local_ranks::make_tensors(const model_config& cfg, const model_options& options, causal_lm* values_of) {
  for (const auto& spec : tensors_of(cfg)) {
    index_[spec.name] = tensors_.size();
    whole_tensor t;
    const auto type = options.compute_type == dtype::bf16 ? at::kBFloat16 : at::kFloat;
    t.value =
        values_of ? at::from_blob(values_of->parameters()[index_[spec.name]].value.data(), spec.shape, type) : zero_pages(spec.shape, type);
    tensors_.push_back(std::move(t));
    parameter p;
    p.name = spec.name;
    p.shape = spec.shape;
    parameters_.push_back(std::move(p));
  }
}

// A rank's views. What several ranks compute alike is written by one of them alone; the others have a gradient of their own.
void local_ranks::place(int rank, weight& w, bool copy) {
  whole_tensor& t = tensors_[index_.at(w.name)];
  const auto view = [&](const at::Tensor& whole) {
    return whole.defined() ? whole.narrow(w.dim, w.begin, w.shape[std::size_t(w.dim)]) : whole;
  };
  w.value = view(t.value);
  if (!w.trainable)
    return;
  if (!t.trainable) {
    t.trainable = true;
    t.master = t.value.scalar_type() == at::kFloat ? t.value : zero_pages(w.global_shape, at::kFloat);
    t.grad = zero_pages(w.global_shape, at::kFloat);
  }
  w.master = view(t.master);
  const bool counts = !copy && dp_rank(rank) == 0;
  w.grad = counts ? view(t.grad) : zero_pages(w.shape, at::kFloat);
  if (!copy)
    gradients_[std::size_t(rank)].push_back({&w, counts});
}

void local_ranks::run(const std::function<void(int)>& job) {
  try {
    threads_.run(job, [this](const std::string& text) { world_.abort(text); });
  } catch (...) {
    world_.reset();
    throw;
  }
}

void local_ranks::publish_masters() {
  if (compute_type() == dtype::bf16)
    for (const auto& t : tensors_)
      if (t.trainable)
        kernels::convert(where_, data<float>(t.master), t.master.numel(), data<bf16>(t.value));
  publish_values({});
}

std::unique_ptr<kv_cache> local_ranks::make_cache(std::int32_t n_blocks) {
  std::vector<std::unique_ptr<kv_cache>> all;
  for (int r = 0; r < shape_.size(); ++r)
    all.push_back(dp_rank(r) == 0 ? model(r).make_cache(n_blocks) : nullptr);
  return std::make_unique<ranks_cache>(std::move(all));
}

std::size_t local_ranks::cache_block_bytes() const {
  std::size_t bytes = 0;
  for (int r = 0; r < shape_.size(); ++r)
    if (dp_rank(r) == 0)
      bytes += model(r).cache_block_bytes();
  return bytes;
}

void local_ranks::forward(const token_batch& batch, kv_cache& cache, std::span<const std::int32_t> logit_rows, float* logits) {
  auto& all = dynamic_cast<ranks_cache&>(cache);
  run([&](int r) {
    if (dp_rank(r) != 0)
      return;
    // Every rank gets the logits; the caller wants them once.
    std::vector<float> own(r == 0 ? 0 : logit_rows.size() * std::size_t(config().vocab_size));
    model(r).forward(batch, *all.of_rank[std::size_t(r)], logit_rows, r == 0 ? logits : own.data());
  });
}

// ask(model, batch, save) by every rank on its replica's part of the batch -> what each part gave, once.
template <class Ask>
auto local_ranks::by_part(const packed_batch& batch, ranks_tape& t, bool save, Ask ask) {
  std::vector<decltype(ask(model(0), batch, nullptr))> of_part(t.parts.size());
  run([&](int r) {
    const auto d = std::size_t(dp_rank(r));
    if (d >= of_part.size())
      return;
    auto values = ask(model(r), t.parts.batch(d, batch), save ? &t.of_rank[std::size_t(r)] : nullptr);
    if (contexts_[std::size_t(r)].tp_rank == 0 && contexts_[std::size_t(r)].pp_rank == 0)
      of_part[d] = std::move(values);
  });
  return of_part;
}

target_values local_ranks::score(const packed_batch& batch, float temperature, bool entropy, std::unique_ptr<tape>* save) {
  auto t = std::make_unique<ranks_tape>(batch, shape_);
  const auto of_part = by_part(batch, *t, save != nullptr, [&](causal_lm& m, const packed_batch& own, std::unique_ptr<tape>* kept) {
    return m.score(own, temperature, entropy, kept);
  });
  std::vector<std::span<const float>> logprobs, entropies;
  for (const auto& values : of_part) {
    logprobs.emplace_back(values.logprobs);
    entropies.emplace_back(values.entropy);
  }
  target_values values{t->parts.join(logprobs, 1), {}};
  if (entropy)
    values.entropy = t->parts.join(entropies, 1);
  if (save)
    *save = std::move(t);
  return values;
}

std::vector<float> local_ranks::outputs(const packed_batch& batch, std::unique_ptr<tape>* save) {
  auto t = std::make_unique<ranks_tape>(batch, shape_);
  const auto of_part = by_part(batch, *t, save != nullptr,
                               [&](causal_lm& m, const packed_batch& own, std::unique_ptr<tape>* kept) { return m.outputs(own, kept); });
  auto out = t->parts.join({of_part.begin(), of_part.end()}, columns_);
  if (save)
    *save = std::move(t);
  return out;
}

// back(model, tape, replica) by every rank that has one.
void local_ranks::backward_by_part(const ranks_tape& t, const std::function<void(causal_lm&, tape&, std::size_t)>& back) {
  run([&](int r) {
    if (tape* own = t.of_rank[std::size_t(r)].get())
      back(model(r), *own, std::size_t(dp_rank(r)));
  });
}

void local_ranks::backward(tape& saved, std::span<const float> d_logprob, std::span<const float> d_entropy) {
  const auto& t = dynamic_cast<ranks_tape&>(saved);
  if (d_logprob.size() != t.parts.n_targets() || (!d_entropy.empty() && d_entropy.size() != t.parts.n_targets()))
    throw error{errc::bad_shape, "model backward: " + std::to_string(d_logprob.size()) + " gradients for " +
                                     std::to_string(t.parts.n_targets()) + " targets"};
  backward_by_part(
      t, [&](causal_lm& m, tape& own, std::size_t d) { m.backward(own, t.parts.cut(d, d_logprob, 1), t.parts.cut(d, d_entropy, 1)); });
}

void local_ranks::backward_outputs(tape& saved, std::span<const float> d_outputs) {
  const auto& t = dynamic_cast<ranks_tape&>(saved);
  if (d_outputs.size() != t.parts.n_targets() * columns_)
    throw error{errc::bad_shape, "model backward: " + std::to_string(d_outputs.size()) + " gradients for " +
                                     std::to_string(t.parts.n_targets()) + " targets of " + std::to_string(columns_) + " columns"};
  backward_by_part(t, [&](causal_lm& m, tape& own, std::size_t d) { m.backward_outputs(own, t.parts.cut(d, d_outputs, columns_)); });
}

// Gradients of the data-parallel ranks that share this one's slices, added in rank order, and cleared.
void local_ranks::add_replicas(int rank) {
  if (dp_rank(rank) != 0)
    return;
  const rank_context& c = contexts_[std::size_t(rank)];
  for (std::size_t i = 0; i < gradients_[std::size_t(rank)].size(); ++i) {
    const at::Tensor& sum = gradients_[std::size_t(rank)][i].of->grad;
    for (int d = 1; d < shape_.dp; ++d) {
      const at::Tensor& part = gradients_[std::size_t(shape_.rank_of(c.pp_rank, d, c.tp_rank))][i].of->grad;
      const std::int64_t columns = part.size(-1), rows = part.numel() / std::max<std::int64_t>(1, columns);
      for (std::int64_t r = 0; r < rows; ++r) {
        float *to = data<float>(sum) + (sum.dim() > 1 ? r * sum.stride(0) : 0), *from = data<float>(part) + r * columns;
        for (std::int64_t j = 0; j < columns; ++j)
          to[j] += from[j];
        std::fill_n(from, columns, 0.f);
      }
    }
  }
}

} // namespace

std::shared_ptr<causal_lm> make_local_ranks(const model_config& cfg, const model_options& options, const mesh& shape,
                                            bool sequence_parallel, compute& where, causal_lm* values_of) {
  return std::make_shared<local_ranks>(cfg, options, shape, sequence_parallel, where, values_of);
}

} // namespace troupe
