#include "model/parallel/process_model.hpp"
#include "core/error.hpp"
#include "model/layout.hpp"
#include "model/parallel/data_parallel.hpp"
#include <map>

namespace troupe {

namespace {

// ---- batches on the wire ----

template <class T>
void put(byte_writer& out, const std::vector<T>& values) {
  out.put_array(std::span<const T>(values));
}

void put(byte_writer& out, const token_batch& b) {
  put(out, b.ids);
  put(out, b.positions);
  out.put(std::uint32_t(b.segments.size()));
  for (const segment& s : b.segments) {
    out.put(s.row_begin);
    out.put(s.row_end);
    out.put(s.position);
    put(out, s.blocks);
  }
  out.put(std::uint32_t(b.copies.size()));
  for (const kv_copy& c : b.copies) {
    out.put(c.row);
    out.put(c.block);
    out.put(c.slot);
  }
  out.put(b.n_blocks);
  put(out, b.embeds);
}

token_batch get_tokens(byte_reader& in) {
  token_batch b;
  b.ids = in.get_array<std::int32_t>();
  b.positions = in.get_array<std::int32_t>();
  b.segments.resize(in.get_count(16));
  for (segment& s : b.segments) {
    s.row_begin = in.get<std::int32_t>();
    s.row_end = in.get<std::int32_t>();
    s.position = in.get<std::int32_t>();
    s.blocks = in.get_array<std::int32_t>();
  }
  b.copies.resize(in.get_count(12));
  for (kv_copy& c : b.copies) {
    c.row = in.get<std::int32_t>();
    c.block = in.get<std::int32_t>();
    c.slot = in.get<std::int32_t>();
  }
  b.n_blocks = in.get<std::int32_t>();
  b.embeds = in.get_array<float>();
  return b;
}

void put(byte_writer& out, const packed_batch& b) {
  put(out, b.tokens);
  put(out, b.target_rows);
  put(out, b.targets);
}

packed_batch get_packed(byte_reader& in) {
  packed_batch b;
  b.tokens = get_tokens(in);
  b.target_rows = in.get_array<std::int32_t>();
  b.targets = in.get_array<std::int32_t>();
  return b;
}

// ---- what the first rank holds of all ranks' tapes and caches ----

using object_id = std::uint64_t;
using released_ids = std::shared_ptr<std::vector<object_id>>; // told to the others with the next call

class rank_tape final : public tape {
public:
  rank_tape(const packed_batch& batch, int replicas) : parts(batch, replicas) {}
  ~rank_tape() override {
    if (released)
      released->push_back(id);
  }
  replica_parts parts;
  std::unique_ptr<tape> own; // null: a replica without a part
  object_id id = 0;
  released_ids released = nullptr;
};

class process_model;

class rank_cache final : public kv_cache {
public:
  rank_cache(process_model& model, std::unique_ptr<kv_cache> part, std::int32_t n_blocks, object_id number, released_ids list)
      : own(std::move(part)), id(number), model_(model), n_blocks_(n_blocks), released_(std::move(list)) {}
  ~rank_cache() override {
    if (released_)
      released_->push_back(id);
  }
  std::int32_t n_blocks() const override { return n_blocks_; }
  void copy_block(std::int32_t from, std::int32_t to) override;

  std::unique_ptr<kv_cache> own; // null: a data-parallel rank that does not generate
  const object_id id;

private:
  process_model& model_;
  const std::int32_t n_blocks_;
  const released_ids released_;
};

class process_model final : public causal_lm {
public:
  process_model(const std::string& name, std::shared_ptr<causal_lm> own, process_ranks& ranks, compute& where)
      : name_(name), own_(std::move(own)), ranks_(ranks), where_(where), columns_(std::size_t(layout_of(own_->config()).back().out)) {
    listen();
  }

  const model_config& config() const override { return own_->config(); }
  dtype compute_type() const override { return own_->compute_type(); }
  std::span<parameter> parameters() override { return own_->parameters(); }
  process_ranks* ranks() override { return &ranks_; }
  void publish_masters() override {
    run("publish_masters", begin(), [&] { own_->publish_masters(); });
  }
  void publish_values(std::span<const std::size_t>) override {
    run("publish_values", begin(), [&] { own_->publish_values(); });
  }
  void zero_grads() override {
    run("zero_grads", begin(), [&] { own_->zero_grads(); });
  }
  void sum_gradients() override {
    run("sum_gradients", begin(), [&] {
      own_->sum_gradients();
      add_gradients_of_replicas(*own_, place(), where_);
    });
  }
  std::unique_ptr<kv_cache> make_cache(std::int32_t n_blocks) override;
  std::size_t cache_block_bytes() const override;
  void forward(const token_batch& batch, kv_cache& cache, std::span<const std::int32_t> logit_rows, float* logits) override;
  target_values score(const packed_batch& batch, float temperature, bool entropy, std::unique_ptr<tape>* save) override;
  void backward(tape& saved, std::span<const float> d_logprob, std::span<const float> d_entropy) override;
  std::vector<float> outputs(const packed_batch& batch, std::unique_ptr<tape>* save) override;
  void backward_outputs(tape& saved, std::span<const float> d_outputs) override;
  float logprob(const float* logits, std::int32_t id, float temperature) const override { return own_->logprob(logits, id, temperature); }
  void copy_block(rank_cache& cache, std::int32_t from, std::int32_t to);

private:
  const rank_context& place() const { return ranks_.place(); }
  std::size_t replica() const { return std::size_t(place().dp_rank); }
  void listen();
  void on(const std::string& call, const std::function<void(byte_reader&)>& task);
  byte_writer begin() const;
  void run(const std::string& call, byte_writer bytes, const std::function<void()>& own) const {
    ranks_.run(name_ + '.' + call, bytes.take(), own);
  }
  std::unique_ptr<rank_tape> new_tape(const packed_batch& batch) const;
  void keep(std::unique_ptr<rank_tape> t, std::unique_ptr<tape>* save, object_id id) const;
  std::vector<float> join(const replica_parts& parts, std::vector<float> own, std::size_t columns, const char* what) const;
  target_values own_score(const packed_batch& batch, float temperature, bool entropy, rank_tape& t, bool save);
  std::vector<float> own_outputs(const packed_batch& batch, rank_tape& t, bool save);
  void own_backward(rank_tape& t, std::span<const float> d_logprob, std::span<const float> d_entropy);
  void own_backward_outputs(rank_tape& t, std::span<const float> d_outputs);
  void own_forward(const token_batch& batch, rank_cache& cache, std::span<const std::int32_t> logit_rows, float* logits);
  std::unique_ptr<rank_cache> own_cache(std::int32_t n_blocks, object_id id);

  const std::string name_;
  const std::shared_ptr<causal_lm> own_;
  process_ranks& ranks_;
  compute& where_;
  const std::size_t columns_; // of the head
  // The first rank: numbers of what it gave out, and which of them are gone. The others: what has these numbers.
  object_id last_id_ = 0;
  released_ids released_ = std::make_shared<std::vector<object_id>>();
  std::map<object_id, std::unique_ptr<rank_tape>> tapes_;
  std::map<object_id, std::unique_ptr<rank_cache>> caches_;
};

void rank_cache::copy_block(std::int32_t from, std::int32_t to) { model_.copy_block(*this, from, to); }

// ---- calls ----

// Every call begins with what is not needed any more.
byte_writer process_model::begin() const {
  byte_writer out;
  if (!ranks_.tells())
    return out;
  put(out, *released_);
  released_->clear();
  return out;
}

void process_model::on(const std::string& call, const std::function<void(byte_reader&)>& task) {
  ranks_.on(name_ + '.' + call, [this, task](byte_reader& in) {
    for (const object_id id : in.get_array<object_id>()) {
      tapes_.erase(id);
      caches_.erase(id);
    }
    task(in);
  });
}

void process_model::listen() {
  on("publish_masters", [this](byte_reader&) { publish_masters(); });
  on("publish_values", [this](byte_reader&) { publish_values({}); });
  on("zero_grads", [this](byte_reader&) { zero_grads(); });
  on("sum_gradients", [this](byte_reader&) { sum_gradients(); });
  on("make_cache", [this](byte_reader& in) {
    const auto id = in.get<object_id>();
    caches_[id] = own_cache(in.get<std::int32_t>(), id);
  });
  on("cache_block_bytes", [this](byte_reader&) { cache_block_bytes(); });
  on("copy_block", [this](byte_reader& in) {
    rank_cache& cache = *caches_.at(in.get<object_id>());
    const auto from = in.get<std::int32_t>();
    copy_block(cache, from, in.get<std::int32_t>());
  });
  on("forward", [this](byte_reader& in) {
    rank_cache& cache = *caches_.at(in.get<object_id>());
    const token_batch batch = get_tokens(in);
    const auto rows = in.get_array<std::int32_t>();
    std::vector<float> logits(rows.size() * std::size_t(config().vocab_size)); // every rank gets them; the first one's count
    own_forward(batch, cache, rows, logits.data());
  });
  on("score", [this](byte_reader& in) {
    const auto id = in.get<object_id>();
    const auto temperature = in.get<float>();
    const bool entropy = in.get<std::uint8_t>() != 0;
    const packed_batch batch = get_packed(in);
    auto t = new_tape(batch);
    own_score(batch, temperature, entropy, *t, id != 0);
    if (id != 0)
      tapes_[id] = std::move(t);
  });
  on("outputs", [this](byte_reader& in) {
    const auto id = in.get<object_id>();
    const packed_batch batch = get_packed(in);
    auto t = new_tape(batch);
    own_outputs(batch, *t, id != 0);
    if (id != 0)
      tapes_[id] = std::move(t);
  });
  on("backward", [this](byte_reader& in) {
    rank_tape& t = *tapes_.at(in.get<object_id>());
    const auto d_logprob = in.get_array<float>();
    own_backward(t, d_logprob, in.get_array<float>());
  });
  on("backward_outputs", [this](byte_reader& in) {
    rank_tape& t = *tapes_.at(in.get<object_id>());
    own_backward_outputs(t, in.get_array<float>());
  });
}

// ---- generation ----

std::unique_ptr<rank_cache> process_model::own_cache(std::int32_t n_blocks, object_id id) {
  return std::make_unique<rank_cache>(*this, replica() == 0 ? own_->make_cache(n_blocks) : nullptr, n_blocks, id,
                                      ranks_.leads() ? released_ : nullptr);
}

std::unique_ptr<kv_cache> process_model::make_cache(std::int32_t n_blocks) {
  byte_writer out = begin();
  out.put(++last_id_);
  out.put(n_blocks);
  std::unique_ptr<kv_cache> cache;
  run("make_cache", std::move(out), [&] { cache = own_cache(n_blocks, last_id_); });
  return cache;
}

// Of all ranks: they share this machine's memory.
std::size_t process_model::cache_block_bytes() const {
  std::vector<std::uint64_t> all(std::size_t(place().shape.size()));
  run("cache_block_bytes", begin(), [&] {
    const std::uint64_t mine = replica() == 0 ? own_->cache_block_bytes() : 0;
    ranks_.all().all_gather(&mine, all.data(), sizeof mine, "bytes of a cache block");
  });
  std::size_t sum = 0;
  for (const auto bytes : all)
    sum += bytes;
  return sum;
}

void process_model::copy_block(rank_cache& cache, std::int32_t from, std::int32_t to) {
  byte_writer out = begin();
  out.put(cache.id);
  out.put(from);
  out.put(to);
  run("copy_block", std::move(out), [&] {
    if (cache.own)
      cache.own->copy_block(from, to);
  });
}

void process_model::own_forward(const token_batch& batch, rank_cache& cache, std::span<const std::int32_t> logit_rows, float* logits) {
  if (cache.own)
    own_->forward(batch, *cache.own, logit_rows, logits);
}

void process_model::forward(const token_batch& batch, kv_cache& cache, std::span<const std::int32_t> logit_rows, float* logits) {
  auto& all = dynamic_cast<rank_cache&>(cache);
  byte_writer out = begin();
  out.put(all.id);
  put(out, batch);
  out.put_array(logit_rows);
  run("forward", std::move(out), [&] { own_forward(batch, all, logit_rows, logits); });
}

// ---- training ----

std::unique_ptr<rank_tape> process_model::new_tape(const packed_batch& batch) const {
  return std::make_unique<rank_tape>(batch, place().shape.dp);
}

void process_model::keep(std::unique_ptr<rank_tape> t, std::unique_ptr<tape>* save, object_id id) const {
  if (!save)
    return;
  t->id = id;
  t->released = released_;
  *save = std::move(t);
}

// own: of this replica's targets -> on the first rank, of all targets.
std::vector<float> process_model::join(const replica_parts& parts, std::vector<float> own, std::size_t columns, const char* what) const {
  const bool first_of_replica = place().pp_rank == 0 && place().tp_rank == 0;
  if (parts.size() == 1 || !first_of_replica)
    return own;
  if (replica() > 0) {
    if (replica() < parts.size())
      place().dp->send(own.data(), own.size() * sizeof(float), 0, what);
    return {};
  }
  std::vector<std::vector<float>> all = {std::move(own)};
  for (std::size_t d = 1; d < parts.size(); ++d) {
    all.emplace_back(parts.n_targets_of(d) * columns);
    place().dp->recv(all.back().data(), all.back().size() * sizeof(float), int(d), what);
  }
  return parts.join({all.begin(), all.end()}, columns);
}

target_values process_model::own_score(const packed_batch& batch, float temperature, bool entropy, rank_tape& t, bool save) {
  target_values values;
  if (replica() < t.parts.size())
    values = own_->score(t.parts.batch(replica(), batch), temperature, entropy, save ? &t.own : nullptr);
  values.logprobs = join(t.parts, std::move(values.logprobs), 1, "log-probabilities of a replica");
  if (entropy)
    values.entropy = join(t.parts, std::move(values.entropy), 1, "entropies of a replica");
  t.parts.forget_batches();
  return values;
}

target_values process_model::score(const packed_batch& batch, float temperature, bool entropy, std::unique_ptr<tape>* save) {
  byte_writer out = begin();
  const object_id id = save ? ++last_id_ : 0;
  out.put(id);
  out.put(temperature);
  out.put(std::uint8_t(entropy));
  put(out, batch);
  auto t = new_tape(batch);
  target_values values;
  run("score", std::move(out), [&] { values = own_score(batch, temperature, entropy, *t, save != nullptr); });
  keep(std::move(t), save, id);
  return values;
}

std::vector<float> process_model::own_outputs(const packed_batch& batch, rank_tape& t, bool save) {
  std::vector<float> values;
  if (replica() < t.parts.size())
    values = own_->outputs(t.parts.batch(replica(), batch), save ? &t.own : nullptr);
  values = join(t.parts, std::move(values), columns_, "outputs of a replica");
  t.parts.forget_batches();
  return values;
}

std::vector<float> process_model::outputs(const packed_batch& batch, std::unique_ptr<tape>* save) {
  byte_writer out = begin();
  const object_id id = save ? ++last_id_ : 0;
  out.put(id);
  put(out, batch);
  auto t = new_tape(batch);
  std::vector<float> values;
  run("outputs", std::move(out), [&] { values = own_outputs(batch, *t, save != nullptr); });
  keep(std::move(t), save, id);
  return values;
}

void process_model::own_backward(rank_tape& t, std::span<const float> d_logprob, std::span<const float> d_entropy) {
  if (t.own)
    own_->backward(*t.own, t.parts.cut(replica(), d_logprob, 1), t.parts.cut(replica(), d_entropy, 1));
}

void process_model::backward(tape& saved, std::span<const float> d_logprob, std::span<const float> d_entropy) {
  auto& t = dynamic_cast<rank_tape&>(saved);
  if (d_logprob.size() != t.parts.n_targets() || (!d_entropy.empty() && d_entropy.size() != d_logprob.size()))
    throw error{errc::bad_shape, "model backward: " + std::to_string(d_logprob.size()) + " gradients for " +
                                     std::to_string(t.parts.n_targets()) + " targets"};
  byte_writer out = begin();
  out.put(t.id);
  out.put_array(d_logprob);
  out.put_array(d_entropy);
  run("backward", std::move(out), [&] { own_backward(t, d_logprob, d_entropy); });
}

void process_model::own_backward_outputs(rank_tape& t, std::span<const float> d_outputs) {
  if (t.own)
    own_->backward_outputs(*t.own, t.parts.cut(replica(), d_outputs, columns_));
}

void process_model::backward_outputs(tape& saved, std::span<const float> d_outputs) {
  auto& t = dynamic_cast<rank_tape&>(saved);
  if (d_outputs.size() != t.parts.n_targets() * columns_)
    throw error{errc::bad_shape, "model backward: " + std::to_string(d_outputs.size()) + " gradients for " +
                                     std::to_string(t.parts.n_targets()) + " targets of " + std::to_string(columns_) + " columns"};
  byte_writer out = begin();
  out.put(t.id);
  out.put_array(d_outputs);
  run("backward_outputs", std::move(out), [&] { own_backward_outputs(t, d_outputs); });
}

} // namespace

std::shared_ptr<causal_lm> make_process_model(const std::string& name, const model_config& cfg, const model_options& options,
                                              bool sequence_parallel, process_ranks& ranks, compute& where,
                                              std::shared_ptr<causal_lm>* own) {
  auto setup = std::make_shared<rank_setup>();
  setup->ranks = ranks.place();
  setup->sequence_parallel = sequence_parallel;
  model_options part = options;
  part.parallel = setup;
  auto model = make_model(cfg, part, where);
  if (own)
    *own = model;
  return std::make_shared<process_model>(name, std::move(model), ranks, where);
}

} // namespace troupe
