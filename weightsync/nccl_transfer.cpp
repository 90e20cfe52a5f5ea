#include "weightsync/nccl_transfer.hpp"
#include <string>

namespace troupe {
namespace {

constexpr std::uint64_t bucket_bytes = std::uint64_t{256} << 20; // a wait costs a hundredth of the time that these take
constexpr std::size_t bucket_tensors = 64;

} // namespace

std::vector<std::size_t> entries_of(const manifest& m, bool everything) {
  std::vector<std::size_t> out;
  for (std::size_t i = 0; i < m.entries.size(); ++i)
    if (everything || m.entries[i].trainable)
      out.push_back(i);
  return out;
}

void broadcast_values(cuda::nccl_rank& ranks, const manifest& m, std::span<const std::size_t> entries, std::span<void* const> values,
                      cuda::stream where) {
  for (std::size_t begin = 0; begin < entries.size();) {
    std::size_t end = begin;
    for (std::uint64_t bytes = 0; end < entries.size() && end - begin < bucket_tensors && bytes < bucket_bytes; ++end)
      bytes += m.entries[entries[end]].n_bytes;
    const std::string what = "tensor " + m.entries[entries[begin]].name +
                             (end - begin > 1 ? " and " + std::to_string(end - begin - 1) + " more" : std::string());
    ranks.group(what, [&] {
      for (std::size_t i = begin; i < end; ++i)
        if (const std::size_t bytes = m.entries[entries[i]].n_bytes; bytes > 0)
          ranks.broadcast(values[entries[i]], bytes, 0, where, what);
    });
    ranks.wait(where, what);
    begin = end;
  }
}

std::vector<void*> device_values(causal_lm& model) {
  std::vector<void*> out;
  for (const parameter& p : model.parameters())
    if (!p.copy)
      out.push_back(p.device_value);
  return out;
}

} // namespace troupe
