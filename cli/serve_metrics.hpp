#pragma once
#include "rollout/request_desk.hpp"
#include <cstdint>
#include <map>
#include <string>
#include <utility>

namespace troupe {

/// Prometheus' text format. answers: HTTP answers by path and status.
std::string metrics_text(const engine_counts& counts, const std::map<std::pair<std::string, int>, std::uint64_t>& answers);

} // namespace troupe
