#include "learner/whole_state.hpp"
#include "model/parallel/process_ranks.hpp"
#include <array>

namespace troupe {

namespace {

constexpr std::uint64_t no_more = ~std::uint64_t{0};

} // namespace

whole_state::whole_state(causal_lm& model) : model_(model) {
  if (!model.ranks()) {
    for (const parameter& p : model.parameters())
      entries_.push_back({p.name, p.shape, p.trainable});
    return;
  }
  ranks_.emplace(model, model.ranks()->place());
  for (std::size_t i = 0; i < ranks_->size(); ++i)
    entries_.push_back({ranks_->spec(i).name, ranks_->spec(i).shape, false});
  mark_trainable();
}

// A rank knows it of its own stage's tensors.
void whole_state::mark_trainable() {
  const communicator& all = model_.ranks()->all();
  std::vector<std::uint8_t> own(size()), of_all(size() * std::size_t(all.size()));
  for (const parameter& p : model_.parameters())
    for (std::size_t i = 0; i < size(); ++i)
      if (p.trainable && entries_[i].name == p.name)
        own[i] = 1;
  model_.ranks()->all().all_gather(own.data(), of_all.data(), own.size(), "which tensors are trained");
  for (std::size_t i = 0; i < of_all.size(); ++i)
    entries_[i % size()].trainable |= of_all[i] != 0;
}

bool whole_state::leads() const { return !ranks_ || model_.ranks()->leads(); }

std::span<const float> whole_state::gather(std::size_t i, const part_of& part) {
  if (!ranks_)
    return part(model_.parameters()[i], i);
  ranks_->gather(i, part, buffer_);
  return leads() ? std::span<const float>(buffer_) : std::span<const float>();
}

std::span<const float> whole_state::order(std::size_t i, std::size_t which, std::span<const part_of> parts) {
  std::array<std::uint64_t, 2> wanted = {i, which};
  if (ranks_)
    model_.ranks()->all().broadcast(wanted.data(), sizeof wanted, 0, "the tensor that is wanted");
  return gather(i, parts[which]);
}

void whole_state::finish() {
  std::array<std::uint64_t, 2> wanted = {no_more, 0};
  if (ranks_)
    model_.ranks()->all().broadcast(wanted.data(), sizeof wanted, 0, "the tensor that is wanted");
}

void whole_state::follow(std::span<const part_of> parts) {
  for (std::array<std::uint64_t, 2> wanted{};;) {
    model_.ranks()->all().broadcast(wanted.data(), sizeof wanted, 0, "the tensor that is wanted");
    if (wanted[0] == no_more)
      return;
    gather(wanted[0], parts[wanted[1]]);
  }
}

} // namespace troupe
