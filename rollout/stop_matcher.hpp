#pragma once
#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

namespace troupe {

/// Finds the first stop string in text that comes in pieces; each piece is searched once. One thread.
class stop_matcher {
public:
  explicit stop_matcher(std::vector<std::string> stops);
  /// Appends a piece -> whether the text now holds a stop string. counts: false when none may end in this piece.
  bool add(std::string_view piece, bool counts = true);
  /// Offset of the first stop string in the whole text, or npos.
  std::size_t position() const { return position_; }

private:
  std::vector<std::string> stops_;
  std::size_t longest_ = 0;
  std::string tail_;            // the end of the text that a match may begin in
  std::size_t tail_offset_ = 0; // of tail_ in the text
  std::size_t position_ = std::string::npos;
};

} // namespace troupe
