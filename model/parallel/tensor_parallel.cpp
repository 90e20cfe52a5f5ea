#include "model/parallel/tensor_parallel.hpp"
#include "model/kernels/thread_pool.hpp"
#include "model/parallel/reduce.hpp"
#include <ATen/ops/zeros.h>
#include <algorithm>
#include <cstring>

namespace troupe {

using kernels::bf16;

namespace {

template <class T>
std::size_t bytes_of(const at::Tensor& x) {
  return std::size_t(x.numel()) * sizeof(T);
}

// x [n, w] and zeros up to `rows`.
template <class T>
at::Tensor padded(const at::Tensor& x, std::int64_t rows) {
  if (x.size(0) == rows)
    return x;
  at::Tensor all = empty_matrix<T>(rows, x.size(1));
  std::memcpy(data<T>(all), data<T>(x), bytes_of<T>(x));
  std::memset(data<T>(all) + x.numel(), 0, bytes_of<T>(all) - bytes_of<T>(x));
  return all;
}

} // namespace

template <class T>
at::Tensor tensor_parallel::gather_rows(const at::Tensor& x, std::int64_t n_tokens, std::string_view what) const {
  if (!sequence_)
    return x;
  at::Tensor all = empty_matrix<T>(x.size(0) * size(), x.size(1));
  group_->all_gather(data<T>(x), data<T>(all), bytes_of<T>(x), what);
  return all.narrow(0, 0, n_tokens);
}

template <class T>
at::Tensor tensor_parallel::sum_rows(compute& where, at::Tensor part, const at::Tensor* residual, std::string_view what) const {
  if (group_ && sequence_) {
    const std::int64_t own = rows(part.size(0)), width = part.size(1);
    const at::Tensor parts = padded<T>(part, own * size());
    part = empty_matrix<T>(own, width);
    reduce_scatter(*group_, where.pool(), data<T>(parts), own * width, data<T>(part), what);
  } else if (group_) {
    all_reduce(*group_, where.pool(), data<T>(part), part.numel(), what);
  }
  if (residual)
    add_rounded(where.pool(), data<T>(*residual), part.numel(), data<T>(part));
  return part;
}

at::Tensor tensor_parallel::own_rows(const at::Tensor& x) const {
  if (!sequence_)
    return x;
  const std::int64_t own = rows(x.size(0)), begin = std::min(x.size(0), own * rank()), count = std::min(x.size(0), begin + own) - begin;
  const at::Tensor slice = x.narrow(0, begin, count);
  return x.scalar_type() == at::kFloat ? padded<float>(slice, own) : padded<bf16>(slice, own);
}

template <class T>
at::Tensor tensor_parallel::gather_columns(const at::Tensor& y, std::int64_t widest, std::int64_t total, std::string_view what) const {
  if (!group_)
    return y;
  const std::int64_t n = y.size(0), own = y.size(1);
  at::Tensor mine = empty_matrix<T>(n, widest), parts = empty_matrix<T>(n * size(), widest), all = empty_matrix<T>(n, total);
  for (std::int64_t r = 0; r < n; ++r) {
    std::memcpy(data<T>(mine) + r * widest, data<T>(y) + r * own, std::size_t(own) * sizeof(T));
    std::memset(data<T>(mine) + r * widest + own, 0, std::size_t(widest - own) * sizeof(T));
  }
  group_->all_gather(data<T>(mine), data<T>(parts), bytes_of<T>(mine), what);
  for (std::int64_t p = 0; p < size(); ++p)
    for (std::int64_t r = 0; r < n; ++r)
      std::memcpy(data<T>(all) + r * total + p * widest, data<T>(parts) + (p * n + r) * widest,
                  std::size_t(std::min(widest, total - p * widest)) * sizeof(T));
  return all;
}

template <class T>
at::Tensor tensor_parallel::own_columns(const at::Tensor& x) const {
  if (!group_)
    return x;
  const std::int64_t n = x.size(0), all = x.size(1), own = all / size();
  at::Tensor mine = empty_matrix<T>(n, own);
  for (std::int64_t r = 0; r < n; ++r)
    std::memcpy(data<T>(mine) + r * own, data<T>(x) + r * all + rank() * own, std::size_t(own) * sizeof(T));
  return mine;
}

template <class T>
at::Tensor row_parallel(compute& where, const tensor_parallel& tp, const stacked_linear<T>& linear, const at::Tensor& x,
                        const at::Tensor* residual, std::string_view what, bool input_is_parallel) {
  if (tp.size() == 1)
    return linear.forward(where, x, residual);
  return tp.sum_rows<T>(where, linear.forward(where, input_is_parallel ? x : tp.own_columns<T>(x)), residual, what);
}

template <class T>
at::Tensor row_parallel_backward(compute& where, const tensor_parallel& tp, const stacked_linear<T>& linear, const at::Tensor& dy,
                                 std::string_view what, bool input_is_parallel) {
  const at::Tensor dx = linear.backward_input(where, dy);
  return input_is_parallel ? dx : tp.gather_columns<float>(dx, dx.size(1), dx.size(1) * tp.size(), what);
}

partial_gradients::partial_gradients(const tensor_parallel& tp, int replicas, const std::vector<weight*>& weights)
    : tp_(tp), replicas_(replicas) {
  for (weight* w : weights)
    if (replicas > 1 && w->trainable) {
      weights_.push_back(w);
      before_.push_back(w->grad);
      w->grad = at::zeros(w->shape, at::kFloat);
    }
}

partial_gradients::~partial_gradients() { restore(); }

void partial_gradients::restore() {
  for (std::size_t i = 0; i < before_.size(); ++i)
    weights_[i]->grad = before_[i];
  before_.clear();
}

void partial_gradients::add(compute& where, std::string_view what) {
  if (before_.empty())
    return;
  std::vector<float> mine, all;
  for (const weight* w : weights_)
    mine.insert(mine.end(), data<float>(w->grad), data<float>(w->grad) + w->grad.numel());
  all.resize(mine.size() * std::size_t(tp_.size()));
  tp_.group().all_gather(mine.data(), all.data(), mine.size() * sizeof(float), what);
  const float* first = all.data() + std::size_t(tp_.rank() - tp_.rank() % replicas_) * mine.size();
  sum_parts(where.pool(), first, replicas_, std::int64_t(mine.size()), mine.data());
  restore();
  const float* from = mine.data();
  for (weight* w : weights_)
    for (std::int64_t r = 0; r < (w->grad.dim() > 1 ? w->grad.size(0) : 1); ++r) {
      const std::int64_t columns = w->grad.size(-1);
      float* to = data<float>(w->grad) + (w->grad.dim() > 1 ? r * w->grad.stride(0) : 0);
      for (std::int64_t c = 0; c < columns; ++c)
        to[c] += *from++;
    }
}

#define RG_INSTANCE(T)                                                                                                                     \
  template at::Tensor tensor_parallel::gather_rows<T>(const at::Tensor&, std::int64_t, std::string_view) const;                            \
  template at::Tensor tensor_parallel::sum_rows<T>(compute&, at::Tensor, const at::Tensor*, std::string_view) const;                       \
  template at::Tensor tensor_parallel::gather_columns<T>(const at::Tensor&, std::int64_t, std::int64_t, std::string_view) const;           \
  template at::Tensor tensor_parallel::own_columns<T>(const at::Tensor&) const;                                                            \
  template at::Tensor row_parallel(compute&, const tensor_parallel&, const stacked_linear<T>&, const at::Tensor&, const at::Tensor*,       \
                                   std::string_view, bool);                                                                                \
  template at::Tensor row_parallel_backward(compute&, const tensor_parallel&, const stacked_linear<T>&, const at::Tensor&,                 \
                                            std::string_view, bool);
RG_INSTANCE(bf16)
RG_INSTANCE(float)
#undef RG_INSTANCE

} // namespace troupe
