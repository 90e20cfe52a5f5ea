#include "model/adapter_block.hpp"
#include "core/error.hpp"
#include "model/kernels/thread_pool.hpp"

namespace troupe {

using kernels::bf16;

namespace {

// NaN is not.
template <class T>
bool not_positive(T x) {
  if constexpr (std::is_same_v<T, float>)
    return x <= 0;
  else
    return x == 0 || (x >= 0x8000 && x <= 0xff80); // a bfloat16's bits
}

// In place, on what the GEMM has just written.
template <class T>
void relu(compute& where, const at::Tensor& x) {
  where.pool().split(x.numel(), [&](std::int64_t begin, std::int64_t end) {
    for (T* value = data<T>(x) + begin; value != data<T>(x) + end; ++value)
      if (not_positive(*value))
        *value = T(0);
  });
}

// d_mid becomes zero where the ReLU's output is.
template <class T>
void relu_backward(compute& where, const at::Tensor& d_mid, const at::Tensor& mid) {
  where.pool().split(d_mid.numel(), [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i)
      if (data<T>(mid)[i] == T(0))
        data<float>(d_mid)[i] = 0;
  });
}

} // namespace

template <class T>
adapter_block<T>::adapter_block(const block_spec& spec, tensor_parallel tp)
    : in_(spec.in), out_(spec.out), relu_(spec.relu), tp_(std::move(tp)), weight1_(make_weight(spec.tensors[0], tp_.rank(), tp_.size())),
      weight2_(make_weight(spec.tensors[1], tp_.rank(), tp_.size())), linear1_({&weight1_}, false), linear2_({&weight2_}, false) {}

template <class T>
void adapter_block<T>::weights(std::vector<weight*>& all) {
  all.push_back(&weight1_);
  all.push_back(&weight2_);
}

template <class T>
void adapter_block<T>::lay_out(compute& where, bool backward) {
  linear1_.lay_out(where, backward);
  linear2_.lay_out(where, backward);
}

// Saved: the input (this rank's rows), and what linear2 reads (all rows, this rank's columns).
template <class T>
at::Tensor adapter_block<T>::forward(pass& p, const at::Tensor& hidden, saved_tensors* save) {
  if (hidden.dim() != 2 || hidden.size(1) != in_)
    throw error{errc::bad_shape, "adapter: hidden states are " + std::to_string(hidden.size(-1)) + " wide; this one leads from width " +
                                     std::to_string(in_) + " to " + std::to_string(out_)};
  const auto n = std::int64_t(p.tokens.ids.size());
  const at::Tensor mid = linear1_.forward(p.where, tp_.gather_rows<T>(hidden, n, weight1_.name));
  if (relu_)
    relu<T>(p.where, mid);
  if (save)
    *save = {hidden, mid};
  return row_parallel(p.where, tp_, linear2_, mid, nullptr, weight2_.name);
}

template <class T>
at::Tensor adapter_block<T>::backward(pass& p, const saved_tensors& saved, at::Tensor d_hidden, bool input_gradient) {
  const at::Tensor &hidden = saved[0], &mid = saved[1];
  const std::int64_t n = mid.size(0);
  const at::Tensor dy = tp_.gather_rows<T>(narrowed<T>(p.where, d_hidden), n, weight2_.name);
  linear2_.backward_weights(p.where, dy, mid);
  if (!input_gradient && !linear1_.any_trainable())
    return {};
  const at::Tensor d_mid32 = linear2_.backward_input(p.where, dy);
  if (relu_)
    relu_backward<T>(p.where, d_mid32, mid);
  const at::Tensor d_mid = narrowed<T>(p.where, d_mid32);
  if (linear1_.any_trainable())
    linear1_.backward_weights(p.where, d_mid, tp_.gather_rows<T>(hidden, n, weight1_.name));
  return input_gradient ? tp_.sum_rows<float>(p.where, linear1_.backward_input(p.where, d_mid), nullptr, weight1_.name) : at::Tensor{};
}

template class adapter_block<float>;
template class adapter_block<bf16>;

} // namespace troupe
