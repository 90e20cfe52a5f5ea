#pragma once
#include "model/parallel/process_ranks.hpp"
#include "weightsync/channel.hpp"
#include <memory>
#include <string>

namespace troupe {

/// A source whose endpoint is that of all ranks of the mesh's first data-parallel row, each of which offers its part. Made by all
/// ranks; the first one's takes the others along. own: this rank's part. `ranks` must outlive it.
std::unique_ptr<weights_source> make_rank_source(process_ranks& ranks, std::shared_ptr<causal_lm> own, const std::string& secret);

/// Brings each rank its own part of a version. Made by all ranks.
class rank_fetcher {
public:
  rank_fetcher(process_ranks& ranks, std::shared_ptr<causal_lm> own, std::string secret);
  /// By the first rank, which takes the others along. Bytes of all ranks, the longest time.
  sync_result fetch(const std::string& endpoint, weights_version version, std::chrono::milliseconds deadline);

private:
  process_ranks& ranks_;
  const std::shared_ptr<causal_lm> own_;
  const std::string secret_;
  std::string endpoint_;
  std::unique_ptr<weights_sink> sink_;
};

/// The first rank's sink.
std::unique_ptr<weights_sink> make_rank_sink(std::shared_ptr<rank_fetcher> fetcher, const std::string& endpoint);

} // namespace troupe
