#pragma once
#include <fstream>
#include <nlohmann/json.hpp>

namespace troupe {

/// tests/reference/learner.json, made by learner_dump.py with PyTorch.
inline const nlohmann::json& learner_reference() {
  static const nlohmann::json all = nlohmann::json::parse(std::ifstream(TROUPE_SOURCE_DIR "/tests/reference/learner.json"));
  return all;
}

} // namespace troupe
