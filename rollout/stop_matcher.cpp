#include "rollout/stop_matcher.hpp"
#include <algorithm>
#include <utility>

namespace troupe {

stop_matcher::stop_matcher(std::vector<std::string> stops) : stops_(std::move(stops)) {
  for (const auto& s : stops_)
    longest_ = std::max(longest_, s.size());
}

bool stop_matcher::add(std::string_view piece, bool counts) {
  if (position_ != std::string::npos || longest_ == 0)
    return position_ != std::string::npos;
  const std::size_t before = tail_.size();
  tail_ += piece;
  for (std::size_t i = 0; counts && i < stops_.size(); ++i) {
    const std::size_t reach = stops_[i].size() - 1; // it ends in the piece
    if (const auto at = tail_.find(stops_[i], before > reach ? before - reach : 0); at != std::string::npos)
      position_ = std::min(position_, tail_offset_ + at);
  }
  if (tail_.size() >= longest_) {
    const std::size_t drop = tail_.size() - (longest_ - 1);
    tail_.erase(0, drop);
    tail_offset_ += drop;
  }
  return position_ != std::string::npos;
}

} // namespace troupe
