#pragma once
#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>

namespace troupe {

/// What one more row costs, learnt from the passes that ran: nothing while reading the weights decides, 1 / rows once
/// arithmetic does. One thread.
class row_cost {
public:
  /// A decoding pass of so many rows took so long.
  void add(std::int64_t rows, double seconds) {
    for (auto& s : sizes_)
      s.weight *= remembered;
    auto& s = sizes_[size_of(rows)];
    s.weight += 1;
    s.rows += (double(rows) - s.rows) / std::min(s.weight, averaged);
    s.seconds += (seconds - s.seconds) / std::min(s.weight, averaged);
  }
  /// The part of a pass of `rows` rows that a further one adds, where it adds most among the sizes that were met.
  double at(std::int64_t rows) const {
    const auto& base = sizes_[size_of(rows)];
    double most = 0, weight = 0;
    for (std::size_t i = size_of(rows) + 1; i < sizes_.size() && base.weight > 0; ++i)
      if (const auto& s = sizes_[i]; s.weight > 0) {
        most = std::max(most, (s.seconds - base.seconds) / (s.rows - base.rows) / base.seconds);
        weight += s.weight;
      }
    return (weight * most + doubt * expected) / (weight + doubt);
  }

private:
  static constexpr double remembered = 0.99;          // of what earlier passes weigh: what seemed dear is tried again
  static constexpr double averaged = 8;               // passes
  static constexpr double expected = 0.05, doubt = 2; // before anything was met, and how many passes that counts as
  struct size {
    double weight = 0, rows = 0, seconds = 0;
  };
  // By powers of two.
  static std::size_t size_of(std::int64_t rows) { return std::min<std::size_t>(std::bit_width(std::uint64_t(rows)) - 1, 11); }
  std::array<size, 12> sizes_;
};

} // namespace troupe
