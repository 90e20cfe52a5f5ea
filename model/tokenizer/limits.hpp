#pragma once
#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

namespace troupe {

/// tokenizer.json's "truncation" and "padding", which the package applies to every text it encodes.
class length_limits {
public:
  length_limits() = default;
  /// n_added: how many ids the post-processor adds. Throws errc::bad_input.
  length_limits(const nlohmann::json& truncation, const nlohmann::json& padding, std::size_t n_added, const std::string& where);
  void truncate(std::vector<std::int32_t>& ids, bool leaves_room) const;
  void pad(std::vector<std::int32_t>& ids) const;

private:
  std::optional<std::size_t> max_length_;
  std::size_t n_added_ = 0, fixed_ = 0, multiple_ = 0; // 0: none
  bool truncate_left_ = false, pad_left_ = false;
  std::int32_t pad_id_ = 0;
};

} // namespace troupe
