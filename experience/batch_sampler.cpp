#include "core/error.hpp"
#include "core/random.hpp"
#include "experience/dataset.hpp"
#include <numeric>

namespace troupe {
namespace {

/// Uniform in [0, bound): draws until one falls below the largest multiple of bound, so that no row is favoured.
std::uint64_t draw_below(std::uint64_t bound, std::uint64_t seed, std::uint64_t epoch, std::uint64_t i) {
  const std::uint64_t excess = (~std::uint64_t{0} % bound + 1) % bound; // 2^64 mod bound
  draw_key key{seed, draw::shuffle, std::uint32_t(epoch), std::uint32_t(i >> 32), 0, std::uint32_t(i)};
  for (;; ++key.sample) {
    const auto bits = draw_bits(key);
    const std::uint64_t value = std::uint64_t{bits[1]} << 32 | bits[0];
    if (value <= ~std::uint64_t{0} - excess)
      return value % bound;
  }
}

} // namespace

batch_sampler::batch_sampler(std::uint64_t n_rows, std::uint64_t batch_size, std::uint64_t seed, bool shuffle)
    : n_rows_(n_rows), batch_size_(batch_size), seed_(seed), shuffle_(shuffle) {
  if (batch_size == 0)
    throw error(errc::bad_config, "data.train_batch_size is 0; it must be at least 1");
  if (batch_size > n_rows)
    throw error(errc::bad_config, "data.train_batch_size is " + std::to_string(batch_size) + ", data.train_files have " +
                                      std::to_string(n_rows) + " rows; lower it or add rows");
}

std::vector<std::uint64_t> batch_sampler::rows(std::uint64_t step) const {
  if (step == 0)
    throw error(errc::bad_input, "steps count from 1");
  const std::uint64_t epoch = (step - 1) / steps_per_epoch();
  if (epoch != epoch_) {
    if (epoch >> 28)
      throw error(errc::unsupported,
                  "step " + std::to_string(step) + " is in epoch " + std::to_string(epoch) + "; at most 2^28 are supported");
    order_.resize(n_rows_);
    std::iota(order_.begin(), order_.end(), 0);
    for (std::uint64_t i = n_rows_; shuffle_ && i-- > 1;)
      std::swap(order_[i], order_[draw_below(i + 1, seed_, epoch, i)]);
    epoch_ = epoch;
  }
  const auto begin = order_.begin() + std::ptrdiff_t((step - 1) % steps_per_epoch() * batch_size_);
  return {begin, begin + std::ptrdiff_t(batch_size_)};
}

} // namespace troupe
