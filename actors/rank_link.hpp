#pragma once
#include "actors/protocol.hpp"
#include <atomic>
#include <memory>

namespace troupe {

/// Lives as long as a process that is one rank of several, and ends it: with status 0 when the run lets it go, with 1 when
/// another rank (any other reason; `kill` no actor hears of) or the run is gone, whatever the process is at. Passes `rank_peers` on to
/// `waiting`. failing: set by a process that is about to end by its own error, which is then left to do so.
rank_actor::behavior_type rank_link(rank_actor::pointer self, const coordinator_actor& coordinator, const caf::strong_actor_ptr& waiting,
                                    const std::shared_ptr<std::atomic<bool>>& failing);

} // namespace troupe
