#pragma once
#include "model/kernels/attention.hpp"
#include <initializer_list>
#include <vector>

/// Batches of whole sequences, without what attention's gradient does not look at.
namespace troupe::cuda::test {

/// Rows of a prompt, then of each response that continues it.
struct tree {
  int prompt;
  std::vector<int> responses;
};

struct forest {
  token_batch batch; // positions and segments
  kernels::key_rows keys;

  forest() = default;
  forest(const std::vector<tree>& trees) {
    for (const tree& t : trees) {
      const int prompt = add(-1, 0, t.prompt);
      for (const int n : t.responses)
        if (n > 0)
          add(prompt, t.prompt, n);
    }
  }
  forest(std::initializer_list<tree> trees) : forest(std::vector<tree>(trees)) {}

  /// A segment of n rows after the first n_before positions of an earlier one, or of none (-1). Returns its number.
  int add(int before, int n_before, int n) {
    std::vector<std::int32_t> rows;
    if (before >= 0)
      rows.assign(keys.of_segment[std::size_t(before)].begin(), keys.of_segment[std::size_t(before)].begin() + n_before);
    const auto begin = std::int32_t(batch.positions.size());
    for (int i = 0; i < n; ++i)
      rows.push_back(begin + i), batch.positions.push_back(n_before + i);
    batch.segments.push_back({begin, begin + n, n_before, {}});
    keys.of_segment.push_back(std::move(rows));
    return int(batch.segments.size()) - 1;
  }
  int n_rows() const { return int(batch.positions.size()); }
};

} // namespace troupe::cuda::test
