#include "model/tokenizer/limits.hpp"
#include "core/error.hpp"
#include "model/tokenizer/part_json.hpp"
#include <limits>

namespace troupe {
namespace {

constexpr std::int64_t max_padded = 1 << 24; // more than any context
constexpr std::int64_t max_length = std::numeric_limits<std::int64_t>::max();

bool is_left(const nlohmann::json& part, const std::string& where) {
  if (!part.contains("direction"))
    return false;
  const auto direction = part_json::text(part, "direction", where);
  if (direction != "Left" && direction != "Right")
    throw error(errc::bad_input, where + ".direction \"" + direction + "\" is neither Left nor Right");
  return direction == "Left";
}

} // namespace

length_limits::length_limits(const nlohmann::json& truncation, const nlohmann::json& padding, std::size_t n_added, const std::string& where)
    : n_added_(n_added) {
  if (!truncation.is_null()) {
    const std::string place = where + ": truncation";
    if (!truncation.is_object())
      throw error(errc::bad_input, place + " must be an object or null");
    truncate_left_ = is_left(truncation, place);
    const auto strategy = truncation.contains("strategy") ? part_json::text(truncation, "strategy", place) : "LongestFirst";
    if (strategy != "LongestFirst" && strategy != "OnlyFirst")
      throw error(errc::unsupported, place + ".strategy " + strategy + " is not supported for a single text");
    max_length_ = static_cast<std::size_t>(part_json::count(truncation, "max_length", max_length, place));
    const auto stride = truncation.contains("stride") ? part_json::count(truncation, "stride", max_length, place) : 0;
    if (*max_length_ < n_added || (stride > 0 && static_cast<std::size_t>(stride) >= *max_length_ - n_added))
      throw error(errc::bad_input, place + ".max_length " + std::to_string(*max_length_) + " leaves no room beside " +
                                       std::to_string(n_added) + " special tokens and the stride");
  }
  if (padding.is_null())
    return;
  const std::string place = where + ": padding";
  if (!padding.is_object() || !padding.contains("strategy"))
    throw error(errc::bad_input, place + " must be null or an object with a strategy");
  pad_left_ = is_left(padding, place);
  const auto& strategy = padding["strategy"];
  if (strategy.is_object())
    fixed_ = static_cast<std::size_t>(part_json::count(strategy, "Fixed", max_padded, place + ".strategy"));
  else if (strategy != "BatchLongest")
    throw error(errc::bad_input, place + ".strategy must be \"BatchLongest\" or {\"Fixed\": n}");
  if (padding.contains("pad_to_multiple_of") && !padding["pad_to_multiple_of"].is_null())
    multiple_ = static_cast<std::size_t>(part_json::count(padding, "pad_to_multiple_of", max_padded, place));
  pad_id_ = static_cast<std::int32_t>(part_json::count(padding, "pad_id", max_padded, place));
}

void length_limits::truncate(std::vector<std::int32_t>& ids, bool leaves_room) const {
  if (!max_length_)
    return;
  const std::size_t keep = *max_length_ - (leaves_room ? n_added_ : 0);
  if (ids.size() <= keep)
    return;
  if (truncate_left_)
    ids.erase(ids.begin(), ids.end() - static_cast<std::ptrdiff_t>(keep));
  else
    ids.resize(keep);
}

void length_limits::pad(std::vector<std::int32_t>& ids) const {
  std::size_t want = fixed_ > 0 ? fixed_ : ids.size();
  if (multiple_ > 0)
    want = (want + multiple_ - 1) / multiple_ * multiple_;
  if (want > ids.size())
    ids.insert(pad_left_ ? ids.begin() : ids.end(), want - ids.size(), pad_id_);
}

} // namespace troupe
