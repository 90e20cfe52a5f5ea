#include "model/blocks.hpp"
#include "core/error.hpp"
#include "model/kernels/thread_pool.hpp"
#include "model/parallel/reduce.hpp"
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <algorithm>
#include <cstring>

namespace troupe {

using kernels::bf16;

namespace {

// What a rank holds of a layer's sizes.
layer_config shared_by(layer_config cfg, int ranks) {
  cfg.n_heads /= ranks;
  cfg.n_kv_heads = std::max<std::int64_t>(1, cfg.n_kv_heads / ranks);
  cfg.intermediate /= ranks;
  return cfg;
}

const tensor_spec* find_tensor(const block_spec& spec, const std::string& name) {
  for (const auto& t : spec.tensors)
    if (t.name == spec.prefix + name)
      return &t;
  return nullptr;
}

weight part_of(const block_spec& spec, const std::string& name, const tensor_parallel& tp) {
  return make_weight(*find_tensor(spec, name), tp.rank(), tp.size());
}

} // namespace

weight make_weight(const tensor_spec& spec, int rank, int size) {
  const shard_range part = shard_of(spec, rank, size);
  weight w;
  w.name = spec.name;
  w.global_shape = spec.shape;
  w.shape = spec.shape;
  w.shape[std::size_t(part.dim)] = part.end - part.begin;
  w.dim = part.dim;
  w.begin = part.begin;
  for (int other = 0; other < size; ++other)
    w.replicas += other != rank && shard_of(spec, other, size).begin == part.begin;
  return w;
}

// ---- embedding ----

template <class T>
embedding_block<T>::embedding_block(const block_spec& spec, tensor_parallel tp)
    : tp_(std::move(tp)), table_(make_weight(spec.tensors[0], tp_.rank(), tp_.size())) {}

template <class T>
std::vector<std::int32_t> embedding_block<T>::local_ids(const std::vector<std::int32_t>& ids) const {
  std::vector<std::int32_t> local = ids;
  for (auto& id : local)
    id = id >= table_.begin && id < table_.begin + table_.shape[0] ? std::int32_t(id - table_.begin) : -1;
  return local;
}

template <class T>
at::Tensor embedding_block<T>::forward(pass& p, const at::Tensor&, saved_tensors*) {
  const auto n = std::int64_t(p.tokens.ids.size()), h = table_.shape[1];
  at::Tensor out = empty_matrix<T>(n, h);
  if (!p.tokens.embeds.empty()) {
    if (std::int64_t(p.tokens.embeds.size()) != n * h)
      throw error{errc::bad_shape, "model: embeddings of " + std::to_string(n) + " tokens hold " + std::to_string(p.tokens.embeds.size()) +
                                       " numbers; width " + std::to_string(h) + " makes it " + std::to_string(n * h)};
    kernels::convert(p.where, p.tokens.embeds.data(), n * h, data<T>(out));
    return tp_.own_rows(out);
  }
  kernels::embed(p.where, data<T>(table_.value), local_ids(p.tokens.ids).data(), n, h, data<T>(out));
  return tp_.sum_rows<T>(p.where, out, nullptr, table_.name);
}

template <class T>
at::Tensor embedding_block<T>::backward(pass& p, const saved_tensors&, at::Tensor d_hidden, bool) {
  const auto n = std::int64_t(p.tokens.ids.size());
  if (table_.trainable && p.tokens.embeds.empty()) {
    d_hidden = tp_.gather_rows<float>(d_hidden, n, table_.name);
    kernels::embed_backward(p.where, local_ids(p.tokens.ids).data(), data<float>(d_hidden), n, table_.shape[1], data<float>(table_.grad));
  }
  return {};
}

// ---- decoder layer ----

namespace {

// "...q_proj.weight" -> "...q_proj.bias"
std::string bias_name(const std::string& matrix) { return matrix.substr(0, matrix.size() - 6) + "bias"; }

std::vector<std::unique_ptr<weight>> biases_of(const block_spec& spec, const tensor_parallel& tp) {
  std::vector<std::unique_ptr<weight>> biases;
  for (const auto& t : spec.tensors)
    if (t.name.ends_with(".bias"))
      biases.push_back(std::make_unique<weight>(make_weight(t, tp.rank(), tp.size())));
  return biases;
}

template <class T>
std::vector<head_norm<T>> head_norms_of(const block_spec& spec, const layer_config& cfg, const tensor_parallel& tp) {
  std::vector<head_norm<T>> norms;
  if (cfg.qk_norm) {
    norms.push_back({part_of(spec, "self_attn.q_norm.weight", tp), 0, cfg.n_heads});
    norms.push_back({part_of(spec, "self_attn.k_norm.weight", tp), cfg.n_heads, cfg.n_kv_heads});
  }
  return norms;
}

// Columns `first` .. `first + width - 1` of x [n, columns] -> [n, width]; and back into their place.
template <class T>
at::Tensor take_columns(compute& where, const at::Tensor& x, std::int64_t first, std::int64_t width) {
  at::Tensor y = empty_matrix<T>(x.size(0), width);
  where.pool().split(x.size(0), [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t r = begin; r < end; ++r)
      std::memcpy(data<T>(y) + r * width, data<T>(x) + r * x.size(1) + first, std::size_t(width) * sizeof(T));
  });
  return y;
}

template <class T>
void put_columns(compute& where, const at::Tensor& y, std::int64_t first, at::Tensor& x) {
  const std::int64_t width = y.numel() / x.size(0);
  where.pool().split(x.size(0), [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t r = begin; r < end; ++r)
      std::memcpy(data<T>(x) + r * x.size(1) + first, data<T>(y) + r * width, std::size_t(width) * sizeof(T));
  });
}

} // namespace

template <class T>
void head_norm<T>::forward(compute& where, at::Tensor& qkv, std::int64_t head_dim, float eps, at::Tensor* raw, at::Tensor* inverse) const {
  const std::int64_t rows = qkv.size(0) * heads;
  const at::Tensor before = take_columns<T>(where, qkv, first * head_dim, heads * head_dim);
  at::Tensor after = empty_matrix<T>(rows, head_dim);
  if (raw) {
    *raw = before;
    *inverse = at::empty({rows}, at::kFloat);
  }
  kernels::rms_norm(where, data<T>(before), data<T>(gain.value), eps, rows, head_dim, data<T>(after),
                    inverse ? data<float>(*inverse) : nullptr);
  put_columns<T>(where, after, first * head_dim, qkv);
}

template <class T>
void head_norm<T>::backward(compute& where, at::Tensor& d_qkv, std::int64_t head_dim, const at::Tensor& raw, const at::Tensor& inverse) {
  const std::int64_t rows = d_qkv.size(0) * heads;
  const at::Tensor dy = take_columns<float>(where, d_qkv, first * head_dim, heads * head_dim);
  at::Tensor dx = at::zeros({rows, head_dim}, at::kFloat);
  kernels::rms_norm_backward(where, data<float>(dy), data<T>(raw), data<T>(gain.value), data<float>(inverse), rows, head_dim,
                             data<float>(dx), gain.trainable ? data<float>(gain.grad) : nullptr);
  put_columns<float>(where, dx, first * head_dim, d_qkv);
}

template <class T>
decoder_block<T>::decoder_block(const block_spec& spec, std::shared_ptr<rope_table> rope, tensor_parallel tp)
    : cfg_(shared_by(spec.layer, tp.size())), tp_(std::move(tp)), heads_{cfg_.n_heads, cfg_.n_kv_heads, cfg_.head_dim, cfg_.window},
      rope_(std::move(rope)), input_norm_(part_of(spec, "input_layernorm.weight", tp_)), q_(part_of(spec, "self_attn.q_proj.weight", tp_)),
      k_(part_of(spec, "self_attn.k_proj.weight", tp_)), v_(part_of(spec, "self_attn.v_proj.weight", tp_)),
      o_(part_of(spec, "self_attn.o_proj.weight", tp_)), post_norm_(part_of(spec, "post_attention_layernorm.weight", tp_)),
      gate_(part_of(spec, "mlp.gate_proj.weight", tp_)), up_(part_of(spec, "mlp.up_proj.weight", tp_)),
      down_(part_of(spec, "mlp.down_proj.weight", tp_)), biases_(biases_of(spec, tp_)), head_norms_(head_norms_of<T>(spec, cfg_, tp_)),
      qkv_({&q_, &k_, &v_}, false, biases_of_matrices({&q_, &k_, &v_})), out_({&o_}, false, biases_of_matrices({&o_}), tp_.rank() == 0),
      gate_up_({&gate_, &up_}, true, biases_of_matrices({&gate_, &up_})),
      down_linear_({&down_}, false, biases_of_matrices({&down_}), tp_.rank() == 0) {
  std::vector<weight*> mine = {&input_norm_, &q_, &k_, &v_, &o_, &post_norm_, &gate_, &up_, &down_};
  for (const auto& bias : biases_)
    mine.push_back(bias.get());
  for (auto& norm : head_norms_)
    mine.push_back(&norm.gain);
  for (const auto& t : spec.tensors)
    all_.push_back(*std::find_if(mine.begin(), mine.end(), [&](const weight* w) { return w->name == t.name; }));
}

template <class T>
std::vector<weight*> decoder_block<T>::biases_of_matrices(const std::vector<weight*>& matrices) {
  std::vector<weight*> found;
  for (const weight* matrix : matrices)
    for (const auto& bias : biases_)
      if (bias->name == bias_name(matrix->name))
        found.push_back(bias.get());
  return found;
}

template <class T>
void decoder_block<T>::weights(std::vector<weight*>& all) {
  all.insert(all.end(), all_.begin(), all_.end());
}

template <class T>
void decoder_block<T>::lay_out(compute& where, bool backward) {
  for (stacked_linear<T>* l : {&qkv_, &out_, &gate_up_, &down_linear_})
    l->lay_out(where, backward);
}

// Saved, in this order: input, 1/rms of it, q|k|v rotated, attention output, middle of the residual stream, 1/rms of it, gate|up; with
// head norms for queries, then keys: their values before it, 1/rms of each head.
// The residual stream (input, middle) is this rank's rows of it; what lies between two norms' linears is all rows.
template <class T>
at::Tensor decoder_block<T>::forward(pass& p, const at::Tensor& hidden, saved_tensors* save) {
  const std::int64_t n = std::int64_t(p.tokens.ids.size()), rows = hidden.size(0), h = cfg_.hidden;
  compute& where = p.where;
  const auto eps = float(cfg_.rms_norm_eps);
  at::Tensor inverse1 = save ? at::empty({rows}, at::kFloat) : at::Tensor{}, inverse2 = save ? at::empty({rows}, at::kFloat) : at::Tensor{};

  at::Tensor norm = empty_matrix<T>(rows, h);
  kernels::rms_norm(where, data<T>(hidden), data<T>(input_norm_.value), eps, rows, h, data<T>(norm),
                    save ? data<float>(inverse1) : nullptr);
  at::Tensor qkv = qkv_.forward(where, tp_.gather_rows<T>(norm, n, q_.name));
  saved_tensors heads;
  for (const auto& head : head_norms_) {
    at::Tensor raw, inverse;
    head.forward(where, qkv, cfg_.head_dim, eps, save ? &raw : nullptr, save ? &inverse : nullptr);
    heads.insert(heads.end(), {raw, inverse});
  }
  const auto& positions = p.tokens.positions;
  const float* table = rope_->upto(*std::max_element(positions.begin(), positions.end()));
  kernels::rope(where, data<T>(qkv), heads_.row(), n, positions.data(), cfg_.n_heads + cfg_.n_kv_heads, cfg_.head_dim, table, false);
  auto* cache = static_cast<T*>(p.layer_cache);
  kernels::write_keys_values(where, heads_, p.tokens, data<T>(qkv), cache);
  at::Tensor attended = empty_matrix<T>(n, cfg_.n_heads * cfg_.head_dim);
  kernels::attend(where, heads_, p.tokens, data<T>(qkv), cache, data<T>(attended));
  at::Tensor middle = row_parallel(where, tp_, out_, attended, &hidden, o_.name);

  kernels::rms_norm(where, data<T>(middle), data<T>(post_norm_.value), eps, rows, h, data<T>(norm), save ? data<float>(inverse2) : nullptr);
  const at::Tensor all = tp_.gather_rows<T>(norm, n, gate_.name);
  if (!save)
    return row_parallel(where, tp_, down_linear_, gate_up_.forward(where, all), &middle, down_.name);
  at::Tensor gate_up = gate_up_.forward_raw(where, all), act = empty_matrix<T>(n, cfg_.intermediate);
  kernels::silu_mul(where, data<T>(gate_up), n, cfg_.intermediate, data<T>(act));
  *save = {hidden, inverse1, qkv, attended, middle, inverse2, gate_up};
  save->insert(save->end(), heads.begin(), heads.end());
  return row_parallel(where, tp_, down_linear_, act, &middle, down_.name);
}

template <class T>
at::Tensor decoder_block<T>::backward(pass& p, const saved_tensors& saved, at::Tensor d_hidden, bool input_gradient) {
  backward_mlp(p, saved, d_hidden);
  backward_attention(p, saved, d_hidden, input_gradient);
  return d_hidden;
}

// The norm of the rows that are here, all rows of it gathered: what the linears behind it read.
template <class T>
at::Tensor decoder_block<T>::normalised(pass& p, const at::Tensor& x, const weight& norm) const {
  at::Tensor y = empty_matrix<T>(x.size(0), x.size(1));
  kernels::rms_norm(p.where, data<T>(x), data<T>(norm.value), float(cfg_.rms_norm_eps), x.size(0), x.size(1), data<T>(y), nullptr);
  return tp_.gather_rows<T>(y, std::int64_t(p.tokens.ids.size()), norm.name);
}

// d_norm [n, h], this rank's part of the gradient of what `normalised` gives: d_hidden (null: not wanted) and the norm's gradient gain by
// it.
template <class T>
void decoder_block<T>::backward_norm(pass& p, const at::Tensor& d_norm, const at::Tensor& x, const at::Tensor& inverse, weight& norm,
                                     at::Tensor* d_hidden) {
  const at::Tensor dy = tp_.sum_rows<float>(p.where, d_norm, nullptr, norm.name);
  // With sequence parallelism a rank sees its own rows alone; without it all ranks have the whole sum.
  partial_gradients whole(tp_, tp_.sequence() ? tp_.size() : 1, {&norm});
  kernels::rms_norm_backward(p.where, data<float>(dy), data<T>(x), data<T>(norm.value), data<float>(inverse), x.size(0), x.size(1),
                             d_hidden ? data<float>(*d_hidden) : nullptr, norm.trainable ? data<float>(norm.grad) : nullptr);
  whole.add(p.where, norm.name);
}

// d_hidden, the residual stream's gradient, gains the part that came through the MLP.
template <class T>
void decoder_block<T>::backward_mlp(pass& p, const saved_tensors& saved, at::Tensor& d_hidden) {
  compute& where = p.where;
  const at::Tensor &middle = saved[4], &inverse = saved[5], &gate_up = saved[6];
  const std::int64_t n = gate_up.size(0), inter = cfg_.intermediate;
  const at::Tensor dy = tp_.gather_rows<T>(narrowed<T>(where, d_hidden), n, down_.name);
  if (down_linear_.any_trainable()) {
    at::Tensor act = empty_matrix<T>(n, inter);
    kernels::silu_mul(where, data<T>(gate_up), n, inter, data<T>(act));
    down_linear_.backward_weights(where, dy, act);
  }
  at::Tensor d_act = down_linear_.backward_input(where, dy);
  at::Tensor d_gate_up = empty_matrix<T>(n, gate_up_.raw_outputs());
  kernels::silu_mul_backward(where, data<T>(gate_up), data<float>(d_act), n, inter, data<T>(d_gate_up));
  if (gate_up_.any_trainable())
    gate_up_.backward_weights(where, d_gate_up, normalised(p, middle, post_norm_));
  backward_norm(p, gate_up_.backward_input(where, d_gate_up), middle, inverse, post_norm_, &d_hidden);
}

template <class T>
void decoder_block<T>::backward_attention(pass& p, const saved_tensors& saved, at::Tensor& d_hidden, bool input_gradient) {
  compute& where = p.where;
  const at::Tensor &hidden = saved[0], &inverse = saved[1], &qkv = saved[2], &attended = saved[3];
  const std::int64_t n = qkv.size(0);
  const at::Tensor dy = tp_.gather_rows<T>(narrowed<T>(where, d_hidden), n, o_.name);
  out_.backward_weights(where, dy, attended);
  at::Tensor d_attended = out_.backward_input(where, dy);
  at::Tensor d_qkv = empty_matrix<float>(n, heads_.row());
  kernels::attend_backward(where, heads_, p.tokens, *p.keys, data<T>(qkv), data<T>(attended), data<float>(d_attended), data<float>(d_qkv));
  const auto& positions = p.tokens.positions;
  const float* table = rope_->upto(*std::max_element(positions.begin(), positions.end()));
  kernels::rope(where, data<float>(d_qkv), heads_.row(), n, positions.data(), cfg_.n_heads + cfg_.n_kv_heads, cfg_.head_dim, table, true);
  if (!head_norms_.empty()) {
    // A rank has what its own heads give to the gains; keys shared by ranks have parts of their gradients on each.
    partial_gradients whole(tp_, tp_.size(), {&head_norms_[0].gain, &head_norms_[1].gain});
    for (std::size_t i = 0; i < head_norms_.size(); ++i)
      head_norms_[i].backward(where, d_qkv, cfg_.head_dim, saved[7 + 2 * i], saved[8 + 2 * i]);
    whole.add(where, head_norms_[0].gain.name);
  }
  at::Tensor d_rows = narrowed<T>(where, d_qkv);
  if (qkv_.any_trainable()) {
    // Ranks that share a key/value head each have what their own queries gave it.
    std::vector<weight*> shared = {&k_, &v_};
    for (weight* bias : biases_of_matrices({&k_, &v_}))
      shared.push_back(bias);
    partial_gradients whole(tp_, k_.replicas, shared);
    qkv_.backward_weights(where, d_rows, normalised(p, hidden, input_norm_));
    whole.add(where, k_.name);
  }
  if (input_gradient || input_norm_.trainable)
    backward_norm(p, qkv_.backward_input(where, d_rows), hidden, inverse, input_norm_, input_gradient ? &d_hidden : nullptr);
}

// ---- final norm and head ----

template <class T>
lm_head<T>::lm_head(const block_spec& spec, weight* tied, const tensor_spec* copied, tensor_parallel tp)
    : tp_(std::move(tp)), hidden_(spec.in), eps_(float(spec.layer.rms_norm_eps)), copied_(copied != nullptr),
      norm_(make_weight(spec.tensors[0], tp_.rank(), tp_.size())),
      own_(tied || spec.kind == block_kind::norm ? weight{} : make_weight(copied ? *copied : spec.tensors[1], tp_.rank(), tp_.size())),
      matrix_(spec.kind == block_kind::norm ? nullptr
              : tied                        ? tied
                                            : &own_),
      vocabulary_(slice_of(spec)) {
  if (matrix_)
    linear_.emplace(std::vector<weight*>{matrix_}, false);
  if (spec.kind == block_kind::value_head)
    bias_ = make_weight(spec.tensors[2], tp_.rank(), tp_.size());
}

template <class T>
vocabulary_slice lm_head<T>::slice_of(const block_spec& spec) const {
  return spec.kind == block_kind::lm_head ? vocabulary_slice(tp_, spec.out, matrix_->begin, matrix_->shape[0])
                                          : vocabulary_slice(tp_, spec.out, 0, spec.out);
}

template <class T>
void lm_head<T>::weights(std::vector<weight*>& all) {
  all.push_back(&norm_);
  if (matrix_ == &own_)
    all.push_back(&own_);
  if (bias_)
    all.push_back(&*bias_);
}

template <class T>
void lm_head<T>::lay_out(compute& where, bool backward) {
  if (linear_)
    linear_->lay_out(where, backward);
}

template <class T>
bool lm_head<T>::trainable() const {
  return norm_.trainable || (linear_ && linear_->any_trainable()) || (bias_ && bias_->trainable);
}

template <class T>
at::Tensor lm_head<T>::normalise(compute& where, const at::Tensor& slice, std::int64_t n_tokens, std::span<const std::int32_t> rows,
                                 at::Tensor* gathered, at::Tensor* inverse) const {
  const auto n = std::int64_t(rows.size());
  const at::Tensor hidden = tp_.gather_rows<T>(slice, n_tokens, norm_.name);
  at::Tensor picked = empty_matrix<T>(n, hidden_), out = empty_matrix<T>(n, hidden_);
  for (std::int64_t r = 0; r < n; ++r)
    std::memcpy(data<T>(picked) + r * hidden_, data<T>(hidden) + rows[std::size_t(r)] * hidden_, std::size_t(hidden_) * sizeof(T));
  if (inverse)
    *inverse = at::empty({n}, at::kFloat);
  kernels::rms_norm(where, data<T>(picked), data<T>(norm_.value), eps_, n, hidden_, data<T>(out),
                    inverse ? data<float>(*inverse) : nullptr);
  if (gathered)
    *gathered = picked;
  return out;
}

template <class T>
void lm_head<T>::logits(compute& where, const at::Tensor& normalised, std::int64_t begin, std::int64_t count, float* out) const {
  const T* rows = data<T>(normalised) + begin * hidden_;
  if (linear_)
    linear_->forward_f32(where, rows, count, out);
  else
    for (std::int64_t i = 0; i < count * hidden_; ++i)
      out[i] = kernels::widen(rows[i]);
  if (bias_)
    for (std::int64_t r = 0; r < count; ++r)
      out[r] += kernels::widen(*data<T>(bias_->value));
}

template <class T>
void lm_head<T>::backward_logits(compute& where, const at::Tensor& normalised, std::int64_t begin, std::int64_t count,
                                 const at::Tensor& d_logits, at::Tensor& d_normalised) const {
  if (!linear_) {
    for (std::int64_t i = 0; i < count * hidden_; ++i)
      data<float>(d_normalised)[begin * hidden_ + i] = kernels::widen(data<T>(d_logits)[i]);
    return;
  }
  if (bias_ && bias_->trainable)
    for (std::int64_t r = 0; r < count; ++r)
      *data<float>(bias_->grad) += kernels::widen(data<T>(d_logits)[r]);
  linear_->backward_weights(where, d_logits, normalised.narrow(0, begin, count));
  const at::Tensor dx = linear_->backward_input(where, d_logits);
  if (vocabulary_.count() < vocabulary_.total()) // else every rank has all of it
    all_reduce(tp_.group(), where.pool(), data<float>(dx), dx.numel(), matrix_->name);
  std::memcpy(data<float>(d_normalised) + begin * hidden_, data<float>(dx), std::size_t(count * hidden_) * sizeof(float));
}

template <class T>
at::Tensor lm_head<T>::backward_norm(compute& where, const at::Tensor& d_normalised, const at::Tensor& gathered, const at::Tensor& inverse,
                                     std::span<const std::int32_t> rows, std::int64_t n_tokens) const {
  const auto n = std::int64_t(rows.size());
  at::Tensor d_rows = at::zeros({n, hidden_}, at::kFloat), d_hidden = at::zeros({n_tokens, hidden_}, at::kFloat);
  kernels::rms_norm_backward(where, data<float>(d_normalised), data<T>(gathered), data<T>(norm_.value), data<float>(inverse), n, hidden_,
                             data<float>(d_rows), norm_.trainable ? data<float>(norm_.grad) : nullptr);
  for (std::int64_t r = 0; r < n; ++r)
    std::memcpy(data<float>(d_hidden) + rows[std::size_t(r)] * hidden_, data<float>(d_rows) + r * hidden_,
                std::size_t(hidden_) * sizeof(float));
  return tp_.own_rows(d_hidden);
}

template class embedding_block<float>;
template class embedding_block<bf16>;
template class decoder_block<float>;
template class decoder_block<bf16>;
template class lm_head<float>;
template class lm_head<bf16>;

} // namespace troupe
