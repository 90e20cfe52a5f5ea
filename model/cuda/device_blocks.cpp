#include "model/cuda/device_blocks.hpp"
#include "model/kernels/cuda/elementwise.hpp"
#include "model/kernels/cuda/few_rows.hpp"
#include <algorithm>

namespace troupe::cuda {

void* device_pass::linear(const void* x, std::int64_t n, const stacked& w, const stacked& bias, bool lasting) const {
  void* y = empty(n, w.rows, lasting);
  products.forward(type, x, w.value, bias.value, n, w.rows, w.columns, y, type, where);
  return y;
}

void* device_pass::row_parallel(const void* x, std::int64_t n, const stacked& w, const stacked& bias, const char* what,
                                bool lasting) const {
  void* y = linear(x, n, w, tp.rank() == 0 ? bias : stacked{}, lasting);
  tp.sum(type, y, n * w.rows, *work, where, what);
  return y;
}

void device_pass::add_gradient(const float* part, const stacked& like, float* grad) const {
  for (const auto& tensor : like.parts) {
    const std::int64_t count = tensor.rows * like.columns;
    tp.add_replicas(part, tensor.replicas, count, grad, *work, where, "gradients of a tensor that ranks share");
    part += count, grad += count;
  }
}

void device_pass::linear_backward(const void* dy, const void* x, std::int64_t n, const stacked& w, const stacked& bias) const {
  // What only this rank has adds up in place; heads of keys and values that several ranks share are summed over those first. A tensor that
  // all of them have whole has the same gradient everywhere.
  const auto partial = [](const stacked& t) { return t.parts.size() == 3 && t.parts[1].replicas > 1; };
  const auto form = [&](const stacked& t, auto&& into) {
    if (!t.grad)
      return;
    if (!partial(t))
      return into(t.grad);
    float* part = empty_f32(t.rows, t.columns);
    fill_zero(part, std::size_t(t.rows * t.columns) * sizeof(float), where);
    into(part);
    add_gradient(part, t, t.grad);
  };
  form(w, [&](float* grad) { products.backward_weight(type, dy, x, n, w.rows, w.columns, grad, where); });
  form(bias, [&](float* grad) { bias_backward(type, dy, n, w.rows, grad, where); });
}

float* device_pass::input_gradient(const void* dy, std::int64_t n, const stacked& w, bool shared) const {
  float* dx = empty_f32(n, w.columns);
  products.backward_input(type, dy, w.value, n, w.rows, w.columns, dx, where);
  if (shared)
    tp.sum(dtype::f32, dx, n * w.columns, *work, where, "the gradient of hidden states");
  return dx;
}

void* device_pass::narrowed(const float* x, std::int64_t count) const {
  void* y = work->take(std::size_t(count) * size_of(type));
  convert(x, count, type, y, where);
  return y;
}

const float* device_rope::upto(std::int64_t last, bool& moved) {
  if (last >= positions_) {
    positions_ = std::max<std::int64_t>({4096, 2 * positions_, last + 1});
    memory_ = device_buffer(std::size_t(positions_ * head_dim_) * sizeof(float));
    memory_.upload(table_.upto(positions_ - 1));
    moved = true;
  }
  return static_cast<const float*>(memory_.data());
}

device_block::device_block(const block_spec& spec, const device_weights& weights, std::shared_ptr<device_rope> rope, int ranks)
    : spec_(spec), heads_{int(spec.layer.n_heads) / ranks, std::max(1, int(spec.layer.n_kv_heads) / ranks), int(spec.layer.head_dim),
                          int(spec.layer.window)},
      rope_(std::move(rope)), trained_(weights.trained(spec)) {
  const auto find = [&](const std::vector<std::string>& suffixes) { return weights.find(spec_, suffixes); };
  const std::string attention = "self_attn.", mlp = "mlp.";
  const auto of = [](const std::string& part, std::vector<std::string> names, const std::string& ending) {
    for (auto& name : names)
      name = part + name + "_proj." + ending;
    return names;
  };
  input_norm_ = find({"input_layernorm.weight"});
  qkv_ = find(of(attention, {"q", "k", "v"}, "weight"));
  qkv_bias_ = find(of(attention, {"q", "k", "v"}, "bias"));
  q_norm_ = find({"self_attn.q_norm.weight"});
  k_norm_ = find({"self_attn.k_norm.weight"});
  o_ = find(of(attention, {"o"}, "weight"));
  o_bias_ = find(of(attention, {"o"}, "bias"));
  post_norm_ = find({"post_attention_layernorm.weight"});
  gate_up_ = find(of(mlp, {"gate", "up"}, "weight"));
  gate_up_bias_ = find(of(mlp, {"gate", "up"}, "bias"));
  down_ = find(of(mlp, {"down"}, "weight"));
  down_bias_ = find(of(mlp, {"down"}, "bias"));
  table_ = find({"weight"});
  linear1_ = find({"linear1.weight"});
  linear2_ = find({"linear2.weight"});
}

residual device_block::forward(const device_pass& p, residual x, const float* cosines, saved_layer* save) const {
  const std::int64_t n = p.tokens.n;
  switch (spec_.kind) {
  case block_kind::embedding:
    if (x.sum) // embeddings came with the batch
      return x;
    x.sum = p.empty(n, table_.columns, true);
    embed(p.type, table_.value, p.tokens.ids, n, table_.columns, x.sum, p.where);
    p.tp.sum(p.type, x.sum, n * table_.columns, *p.work, p.where, "embeddings");
    return x;
  case block_kind::adapter: {
    if (x.delta)
      add(p.type, x.sum, x.delta, n * spec_.in, p.where);
    void* mid = p.linear(x.sum, n, linear1_, {}, save != nullptr);
    if (spec_.relu)
      relu(p.type, mid, n * linear1_.rows, p.where);
    if (save)
      save->input = x.sum, save->middle = mid;
    return {p.row_parallel(mid, n, linear2_, {}, "the adapter", true), nullptr};
  }
  default:
    return decoder_forward(p, x, cosines, save);
  }
}

// Queries and keys of qkv [n, row()], in place.
void device_block::normalise_heads(const device_pass& p, void* qkv) const {
  const std::int64_t n = p.tokens.n, d = heads_.head_dim;
  const auto eps = float(spec_.layer.rms_norm_eps);
  auto* keys = static_cast<std::byte*>(qkv) + std::size_t(heads_.n_heads * d) * size_of(p.type);
  rms_norm_heads(p.type, qkv, heads_.row(), q_norm_.value, eps, n, heads_.n_heads, d, qkv, heads_.row(), p.where);
  rms_norm_heads(p.type, keys, heads_.row(), k_norm_.value, eps, n, heads_.n_kv_heads, d, keys, heads_.row(), p.where);
}

residual device_block::decoder_forward(const device_pass& p, residual x, const float* cosines, saved_layer* save) const {
  const std::int64_t n = p.tokens.n, h = spec_.in, d = heads_.head_dim;
  const auto eps = float(spec_.layer.rms_norm_eps);
  const auto keep = [&](void* from, std::int64_t columns) {
    void* to = p.empty(n, columns, true);
    copy_async(to, from, std::size_t(n * columns) * size_of(p.type), p.where);
    return to;
  };
  if (!save && takes_few_rows(p))
    return few_rows_forward(p, x, cosines);
  void* norm = p.empty(n, h);
  add_rms_norm(p.type, x.delta, x.sum, input_norm_.value, eps, n, h, norm, p.where);
  if (save)
    save->input = keep(x.sum, h);
  void* qkv = p.linear(norm, n, qkv_, qkv_bias_, save != nullptr);
  if (q_norm_.value) {
    if (save)
      save->raw_qk = keep(qkv, heads_.row());
    normalise_heads(p, qkv);
  }
  const device_batch& t = p.tokens;
  rope_write(p.type, heads_, qkv, n, t.positions, cosines, t.slots, p.layer_cache, t.n_copies, t.copy_rows, t.copy_slots, p.where);
  void* attended = p.empty(n, heads_.n_heads * d, save != nullptr);
  float* lse = save ? p.memory.take_array<float>(std::size_t(heads_.n_heads * n)) : nullptr;
  attend(p.type, heads_, t.plan, qkv, p.layer_cache, attended, lse, p.attention_scratch, p.where);
  void* delta = p.row_parallel(attended, n, o_, o_bias_, "attention");
  add_rms_norm(p.type, delta, x.sum, post_norm_.value, eps, n, h, norm, p.where);
  if (save)
    save->middle = keep(x.sum, h), save->qkv = qkv, save->attended = attended, save->lse = lse;
  void* gate_up = p.linear(norm, n, gate_up_, gate_up_bias_, save != nullptr);
  const std::int64_t inter = gate_up_.rows / 2;
  void* act = p.empty(n, inter);
  silu_mul(p.type, gate_up, n, inter, act, p.where);
  if (save)
    save->gate_up = gate_up;
  return {x.sum, p.row_parallel(act, n, down_, down_bias_, "the MLP")};
}

bool device_block::takes_few_rows(const device_pass& p) const {
  const auto takes = [&](const stacked& w) { return few_rows::takes(p.type, p.tokens.n, w.rows, w.columns); };
  return p.tp.size() == 1 && p.products.exact() && p.tokens.n_copies == 0 && heads_.head_dim % 16 == 0 && takes(qkv_) && takes(o_) &&
         takes(gate_up_) && takes(down_);
}

// The same bits with fewer kernels: each product does what stands before and after it.
residual device_block::few_rows_forward(const device_pass& p, residual x, const float* cosines) const {
  const std::int64_t n = p.tokens.n, h = spec_.in, d = heads_.head_dim;
  const auto eps = float(spec_.layer.rms_norm_eps);
  const device_batch& t = p.tokens;
  void* const norm = p.empty(n, h);
  const auto of = [&](const void* in, const stacked& w, const stacked& bias, const void* norm_weight) {
    return few_rows::operands{in, w.value, bias.value, n, w.rows, w.columns, norm_weight, eps, norm};
  };
  if (x.delta)
    add(p.type, x.sum, x.delta, n * h, p.where);
  void* const qkv = p.empty(n, heads_.row());
  if (q_norm_.value) {
    few_rows::product(of(x.sum, qkv_, qkv_bias_, input_norm_.value), qkv, p.type, p.where);
    normalise_heads(p, qkv);
    rope_write(p.type, heads_, qkv, n, t.positions, cosines, t.slots, p.layer_cache, 0, nullptr, nullptr, p.where);
  } else {
    few_rows::rotated_product(of(x.sum, qkv_, qkv_bias_, input_norm_.value), {heads_, t.positions, cosines, t.slots, p.layer_cache}, qkv,
                              p.where);
  }
  void* const attended = p.empty(n, heads_.n_heads * d);
  attend(p.type, heads_, t.plan, qkv, p.layer_cache, attended, nullptr, p.attention_scratch, p.where);
  few_rows::add_product(of(attended, o_, o_bias_, nullptr), x.sum, p.where);
  void* const act = p.empty(n, gate_up_.rows / 2);
  few_rows::gated_product(of(x.sum, gate_up_, gate_up_bias_, post_norm_.value), act, p.where);
  few_rows::add_product(of(act, down_, down_bias_, nullptr), x.sum, p.where);
  return {x.sum, nullptr};
}

} // namespace troupe::cuda
