#include "model/block.hpp"
#include "model/kernels/elementwise.hpp"
#include "model/kernels/thread_pool.hpp"
#include <ATen/ops/empty.h>
#include <algorithm>
#include <cstring>
#include <type_traits>

namespace troupe {

using kernels::bf16;

template <class T>
at::Tensor empty_matrix(std::int64_t rows, std::int64_t columns) {
  return at::empty({rows, columns}, std::is_same_v<T, float> ? at::kFloat : at::kBFloat16);
}
template at::Tensor empty_matrix<float>(std::int64_t, std::int64_t);
template at::Tensor empty_matrix<bf16>(std::int64_t, std::int64_t);

template <class T>
at::Tensor narrowed(compute& where, const at::Tensor& x) {
  if constexpr (std::is_same_v<T, float>) {
    return x;
  } else {
    at::Tensor y = empty_matrix<T>(x.size(0), x.size(1));
    kernels::convert(where, data<float>(x), x.numel(), data<T>(y));
    return y;
  }
}
template at::Tensor narrowed<float>(compute&, const at::Tensor&);
template at::Tensor narrowed<bf16>(compute&, const at::Tensor&);

template <class T>
stacked_linear<T>::stacked_linear(std::vector<weight*> parts, bool gated, std::vector<weight*> biases, bool added)
    : parts_(std::move(parts)), gated_(gated), biases_(std::move(biases)), added_(added) {
  inputs_ = parts_[0]->shape[1];
  for (const weight* w : parts_)
    outputs_ += w->shape[0];
  if (gated_)
    outputs_ /= 2;
}

namespace {

// Rows may lie apart: a column slice of a shared tensor.
template <class T>
T* row(const at::Tensor& matrix, std::int64_t r) {
  return data<T>(matrix) + r * matrix.stride(0);
}

// gate and up [n, k] -> [ceil(n/16)*32, k], 16 rows of each in turn; missing rows are zero.
template <class T>
at::Tensor interleave(compute& where, const weight& gate, const weight& up) {
  const std::int64_t n = gate.shape[0], k = gate.shape[1], tiles = (n + 15) / 16;
  at::Tensor both = empty_matrix<T>(tiles * 32, k);
  const weight* parts[] = {&gate, &up};
  where.pool().split(tiles * 32, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t r = begin; r < end; ++r) {
      const std::int64_t source = r / 32 * 16 + r % 16;
      T* to = data<T>(both) + r * k;
      if (source < n)
        std::memcpy(to, row<T>(parts[r % 32 / 16]->value, source), std::size_t(k) * sizeof(T));
      else
        std::memset(to, 0, std::size_t(k) * sizeof(T));
    }
  });
  return both;
}

// dy [n, columns] -> its transpose [columns, n padded to 32], zeros in the padding.
template <class T>
at::Tensor transpose(compute& where, const T* dy, std::int64_t n, std::int64_t ld, std::int64_t columns) {
  const std::int64_t padded = (n + 31) / 32 * 32;
  at::Tensor t = empty_matrix<T>(columns, padded);
  where.pool().split((columns + 31) / 32, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t c0 = begin * 32; c0 < std::min(columns, end * 32); c0 += 32)
      for (std::int64_t r0 = 0; r0 < padded; r0 += 32) {
        T tile[32][32] = {};
        const std::int64_t rows = std::min<std::int64_t>(32, n - r0), cols = std::min<std::int64_t>(32, columns - c0);
        for (std::int64_t r = 0; r < rows; ++r)
          for (std::int64_t c = 0; c < cols; ++c)
            tile[c][r] = dy[(r0 + r) * ld + c0 + c];
        for (std::int64_t c = 0; c < cols; ++c)
          std::memcpy(data<T>(t) + (c0 + c) * padded + r0, tile[c], sizeof tile[c]);
      }
  });
  return t;
}

} // namespace

template <class T>
std::pair<std::size_t, std::int64_t> stacked_linear<T>::place_of(std::int64_t column) const {
  if (gated_)
    return {std::size_t(column % 32 / 16), column / 32 * 16 + column % 16};
  std::size_t part = 0;
  for (; column >= parts_[part]->shape[0]; ++part)
    column -= parts_[part]->shape[0];
  return {part, column};
}

template <class T>
void stacked_linear<T>::lay_out_bias() {
  if (biases_.empty() || !added_)
    return;
  bias_.assign(std::size_t((raw_outputs() + 31) / 32 * 32), 0.f);
  for (std::int64_t c = 0; c < raw_outputs(); ++c) {
    const auto [part, r] = place_of(c);
    if (r < parts_[part]->shape[0])
      bias_[std::size_t(c)] = kernels::widen(data<T>(biases_[part]->value)[r]);
  }
}

// Sums over rows, ascending.
template <class T>
void stacked_linear<T>::backward_biases(const at::Tensor& dy) const {
  if (std::none_of(biases_.begin(), biases_.end(), [](const weight* w) { return w->trainable; }))
    return;
  std::vector<float> sums(std::size_t(raw_outputs()), 0.f);
  for (std::int64_t r = 0; r < dy.size(0); ++r)
    for (std::int64_t c = 0; c < raw_outputs(); ++c)
      sums[std::size_t(c)] += kernels::widen(data<T>(dy)[r * raw_outputs() + c]);
  for (std::int64_t c = 0; c < raw_outputs(); ++c) {
    const auto [part, r] = place_of(c);
    if (biases_[part]->trainable && r < parts_[part]->shape[0])
      data<float>(biases_[part]->grad)[r] += sums[std::size_t(c)];
  }
}

template <class T>
void stacked_linear<T>::lay_out(compute& where, bool backward) {
  lay_out_bias();
  if (forward_.n() == 0)
    forward_ = kernels::packed_weight<T>(outputs_, inputs_, gated_);
  std::int64_t column = 0;
  bool aligned = true;
  for (const weight* w : parts_)
    aligned = aligned && (gated_ || w == parts_.back() || w->shape[0] % 16 == 0);
  if (aligned) {
    for (std::size_t i = 0; i < parts_.size(); ++i) {
      const weight& w = *parts_[i];
      kernels::pack(where.pool(), forward_, data<T>(w.value), w.value.stride(0), w.shape[0], gated_ ? 0 : column, gated_ ? int(i) : 0);
      column += w.shape[0];
    }
  }
  // Tiny models: heads whose rows do not fill a tile are stacked first.
  at::Tensor stacked;
  if (!aligned || backward) {
    stacked = gated_ ? interleave<T>(where, *parts_[0], *parts_[1]) : empty_matrix<T>(outputs_, inputs_);
    T* to = data<T>(stacked);
    for (const weight* w : parts_) {
      if (gated_)
        break;
      for (std::int64_t r = 0; r < w->shape[0]; ++r, to += inputs_)
        std::memcpy(to, row<T>(w->value, r), std::size_t(inputs_) * sizeof(T));
    }
  }
  if (!aligned)
    kernels::pack(where.pool(), forward_, data<T>(stacked), inputs_, outputs_);
  if (backward) {
    if (backward_.n() == 0)
      backward_ = kernels::packed_weight<T>(inputs_, raw_outputs());
    kernels::pack_rows(where.pool(), backward_, data<T>(stacked), inputs_, 0, raw_outputs());
  }
}

template <class T>
at::Tensor stacked_linear<T>::forward(compute& where, const at::Tensor& x, const at::Tensor* residual) const {
  const std::int64_t n = x.size(0);
  at::Tensor y = empty_matrix<T>(n, outputs_);
  kernels::gemm_epilogue<T> e;
  e.bias = bias_.empty() ? nullptr : bias_.data();
  if (residual) {
    e.residual = data<T>(*residual);
    e.ldr = outputs_;
  }
  kernels::gemm(where.pool(), where.which(), data<T>(x), inputs_, n, forward_, data<T>(y), outputs_, e);
  return y;
}

template <class T>
at::Tensor stacked_linear<T>::forward_raw(compute& where, const at::Tensor& x) const {
  const std::int64_t n = x.size(0);
  at::Tensor y = empty_matrix<T>(n, raw_outputs());
  kernels::gemm_epilogue<T> e;
  e.bias = bias_.empty() ? nullptr : bias_.data();
  kernels::gemm(where.pool(), where.which(), data<T>(x), inputs_, n, forward_.ungated(), data<T>(y), raw_outputs(), e);
  return y;
}

template <class T>
void stacked_linear<T>::forward_f32(compute& where, const T* x, std::int64_t n, float* y) const {
  kernels::gemm(where.pool(), where.which(), x, inputs_, n, forward_, y, outputs_);
}

template <class T>
at::Tensor stacked_linear<T>::backward_input(compute& where, const at::Tensor& dy) const {
  const std::int64_t n = dy.size(0);
  at::Tensor dx = empty_matrix<float>(n, inputs_);
  kernels::gemm(where.pool(), where.which(), data<T>(dy), raw_outputs(), n, backward_, data<float>(dx), inputs_);
  return dx;
}

template <class T>
void stacked_linear<T>::backward_weights(compute& where, const at::Tensor& dy, const at::Tensor& x) const {
  backward_biases(dy);
  if (std::none_of(parts_.begin(), parts_.end(), [](const weight* w) { return w->trainable; }))
    return;
  const std::int64_t n = dy.size(0), padded = (n + 31) / 32 * 32;
  kernels::packed_weight<T> packed(inputs_, n);
  kernels::pack_rows(where.pool(), packed, data<T>(x), inputs_, 0, n);
  std::int64_t column = 0;
  if (gated_) {
    at::Tensor t = transpose(where, data<T>(dy), n, raw_outputs(), raw_outputs());
    at::Tensor both = empty_matrix<float>(raw_outputs(), inputs_);
    kernels::gemm(where.pool(), where.which(), data<T>(t), padded, raw_outputs(), packed, data<float>(both), inputs_);
    where.pool().split(outputs_, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t r = begin; r < end; ++r)
        for (int part = 0; part < 2; ++part) {
          if (!parts_[std::size_t(part)]->trainable)
            continue;
          const float* from = data<float>(both) + (r / 16 * 32 + part * 16 + r % 16) * inputs_;
          float* to = row<float>(parts_[std::size_t(part)]->grad, r);
          for (std::int64_t j = 0; j < inputs_; ++j)
            to[j] += from[j];
        }
    });
    return;
  }
  for (const weight* w : parts_) {
    const std::int64_t rows = w->shape[0];
    if (w->trainable) {
      at::Tensor t = transpose(where, data<T>(dy) + column, n, raw_outputs(), rows);
      float* grad = data<float>(w->grad);
      const std::int64_t ld = w->grad.stride(0);
      kernels::gemm(where.pool(), where.which(), data<T>(t), padded, rows, packed, grad, ld, {nullptr, grad, ld});
    }
    column += rows;
  }
}

template <class T>
bool stacked_linear<T>::any_trainable() const {
  const auto trained = [](const weight* w) { return w->trainable; };
  return std::any_of(parts_.begin(), parts_.end(), trained) || std::any_of(biases_.begin(), biases_.end(), trained);
}

template class stacked_linear<float>;
template class stacked_linear<bf16>;

} // namespace troupe
