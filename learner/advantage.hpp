#pragma once
#include "core/config.hpp"
#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace troupe {

/// One group's rewards and response lengths -> one advantage a sample. In float64; pure.
/// Throws errc::bad_config when the estimator is unknown, listing the known ones.
std::vector<double> group_advantages(const algorithm_section& algorithm, std::span<const double> rewards,
                                     std::span<const std::int64_t> lengths);
std::vector<std::string> group_estimators();

} // namespace troupe
