#pragma once
#include "model/config.hpp"
#include <cstdint>
#include <string>
#include <vector>

namespace troupe {

/// How tensor-parallel ranks share a tensor: all of it each, rows (dim 0) or columns (dim 1).
enum class shard_rule : std::uint8_t { none, rows, columns };

/// A tensor of a model, under its Hugging Face name.
struct tensor_spec {
  std::string name;
  std::vector<std::int64_t> shape;
  shard_rule shard = shard_rule::none;
  std::int64_t unit = 1;  // rows or columns that stay together: the head size for q, k, v and o
  bool uneven = false;    // the last ranks may hold less (vocabulary); else ranks must divide the units
  bool replicate = false; // with fewer units than ranks each unit is held by several (key/value heads)
  bool linear = false;    // multiplied by the GEMM
  bool optional = false;  // zero where a file lacks it
  std::uint64_t numel() const;
};

/// The part [begin, end) along dimension `dim` that a rank holds; everything when the tensor is not shared.
struct shard_range {
  int dim = 0;
  std::int64_t begin = 0, end = 0;
};

/// Throws errc::bad_config when tp ranks cannot share the tensor, naming it, its units and tp.
shard_range shard_of(const tensor_spec& tensor, std::int64_t rank, std::int64_t tp);
/// The tensor's shape on that rank.
std::vector<std::int64_t> shard_shape(const tensor_spec& tensor, std::int64_t rank, std::int64_t tp);

enum class block_kind : std::uint8_t { embedding, decoder, adapter, norm, lm_head, value_head, reward_head };
const char* name_of(block_kind kind);

/// One block of a model's chain. The last is a head (or the norm alone), with the final norm in front of it.
struct block_spec {
  block_kind kind = block_kind::decoder;
  std::string prefix;           // of its tensors: "model.layers_70b.3."; empty for a head
  std::int64_t in = 0, out = 0; // widths; an embedding's `in` is 0, a head's `out` the vocabulary or 1
  layer_config layer;           // decoder: its sizes; head: the layers' before it
  std::vector<tensor_spec> tensors;
  bool tied = false;              // lm_head: multiplies the embedding's table, which is not among `tensors`
  bool relu = false;              // adapter: between its projections
  std::int64_t source_layer = -1; // decoder: its index in the model it was taken from
  double cost = 0;                // multiply-adds a token, attention at 1024 keys included; pipeline stages are balanced by it
};

/// The blocks of a model in order, each with its tensors in the order of `parameters()`. The one place that knows names and shapes.
std::vector<block_spec> layout_of(const model_config& cfg);

/// All of its tensors, in order.
std::vector<tensor_spec> tensors_of(const model_config& cfg);

} // namespace troupe
