#include "model/cuda/device_weights.hpp"
#include "core/error.hpp"
#include <algorithm>
#include <cstring>

namespace troupe::cuda {

namespace {

constexpr std::size_t alignment = 128; // elements between the beginnings of two groups: products want 256-byte aligned matrices

bool trained_name(const std::string& name, const model_options& options) {
  return options.training &&
         std::any_of(options.trainable.begin(), options.trainable.end(), [&](const std::string& glob) { return glob_match(glob, name); });
}

/// A block's tensors, those that one product reads together.
std::vector<std::vector<const tensor_spec*>> groups_of(const block_spec& block) {
  static const std::vector<std::vector<std::string>> together = {
      {"self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight"},
      {"self_attn.q_proj.bias", "self_attn.k_proj.bias", "self_attn.v_proj.bias"},
      {"mlp.gate_proj.weight", "mlp.up_proj.weight"},
      {"mlp.gate_proj.bias", "mlp.up_proj.bias"}};
  std::vector<std::vector<const tensor_spec*>> groups(together.size());
  for (const auto& tensor : block.tensors) {
    std::size_t g = 0;
    while (g < together.size() && std::none_of(together[g].begin(), together[g].end(),
                                               [&](const std::string& suffix) { return tensor.name == block.prefix + suffix; }))
      ++g;
    if (g == together.size())
      groups.push_back({&tensor});
    else
      groups[g].push_back(&tensor);
  }
  return groups;
}

} // namespace

device_weights::device_weights(const std::vector<block_spec>& layout, dtype type, const model_options& options, int rank, int ranks)
    : type_(type), rank_(rank), ranks_(ranks) {
  for (const auto& block : layout)
    for (const auto& group : groups_of(block))
      lay_out(group, options);
  require_memory(n_values_ * size_of(type) + n_grads_ * sizeof(float), "the model's weights and gradients",
                 "use bfloat16, train fewer tensors (model.trainable), or --device cpu");
  values_ = device_buffer(n_values_ * size_of(type));
  grads_ = device_buffer(n_grads_ * sizeof(float));
  for (const auto& block : layout)
    for (const auto& tensor : block.tensors)
      add_parameter(tensor, options);
}

std::int64_t device_weights::place::numel() const {
  std::int64_t n = 1;
  for (const auto size : shape)
    n *= size;
  return n;
}

device_weights::place device_weights::part_of(const tensor_spec& tensor) const {
  const shard_range range = shard_of(tensor, rank_, ranks_);
  place p;
  p.shape = tensor.shape;
  p.shape[std::size_t(range.dim)] = range.end - range.begin;
  p.dim = range.dim;
  p.begin = range.begin;
  for (int other = 0; other < ranks_; ++other)
    p.replicas += other != rank_ && shard_of(tensor, other, ranks_).begin == range.begin;
  return p;
}

void device_weights::lay_out(const std::vector<const tensor_spec*>& group, const model_options& options) {
  const bool trained = std::any_of(group.begin(), group.end(), [&](const tensor_spec* t) { return trained_name(t->name, options); });
  for (const auto* tensor : group) {
    place p = part_of(*tensor);
    p.at = n_values_, p.grad_at = n_grads_, p.has_grad = trained;
    n_values_ += std::size_t(p.numel());
    n_grads_ += trained ? std::size_t(p.numel()) : 0;
    places_[tensor->name] = std::move(p);
  }
  n_values_ = (n_values_ + alignment - 1) / alignment * alignment;
  n_grads_ = (n_grads_ + alignment - 1) / alignment * alignment;
}

// Zeroed pages are taken as they are written.
std::byte* device_weights::host(std::size_t bytes) {
  memory_.emplace_back(std::calloc(std::max<std::size_t>(bytes, 1), 1));
  if (!memory_.back())
    throw error{errc::failed, "model: " + std::to_string(bytes) + " bytes of host memory for a tensor are not to be had"};
  return static_cast<std::byte*>(memory_.back().get());
}

// Zeroed; `often`: pinned, for copies at the bus's rate.
std::byte* device_weights::host_to_copy(std::size_t bytes, bool often) {
  if (!often)
    return host(bytes);
  pinned_.emplace_back(std::max<std::size_t>(bytes, 1));
  std::memset(pinned_.back().data(), 0, bytes);
  return static_cast<std::byte*>(pinned_.back().data());
}

void device_weights::add_parameter(const tensor_spec& tensor, const model_options& options) {
  parameter p;
  const place& part = places_.at(tensor.name);
  const auto n = std::size_t(part.numel());
  p.name = tensor.name;
  p.shape = part.shape;
  p.global_shape = tensor.shape;
  p.dim = part.dim;
  p.begin = part.begin;
  p.copy = rank_ % part.replicas != 0;
  p.trainable = trained_name(tensor.name, options);
  p.value = {host_to_copy(n * size_of(type_), p.trainable), n * size_of(type_)};
  p.device_value = static_cast<std::byte*>(values_.data()) + part.at * size_of(type_);
  if (p.trainable) {
    p.master = {reinterpret_cast<float*>(type_ == dtype::f32 ? p.value.data() : host(n * sizeof(float))), n};
    p.grad = {reinterpret_cast<float*>(host_to_copy(n * sizeof(float), true)), n};
  }
  parameters_.push_back(std::move(p));
}

stacked device_weights::find(const block_spec& block, const std::vector<std::string>& suffixes) const {
  stacked found;
  for (const auto& suffix : suffixes) {
    const auto it = places_.find(block.prefix + suffix);
    if (it == places_.end())
      continue;
    const place& p = it->second;
    if (!found.value) {
      found.value = static_cast<std::byte*>(values_.data()) + p.at * size_of(type_);
      found.grad = p.has_grad ? static_cast<float*>(grads_.data()) + p.grad_at : nullptr;
    }
    found.rows += p.shape[0];
    found.columns = p.shape.size() > 1 ? p.shape[1] : 1;
    found.parts.push_back({p.shape[0], p.replicas});
  }
  return found;
}

bool device_weights::trained(const block_spec& block) const {
  return std::any_of(block.tensors.begin(), block.tensors.end(), [&](const tensor_spec& t) { return places_.at(t.name).has_grad; });
}

void device_weights::upload(std::span<const std::size_t> indices, stream where) {
  const auto one = [&](const parameter& p) { copy_async(p.device_value, p.value.data(), p.value.size(), where); };
  if (indices.empty())
    std::for_each(parameters_.begin(), parameters_.end(), one);
  for (const auto i : indices)
    one(parameters_.at(i));
  synchronize(where);
}

void device_weights::zero_grads(stream where) {
  if (grads_.size() > 0)
    fill_zero(grads_.data(), grads_.size(), where);
  for (const auto& p : parameters_)
    std::memset(p.grad.data(), 0, p.grad.size_bytes());
  synchronize(where);
}

void device_weights::download_grads(stream where) {
  for (const auto& p : parameters_)
    if (p.trainable)
      copy_async(p.grad.data(), static_cast<float*>(grads_.data()) + places_.at(p.name).grad_at, p.grad.size_bytes(), where);
  synchronize(where);
}

} // namespace troupe::cuda
