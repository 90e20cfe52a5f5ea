#pragma once
#include "core/config.hpp"
#include "model/config.hpp"
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace troupe {

struct memory_part {
  std::string name;
  std::uint64_t bytes = 0;
};

/// What one rank holds at its peak.
struct rank_memory {
  std::string rank; // "learner 0", "rollout 0"
  std::vector<memory_part> parts;
  std::uint64_t total() const;
};

/// Bytes a rank, by part, from shapes alone. n_trainable: elements that are trained. teacher: of run.task = "distill".
/// Caches and activations are upper bounds: as many and as long sequences as the configuration allows.
std::vector<rank_memory> estimate_memory(const config& cfg, const model_config& model, std::uint64_t n_trainable,
                                         const std::optional<model_config>& teacher = std::nullopt);

/// This machine's memory in bytes, or its control group's limit where that is lower.
std::uint64_t machine_memory();

/// What the ranks on this machine lack in one line, or empty.
std::string memory_shortage(const config& cfg, const std::vector<rank_memory>& ranks, std::uint64_t available);

/// "1.2 GiB".
std::string spelled_bytes(std::uint64_t bytes);

} // namespace troupe
