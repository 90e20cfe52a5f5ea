#include "model/cuda/device_blocks.hpp"
#include "model/kernels/cuda/elementwise.hpp"

namespace troupe::cuda {

namespace {
constexpr std::int64_t norm_partials = 256; // rows of partial sums that rms_norm_backward's scratch holds
}

float* device_block::backward(const device_pass& p, const saved_layer& saved, float* d_hidden, const float* cosines,
                              bool input_gradient) const {
  if (spec_.kind == block_kind::decoder) {
    decoder_backward(p, saved, d_hidden, cosines);
    return d_hidden;
  }
  const std::int64_t n = p.tokens.n;
  const void* dy = p.narrowed(d_hidden, n * spec_.out);
  p.linear_backward(dy, saved.middle, n, linear2_, {});
  if (!input_gradient && !linear1_.grad)
    return nullptr;
  float* d_mid = p.input_gradient(dy, n, linear2_, false);
  if (spec_.relu)
    relu_backward(p.type, saved.middle, d_mid, n * linear1_.rows, p.where);
  const void* d_mid_narrow = p.narrowed(d_mid, n * linear1_.rows);
  p.linear_backward(d_mid_narrow, saved.input, n, linear1_, {});
  return input_gradient ? p.input_gradient(d_mid_narrow, n, linear1_, true) : nullptr;
}

void device_block::decoder_backward(const device_pass& p, const saved_layer& saved, float* d_hidden, const float* cosines) const {
  mlp_backward(p, saved, d_hidden);
  attention_backward(p, saved, d_hidden, cosines);
}

void* device_block::normalised(const device_pass& p, const void* x, const stacked& norm) const {
  void* y = p.empty(p.tokens.n, spec_.in);
  rms_norm_heads(p.type, x, spec_.in, norm.value, float(spec_.layer.rms_norm_eps), p.tokens.n, 1, spec_.in, y, spec_.in, p.where);
  return y;
}

// d_hidden gains what comes through the norm, whose gradient gains too.
void device_block::norm_backward(const device_pass& p, const float* dy, const void* x, const stacked& norm, float* d_hidden) const {
  const std::int64_t n = p.tokens.n, h = spec_.in;
  rms_norm_backward(p.type, dy, h, x, h, norm.value, float(spec_.layer.rms_norm_eps), n, 1, h, d_hidden, h, true, norm.grad,
                    p.empty_f32(n + norm_partials * h, 1), p.where);
}

void device_block::mlp_backward(const device_pass& p, const saved_layer& saved, float* d_hidden) const {
  const std::int64_t n = p.tokens.n, inter = gate_up_.rows / 2;
  const void* dy = p.narrowed(d_hidden, n * spec_.in);
  if (down_.grad || down_bias_.grad) {
    void* act = p.empty(n, inter);
    silu_mul(p.type, saved.gate_up, n, inter, act, p.where);
    p.linear_backward(dy, act, n, down_, down_bias_);
  }
  void* d_gate_up = p.empty(n, 2 * inter);
  silu_mul_backward(p.type, saved.gate_up, p.input_gradient(dy, n, down_, false), n, inter, d_gate_up, p.where);
  if (gate_up_.grad || gate_up_bias_.grad)
    p.linear_backward(d_gate_up, normalised(p, saved.middle, post_norm_), n, gate_up_, gate_up_bias_);
  norm_backward(p, p.input_gradient(d_gate_up, n, gate_up_, true), saved.middle, post_norm_, d_hidden);
}

void device_block::attention_backward(const device_pass& p, const saved_layer& saved, float* d_hidden, const float* cosines) const {
  const std::int64_t n = p.tokens.n, d = heads_.head_dim, q_columns = heads_.n_heads * d, row = heads_.row();
  const auto eps = float(spec_.layer.rms_norm_eps);
  const void* dy = p.narrowed(d_hidden, n * spec_.in);
  p.linear_backward(dy, saved.attended, n, o_, o_bias_);
  const void* d_attended = p.narrowed(p.input_gradient(dy, n, o_, false), n * q_columns);
  float* d_qkv = p.empty_f32(n, row);
  attend_backward(p.type, heads_, *p.gradient, saved.qkv, saved.attended, saved.lse, d_attended, d_qkv,
                  p.work->take_array<float>(p.gradient->scratch_size(heads_)), p.where);
  cuda::rope(dtype::f32, d_qkv, row, n, p.tokens.positions, heads_.n_heads + heads_.n_kv_heads, d, cosines, true, p.where);
  if (q_norm_.value) {
    float* scratch = p.empty_f32(n * heads_.n_heads + norm_partials * d, 1);
    float* dy_qk = p.empty_f32(n, row); // the norm's own gradient is summed after its input's is there
    copy_async(dy_qk, d_qkv, std::size_t(n * row) * sizeof(float), p.where);
    const auto* raw = static_cast<const std::byte*>(saved.raw_qk);
    // Every rank has the gains, and its own heads.
    const auto norm = [&](const stacked& gain, std::int64_t first, std::int64_t heads) {
      const bool alone = p.tp.size() == 1 || !gain.grad;
      float* grad = alone ? gain.grad : p.empty_f32(d, 1);
      if (!alone)
        fill_zero(grad, std::size_t(d) * sizeof(float), p.where);
      rms_norm_backward(p.type, dy_qk + first, row, raw + std::size_t(first) * size_of(p.type), row, gain.value, eps, n, heads, d,
                        d_qkv + first, row, false, grad, scratch, p.where);
      if (!alone)
        p.add_gradient(grad, gain, gain.grad);
    };
    norm(q_norm_, 0, heads_.n_heads);
    norm(k_norm_, q_columns, heads_.n_kv_heads);
  }
  const void* d_narrow = p.narrowed(d_qkv, n * row);
  if (qkv_.grad || qkv_bias_.grad)
    p.linear_backward(d_narrow, normalised(p, saved.input, input_norm_), n, qkv_, qkv_bias_);
  norm_backward(p, p.input_gradient(d_narrow, n, qkv_, true), saved.input, input_norm_, d_hidden);
}

} // namespace troupe::cuda
