#pragma once
#include "model/causal_lm.hpp"
#include "model/parallel/whole_tensors.hpp"
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

namespace troupe {

/// What a learner holds of each tensor (master, gradient, moments), whole and one tensor at a time, whether one process has it
/// or several share it. Made and called by all ranks alike; only the first one gets the values.
class whole_state {
public:
  using part_of = whole_tensors::part_of;

  explicit whole_state(causal_lm& model);
  std::size_t size() const { return entries_.size(); }
  const std::string& name(std::size_t i) const { return entries_[i].name; }
  const std::vector<std::int64_t>& shape(std::size_t i) const { return entries_[i].shape; }
  bool trainable(std::size_t i) const { return entries_[i].trainable; }
  bool leads() const;
  /// part: of one of this rank's parameters. Valid until the next call. Other ranks: an empty span.
  std::span<const float> gather(std::size_t i, const part_of& part);

  // Where only the first rank knows what is wanted next: it calls `order`, the others `follow` until it has called `finish`.
  std::span<const float> order(std::size_t i, std::size_t which, std::span<const part_of> parts);
  void finish();
  void follow(std::span<const part_of> parts);

private:
  struct entry {
    std::string name;
    std::vector<std::int64_t> shape;
    bool trainable = false;
  };
  void mark_trainable();
  causal_lm& model_;
  std::optional<whole_tensors> ranks_; // none: this process has it all
  std::vector<entry> entries_;
  std::vector<float> buffer_;
};

} // namespace troupe
