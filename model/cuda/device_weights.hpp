#pragma once
#include "model/causal_lm.hpp"
#include "model/kernels/cuda/memory.hpp"
#include "model/layout.hpp"
#include "model/registry.hpp"
#include <cstddef>
#include <cstdlib>
#include <memory>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

namespace troupe::cuda {

/// Tensors of a block that one product reads, stacked by rows: q, k, v; gate, up; or one alone. The device's memory.
struct stacked {
  /// One of the tensors: its rows, and how many consecutive ranks hold the same part of it.
  struct part {
    std::int64_t rows = 0;
    int replicas = 1;
  };
  void* value = nullptr; // [rows, columns] of the compute type; null: the model has no such tensor
  float* grad = nullptr; // the same shape; null: nothing of it is trained
  std::int64_t rows = 0, columns = 1;
  std::vector<part> parts;
};

/// A model's tensors on a GPU, or a tensor-parallel rank's parts of them, with the copies on the host that files, optimizer and weight sync
/// read and write. One thread.
class device_weights {
public:
  device_weights(const std::vector<block_spec>& layout, dtype type, const model_options& options, int rank = 0, int ranks = 1);
  std::span<parameter> parameters() { return parameters_; }
  /// The tensors of a block with these suffixes (those that there are, adjacent in memory).
  stacked find(const block_spec& block, const std::vector<std::string>& suffixes) const;
  /// The first row of the whole tensor that the rank holds.
  std::int64_t begin(const std::string& name) const { return places_.at(name).begin; }
  /// Whether a tensor of the block is trained.
  bool trained(const block_spec& block) const;
  /// Host values to the device. indices: of parameters; empty: all.
  void upload(std::span<const std::size_t> indices, stream where);
  /// Gradients: zeroed on both sides; the device's to the host's.
  void zero_grads(stream where);
  void download_grads(stream where);

private:
  struct free_memory {
    void operator()(void* p) const { std::free(p); }
  };
  using host_memory = std::unique_ptr<void, free_memory>;
  std::byte* host(std::size_t bytes);
  std::byte* host_to_copy(std::size_t bytes, bool often);
  struct place {
    std::size_t at = 0;      // element of values_
    std::size_t grad_at = 0; // element of grads_
    bool has_grad = false;
    std::vector<std::int64_t> shape; // of the rank's part
    int dim = 0, replicas = 1;
    std::int64_t begin = 0; // of the part, along dim
    std::int64_t numel() const;
  };
  place part_of(const tensor_spec& tensor) const;
  void lay_out(const std::vector<const tensor_spec*>& group, const model_options& options);
  void add_parameter(const tensor_spec& tensor, const model_options& options);

  dtype type_;
  int rank_, ranks_;
  std::size_t n_values_ = 0, n_grads_ = 0; // elements
  std::unordered_map<std::string, place> places_;
  std::vector<host_memory> memory_;
  std::vector<pinned_buffer> pinned_; // of what crosses at every update
  std::vector<parameter> parameters_;
  device_buffer values_, grads_;
};

} // namespace troupe::cuda
