#pragma once
#include "experience/trajectory.hpp"
#include <optional>
#include <string>

namespace troupe {

/// For messages: "weights version 12" or "weights version 12 of incarnation 1".
inline std::string text_of(weights_version v) {
  return "weights version " + std::to_string(v.step) + (v.incarnation ? " of incarnation " + std::to_string(v.incarnation) : "");
}

inline std::string published_text(const std::optional<weights_version>& v) {
  return v ? "it has " + text_of(*v) : "it offers none at the moment";
}

} // namespace troupe
