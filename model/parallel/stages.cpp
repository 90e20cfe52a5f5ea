#include "model/parallel/stages.hpp"
#include "core/error.hpp"
#include <algorithm>
#include <limits>
#include <string>

namespace troupe {

std::vector<std::size_t> stage_cuts(const std::vector<block_spec>& blocks, int stages) {
  const std::size_t n = blocks.size(), k = std::size_t(stages);
  if (stages < 1 || k > n)
    throw error{errc::bad_config, "pipeline_parallel_size = " + std::to_string(stages) + ": the model has " + std::to_string(n) +
                                      " blocks, a stage needs one"};
  std::vector<double> upto(n + 1, 0); // cost of the first i blocks
  for (std::size_t i = 0; i < n; ++i)
    upto[i + 1] = upto[i] + blocks[i].cost;
  // worst[s][i]: the dearest stage when the first i blocks are cut into s stages; from[s][i]: where the last of them begins.
  const double never = std::numeric_limits<double>::infinity();
  std::vector<std::vector<double>> worst(k + 1, std::vector<double>(n + 1, never));
  std::vector<std::vector<std::size_t>> from(k + 1, std::vector<std::size_t>(n + 1, 0));
  worst[0][0] = 0;
  for (std::size_t s = 1; s <= k; ++s)
    for (std::size_t i = s; i <= n; ++i)
      for (std::size_t j = s - 1; j < i; ++j) {
        const double cost = std::max(worst[s - 1][j], upto[i] - upto[j]);
        if (cost < worst[s][i]) {
          worst[s][i] = cost;
          from[s][i] = j;
        }
      }
  std::vector<std::size_t> cuts(k + 1, n);
  for (std::size_t s = k; s > 0; --s)
    cuts[s - 1] = from[s][cuts[s]];
  return cuts;
}

} // namespace troupe
