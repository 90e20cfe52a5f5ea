#include "model/layout.hpp"
#include "core/error.hpp"
#include <algorithm>

namespace troupe {

namespace {

constexpr double cost_keys = 1024; // keys a token attends to, in `cost`

tensor_spec replicated(std::string name, std::int64_t size) {
  tensor_spec t;
  t.name = std::move(name);
  t.shape = {size};
  return t;
}

tensor_spec matrix(std::string name, std::int64_t rows, std::int64_t columns, shard_rule shard, std::int64_t unit = 1) {
  tensor_spec t;
  t.name = std::move(name);
  t.shape = {rows, columns};
  t.shard = shard;
  t.unit = unit;
  t.linear = true;
  return t;
}

// A projection's bias, shared among ranks as the rows of its matrix.
tensor_spec bias_of(const tensor_spec& matrix) {
  tensor_spec t = matrix;
  t.name.replace(t.name.size() - 6, 6, "bias");
  t.shape = {matrix.shape[0]};
  t.linear = false;
  if (matrix.shard == shard_rule::columns) { // added once, after the sum over ranks
    t.shard = shard_rule::none;
    t.unit = 1;
  }
  return t;
}

tensor_spec vocabulary(std::string name, std::int64_t vocab, std::int64_t hidden, bool linear) {
  tensor_spec t = matrix(std::move(name), vocab, hidden, shard_rule::rows);
  t.uneven = true;
  t.linear = linear;
  return t;
}

double linear_cost(const std::vector<tensor_spec>& tensors) {
  double cost = 0;
  for (const auto& t : tensors)
    cost += t.linear ? double(t.numel()) : 0;
  return cost;
}

block_spec embedding(const model_config& cfg) {
  block_spec b;
  b.kind = block_kind::embedding;
  b.prefix = "model.embed_tokens.";
  b.out = cfg.layer.hidden;
  b.layer = cfg.layer;
  b.tensors = {vocabulary(b.prefix + "weight", cfg.vocab_size, cfg.layer.hidden, false)};
  return b;
}

block_spec decoder(std::string prefix, const layer_config& l, std::int64_t source_layer) {
  block_spec b;
  b.prefix = std::move(prefix);
  b.in = b.out = l.hidden;
  b.layer = l;
  b.source_layer = source_layer;
  const std::string attention = b.prefix + "self_attn.", mlp = b.prefix + "mlp.";
  const std::int64_t q = l.n_heads * l.head_dim, kv = l.n_kv_heads * l.head_dim;
  tensor_spec k = matrix(attention + "k_proj.weight", kv, l.hidden, shard_rule::rows, l.head_dim), v = k;
  k.replicate = v.replicate = true;
  v.name = attention + "v_proj.weight";
  const auto add = [&](tensor_spec t, bool bias = false) {
    b.tensors.push_back(std::move(t));
    if (bias)
      b.tensors.push_back(bias_of(b.tensors.back()));
  };
  add(replicated(b.prefix + "input_layernorm.weight", l.hidden));
  add(matrix(attention + "q_proj.weight", q, l.hidden, shard_rule::rows, l.head_dim), l.qkv_bias);
  add(k, l.qkv_bias);
  add(v, l.qkv_bias);
  add(matrix(attention + "o_proj.weight", l.hidden, q, shard_rule::columns, l.head_dim), l.o_bias);
  if (l.qk_norm) {
    add(replicated(attention + "q_norm.weight", l.head_dim));
    add(replicated(attention + "k_norm.weight", l.head_dim));
  }
  add(replicated(b.prefix + "post_attention_layernorm.weight", l.hidden));
  add(matrix(mlp + "gate_proj.weight", l.intermediate, l.hidden, shard_rule::rows), l.mlp_bias);
  add(matrix(mlp + "up_proj.weight", l.intermediate, l.hidden, shard_rule::rows), l.mlp_bias);
  add(matrix(mlp + "down_proj.weight", l.hidden, l.intermediate, shard_rule::columns), l.mlp_bias);
  b.cost = linear_cost(b.tensors) + 2 * (l.window > 0 ? std::min(cost_keys, double(l.window)) : cost_keys) * double(q);
  return b;
}

layer_config without_window(layer_config layer) {
  layer.window = 0;
  return layer;
}

block_spec adapter(const model_config& cfg) {
  block_spec b;
  b.kind = block_kind::adapter;
  b.prefix = "model.adapter.";
  b.in = cfg.layer.hidden;
  b.out = cfg.last_layer().hidden;
  b.layer = cfg.last_layer();
  b.relu = cfg.split->mlp;
  b.tensors = {matrix(b.prefix + "linear1.weight", b.out, b.in, shard_rule::rows),
               matrix(b.prefix + "linear2.weight", b.out, b.out, shard_rule::columns)};
  b.cost = linear_cost(b.tensors);
  return b;
}

block_spec head(const model_config& cfg) {
  block_spec b;
  b.layer = cfg.last_layer();
  b.in = b.layer.hidden;
  b.tensors = {replicated("model.norm.weight", b.in)};
  switch (cfg.head) {
  case head_kind::lm:
    b.kind = block_kind::lm_head;
    b.out = cfg.vocab_size;
    b.tied = cfg.tie_word_embeddings;
    b.cost = double(cfg.vocab_size) * double(b.in);
    if (!b.tied)
      b.tensors.push_back(vocabulary("lm_head.weight", cfg.vocab_size, b.in, true));
    return b;
  case head_kind::none:
    b.kind = block_kind::norm;
    b.out = b.in;
    return b;
  case head_kind::value:
  case head_kind::reward:
    break;
  }
  b.kind = cfg.head == head_kind::value ? block_kind::value_head : block_kind::reward_head;
  b.out = 1;
  b.tensors.push_back(matrix("score.weight", 1, b.in, shard_rule::none));
  b.cost = double(b.in);
  if (cfg.head == head_kind::value) {
    b.tensors.push_back(replicated("score.bias", 1));
    b.tensors.back().optional = true;
  }
  return b;
}

} // namespace

std::uint64_t tensor_spec::numel() const {
  std::uint64_t n = 1;
  for (const auto size : shape)
    n *= std::uint64_t(size);
  return n;
}

shard_range shard_of(const tensor_spec& tensor, std::int64_t rank, std::int64_t tp) {
  const int dim = tensor.shard == shard_rule::columns ? 1 : 0;
  const std::int64_t size = tensor.shape[std::size_t(dim)], unit = tensor.unit, units = size / unit;
  if (tensor.shard == shard_rule::none)
    return {dim, 0, size};
  if (tensor.replicate && units < tp && tp % units == 0) {
    const std::int64_t held = rank * units / tp;
    return {dim, held * unit, (held + 1) * unit};
  }
  if (!tensor.uneven && units % tp != 0)
    throw error{errc::bad_config, "tensor_parallel_size = " + std::to_string(tp) + ": tensor " + tensor.name + " has " +
                                      std::to_string(units) +
                                      (unit > 1   ? " heads"
                                       : dim == 0 ? " rows"
                                                  : " columns") +
                                      ", which that many ranks cannot share"};
  const std::int64_t each = (units + tp - 1) / tp;
  if ((tp - 1) * each >= units)
    throw error{errc::bad_config, "tensor_parallel_size = " + std::to_string(tp) + ": tensor " + tensor.name + " has " +
                                      std::to_string(units) + " rows, " + std::to_string(each) +
                                      " a rank, and the last rank would have none"};
  return {dim, std::min(rank * each, units) * unit, std::min((rank + 1) * each, units) * unit};
}

std::vector<std::int64_t> shard_shape(const tensor_spec& tensor, std::int64_t rank, std::int64_t tp) {
  auto shape = tensor.shape;
  const auto part = shard_of(tensor, rank, tp);
  shape[std::size_t(part.dim)] = part.end - part.begin;
  return shape;
}

const char* name_of(block_kind kind) {
  constexpr const char* names[] = {"embedding", "layer", "adapter", "norm", "norm and head", "norm and value head", "norm and reward head"};
  return names[std::size_t(kind)];
}

std::vector<block_spec> layout_of(const model_config& cfg) {
  std::vector<block_spec> blocks = {embedding(cfg)};
  const auto layers = [&](const std::string& prefix, const layer_config& layer, std::int64_t n, std::int64_t first) {
    for (std::int64_t i = 0; i < n; ++i)
      blocks.push_back(decoder(prefix + std::to_string(i) + ".", layer, first + i));
  };
  if (cfg.split) {
    layers("model.layers_8b.", cfg.layer, cfg.split->n_layers_8, 0);
    blocks.push_back(adapter(cfg));
    layers("model.layers_70b.", cfg.split->layer_70, cfg.split->n_layers_70, cfg.split->whole_70 - cfg.split->n_layers_70);
  } else {
    layers("model.layers.", cfg.layer, cfg.n_layers, 0);
    for (std::size_t i = 0; i < cfg.windowed.size(); ++i)
      if (!cfg.windowed[i])
        blocks[i + 1] = decoder("model.layers." + std::to_string(i) + ".", without_window(cfg.layer), std::int64_t(i));
  }
  blocks.push_back(head(cfg));
  return blocks;
}

std::vector<tensor_spec> tensors_of(const model_config& cfg) {
  std::vector<tensor_spec> all;
  for (auto& block : layout_of(cfg))
    for (auto& tensor : block.tensors)
      all.push_back(std::move(tensor));
  return all;
}

} // namespace troupe
