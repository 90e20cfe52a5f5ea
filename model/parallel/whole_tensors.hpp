#pragma once
#include "model/causal_lm.hpp"
#include "model/layout.hpp"
#include "model/parallel/communicator.hpp"
#include <functional>
#include <memory>
#include <vector>

namespace troupe {

/// The tensors of a model whose ranks hold parts, put together one at a time at the first rank. Called by all ranks alike.
class whole_tensors {
public:
  /// A rank's part of something that has a parameter's shape. index: of the parameter among the rank's.
  using part_of = std::function<std::span<const float>(const parameter& p, std::size_t index)>;

  /// model: this rank's parts, its own or with its other ranks behind it. It must outlive this.
  whole_tensors(causal_lm& model, const rank_context& ranks);
  std::size_t size() const { return tensors_.size(); }
  const tensor_spec& spec(std::size_t i) const { return tensors_[i].spec; }
  /// Tensor i, in the order of tensors_of. whole: filled at the first rank, else used as scratch.
  void gather(std::size_t i, const part_of& part, std::vector<float>& whole) const;

private:
  struct tensor {
    tensor_spec spec;
    int stage = 0;
  };
  void join(const tensor_spec& spec, std::span<const float> own, std::vector<float>& whole) const;
  void put(const tensor_spec& spec, int rank, const float* from, std::vector<float>& whole) const;
  std::span<const float> own_part(const std::string& name, const part_of& part) const;
  causal_lm& model_;
  const rank_context& ranks_;
  std::vector<tensor> tensors_;
};

} // namespace troupe
