#include "model/blocks.hpp"
#include "model/kernels/thread_pool.hpp"
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <algorithm>
#include <cstring>

namespace troupe {

using kernels::bf16;

namespace {

weight make_weight(std::string name, std::vector<std::int64_t> shape) {
  weight w;
  w.name = std::move(name);
  w.shape = std::move(shape);
  return w;
}

// f32 gradients as the compute type, for the GEMMs.
template <class T> at::Tensor narrowed(compute& where, const at::Tensor& x) {
  if constexpr (std::is_same_v<T, float>) {
    return x;
  } else {
    at::Tensor y = empty_matrix<T>(x.size(0), x.size(1));
    kernels::convert(where, data<float>(x), x.numel(), data<T>(y));
    return y;
  }
}

} // namespace

// ---- embedding ----

template <class T>
embedding_block<T>::embedding_block(std::string name, std::int64_t vocab, std::int64_t hidden)
    : table_(make_weight(std::move(name), {vocab, hidden})) {}

template <class T> at::Tensor embedding_block<T>::forward(pass& p, const at::Tensor&, saved_tensors*) {
  const auto n = std::int64_t(p.tokens.ids.size()), h = table_.shape[1];
  at::Tensor out = empty_matrix<T>(n, h);
  kernels::embed(p.where, data<T>(table_.value), p.tokens.ids.data(), n, h, data<T>(out));
  return out;
}

template <class T> at::Tensor embedding_block<T>::backward(pass& p, const saved_tensors&, at::Tensor d_hidden, bool) {
  if (table_.trainable)
    kernels::embed_backward(p.where, p.tokens.ids.data(), data<float>(d_hidden), d_hidden.size(0), table_.shape[1], data<float>(table_.grad));
  return {};
}

// ---- decoder layer ----

template <class T>
decoder_block<T>::decoder_block(const std::string& prefix, const layer_config& cfg, std::shared_ptr<rope_table> rope)
    : cfg_(cfg), heads_{cfg.n_heads, cfg.n_kv_heads, cfg.head_dim}, rope_(std::move(rope)),
      input_norm_(make_weight(prefix + "input_layernorm.weight", {cfg.hidden})),
      q_(make_weight(prefix + "self_attn.q_proj.weight", {cfg.n_heads * cfg.head_dim, cfg.hidden})),
      k_(make_weight(prefix + "self_attn.k_proj.weight", {cfg.n_kv_heads * cfg.head_dim, cfg.hidden})),
      v_(make_weight(prefix + "self_attn.v_proj.weight", {cfg.n_kv_heads * cfg.head_dim, cfg.hidden})),
      o_(make_weight(prefix + "self_attn.o_proj.weight", {cfg.hidden, cfg.n_heads * cfg.head_dim})),
      post_norm_(make_weight(prefix + "post_attention_layernorm.weight", {cfg.hidden})),
      gate_(make_weight(prefix + "mlp.gate_proj.weight", {cfg.intermediate, cfg.hidden})),
      up_(make_weight(prefix + "mlp.up_proj.weight", {cfg.intermediate, cfg.hidden})),
      down_(make_weight(prefix + "mlp.down_proj.weight", {cfg.hidden, cfg.intermediate})), qkv_({&q_, &k_, &v_}, false), out_({&o_}, false),
      gate_up_({&gate_, &up_}, true), down_linear_({&down_}, false) {}

template <class T> void decoder_block<T>::weights(std::vector<weight*>& all) {
  for (weight* w : {&input_norm_, &q_, &k_, &v_, &o_, &post_norm_, &gate_, &up_, &down_})
    all.push_back(w);
}

template <class T> void decoder_block<T>::lay_out(compute& where, bool backward) {
  for (stacked_linear<T>* l : {&qkv_, &out_, &gate_up_, &down_linear_})
    l->lay_out(where, backward);
}

// Saved, in this order: input, 1/rms of it, q|k|v rotated, attention output, middle of the residual stream, 1/rms of it, gate|up.
template <class T> at::Tensor decoder_block<T>::forward(pass& p, const at::Tensor& hidden, saved_tensors* save) {
  const std::int64_t n = hidden.size(0), h = cfg_.hidden;
  compute& where = p.where;
  const auto eps = float(cfg_.rms_norm_eps);
  at::Tensor inverse1 = save ? at::empty({n}, at::kFloat) : at::Tensor{}, inverse2 = save ? at::empty({n}, at::kFloat) : at::Tensor{};

  at::Tensor norm = empty_matrix<T>(n, h);
  kernels::rms_norm(where, data<T>(hidden), data<T>(input_norm_.value), eps, n, h, data<T>(norm), save ? data<float>(inverse1) : nullptr);
  at::Tensor qkv = qkv_.forward(where, norm);
  const auto& positions = p.tokens.positions;
  const float* table = rope_->upto(*std::max_element(positions.begin(), positions.end()));
  kernels::rope(where, data<T>(qkv), heads_.row(), n, positions.data(), cfg_.n_heads + cfg_.n_kv_heads, cfg_.head_dim, table, false);
  auto* cache = static_cast<T*>(p.layer_cache);
  kernels::write_keys_values(where, heads_, p.tokens, data<T>(qkv), cache);
  at::Tensor attended = empty_matrix<T>(n, cfg_.n_heads * cfg_.head_dim);
  kernels::attend(where, heads_, p.tokens, data<T>(qkv), cache, data<T>(attended));
  at::Tensor middle = out_.forward(where, attended, &hidden);

  kernels::rms_norm(where, data<T>(middle), data<T>(post_norm_.value), eps, n, h, data<T>(norm), save ? data<float>(inverse2) : nullptr);
  if (!save)
    return down_linear_.forward(where, gate_up_.forward(where, norm), &middle);
  at::Tensor gate_up = gate_up_.forward_raw(where, norm), act = empty_matrix<T>(n, cfg_.intermediate);
  kernels::silu_mul(where, data<T>(gate_up), n, cfg_.intermediate, data<T>(act));
  *save = {hidden, inverse1, qkv, attended, middle, inverse2, gate_up};
  return down_linear_.forward(where, act, &middle);
}

template <class T> at::Tensor decoder_block<T>::backward(pass& p, const saved_tensors& saved, at::Tensor d_hidden, bool input_gradient) {
  backward_mlp(p, saved, d_hidden);
  backward_attention(p, saved, d_hidden, input_gradient);
  return d_hidden;
}

// d_hidden, the residual stream's gradient, gains the part that came through the MLP.
template <class T> void decoder_block<T>::backward_mlp(pass& p, const saved_tensors& saved, at::Tensor& d_hidden) {
  compute& where = p.where;
  const at::Tensor &middle = saved[4], &inverse = saved[5], &gate_up = saved[6];
  const std::int64_t n = middle.size(0), h = cfg_.hidden, inter = cfg_.intermediate;
  at::Tensor dy = narrowed<T>(where, d_hidden);
  if (down_linear_.any_trainable()) {
    at::Tensor act = empty_matrix<T>(n, inter);
    kernels::silu_mul(where, data<T>(gate_up), n, inter, data<T>(act));
    down_linear_.backward_weights(where, dy, act);
  }
  at::Tensor d_act = down_linear_.backward_input(where, dy);
  at::Tensor d_gate_up = empty_matrix<T>(n, gate_up_.raw_outputs());
  kernels::silu_mul_backward(where, data<T>(gate_up), data<float>(d_act), n, inter, data<T>(d_gate_up));
  if (gate_up_.any_trainable()) {
    at::Tensor norm = empty_matrix<T>(n, h);
    kernels::rms_norm(where, data<T>(middle), data<T>(post_norm_.value), float(cfg_.rms_norm_eps), n, h, data<T>(norm), nullptr);
    gate_up_.backward_weights(where, d_gate_up, norm);
  }
  at::Tensor d_norm = gate_up_.backward_input(where, d_gate_up);
  kernels::rms_norm_backward(where, data<float>(d_norm), data<T>(middle), data<T>(post_norm_.value), data<float>(inverse), n, h,
                             data<float>(d_hidden), post_norm_.trainable ? data<float>(post_norm_.grad) : nullptr);
}

template <class T>
void decoder_block<T>::backward_attention(pass& p, const saved_tensors& saved, at::Tensor& d_hidden, bool input_gradient) {
  compute& where = p.where;
  const at::Tensor &hidden = saved[0], &inverse = saved[1], &qkv = saved[2], &attended = saved[3];
  const std::int64_t n = hidden.size(0), h = cfg_.hidden;
  at::Tensor dy = narrowed<T>(where, d_hidden);
  out_.backward_weights(where, dy, attended);
  at::Tensor d_attended = out_.backward_input(where, dy);
  at::Tensor d_qkv = empty_matrix<float>(n, heads_.row());
  kernels::attend_backward(where, heads_, p.tokens, *p.keys, data<T>(qkv), data<T>(attended), data<float>(d_attended), data<float>(d_qkv));
  const auto& positions = p.tokens.positions;
  const float* table = rope_->upto(*std::max_element(positions.begin(), positions.end()));
  kernels::rope(where, data<float>(d_qkv), heads_.row(), n, positions.data(), cfg_.n_heads + cfg_.n_kv_heads, cfg_.head_dim, table, true);
  at::Tensor d_rows = narrowed<T>(where, d_qkv);
  if (qkv_.any_trainable()) {
    at::Tensor norm = empty_matrix<T>(n, h);
    kernels::rms_norm(where, data<T>(hidden), data<T>(input_norm_.value), float(cfg_.rms_norm_eps), n, h, data<T>(norm), nullptr);
    qkv_.backward_weights(where, d_rows, norm);
  }
  if (!input_gradient && !input_norm_.trainable)
    return;
  at::Tensor d_norm = qkv_.backward_input(where, d_rows);
  kernels::rms_norm_backward(where, data<float>(d_norm), data<T>(hidden), data<T>(input_norm_.value), data<float>(inverse), n, h,
                             input_gradient ? data<float>(d_hidden) : nullptr, input_norm_.trainable ? data<float>(input_norm_.grad) : nullptr);
}

// ---- final norm and head ----

template <class T>
lm_head<T>::lm_head(std::int64_t vocab, std::int64_t hidden, double eps, weight* tied)
    : vocab_(vocab), hidden_(hidden), eps_(float(eps)), norm_(make_weight("model.norm.weight", {hidden})),
      own_(make_weight("lm_head.weight", {vocab, hidden})), matrix_(tied ? tied : &own_), linear_({matrix_}, false) {}

template <class T> void lm_head<T>::weights(std::vector<weight*>& all) {
  all.push_back(&norm_);
  if (matrix_ == &own_)
    all.push_back(&own_);
}

template <class T> void lm_head<T>::lay_out(compute& where, bool backward) { linear_.lay_out(where, backward); }

template <class T> bool lm_head<T>::trainable() const { return norm_.trainable || linear_.any_trainable(); }

template <class T>
at::Tensor lm_head<T>::normalise(compute& where, const at::Tensor& hidden, std::span<const std::int32_t> rows, at::Tensor* gathered,
                                 at::Tensor* inverse) const {
  const auto n = std::int64_t(rows.size());
  at::Tensor picked = empty_matrix<T>(n, hidden_), out = empty_matrix<T>(n, hidden_);
  for (std::int64_t r = 0; r < n; ++r)
    std::memcpy(data<T>(picked) + r * hidden_, data<T>(hidden) + rows[std::size_t(r)] * hidden_, std::size_t(hidden_) * sizeof(T));
  if (inverse)
    *inverse = at::empty({n}, at::kFloat);
  kernels::rms_norm(where, data<T>(picked), data<T>(norm_.value), eps_, n, hidden_, data<T>(out), inverse ? data<float>(*inverse) : nullptr);
  if (gathered)
    *gathered = picked;
  return out;
}

template <class T>
void lm_head<T>::logits(compute& where, const at::Tensor& normalised, std::int64_t begin, std::int64_t count, float* out) const {
  linear_.forward_f32(where, data<T>(normalised) + begin * hidden_, count, out);
}

template <class T>
void lm_head<T>::backward_logits(compute& where, const at::Tensor& normalised, std::int64_t begin, std::int64_t count, const at::Tensor& d_logits,
                                 at::Tensor& d_normalised) const {
  linear_.backward_weights(where, d_logits, normalised.narrow(0, begin, count));
  at::Tensor dx = linear_.backward_input(where, d_logits);
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
    std::memcpy(data<float>(d_hidden) + rows[std::size_t(r)] * hidden_, data<float>(d_rows) + r * hidden_, std::size_t(hidden_) * sizeof(float));
  return d_hidden;
}

template class embedding_block<float>;
template class embedding_block<bf16>;
template class decoder_block<float>;
template class decoder_block<bf16>;
template class lm_head<float>;
template class lm_head<bf16>;

} // namespace troupe
