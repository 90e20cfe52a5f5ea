#pragma once
#include "core/config.hpp"
#include "experience/trajectory.hpp"
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace troupe {

/// What a reward sees of one sample.
struct reward_input {
  std::string_view text; // decoded without special tokens
  std::string_view answer;
  finish_reason finish;
};

/// A reward. Called from one thread at a time; may throw; must be deterministic for a run to be.
class reward_function {
public:
  virtual ~reward_function() = default;
  virtual double operator()(const reward_input& in) const = 0;
  /// Why no response can ever earn this answer's reward (e.g. "is not a number"); empty when one can.
  /// load_prompts asks it of every row.
  virtual std::string objection(std::string_view answer) const = 0;
};

/// The table of built-in rewards: "last_number", "exact_match". Throws errc::bad_config listing the known names.
std::unique_ptr<reward_function> make_reward(const reward_section& section);
std::vector<std::string> reward_names();

/// The last match of `-?[0-9]+(\.[0-9]+)?` in a text whose commas between digits are dropped; empty when there is none.
std::string last_number(std::string_view text);

/// Whether two decimal strings denote the same number, exactly ("7" = "7.0" = "007" = "0.7e1", "0" = "-0"); false when one is none.
/// A number: sign, digits with a point, exponent of at most 6 digits, as JSON or Python spell it. No floats are involved.
bool same_number(std::string_view a, std::string_view b);

/// Without white space at both ends, as Python's str.strip(): Unicode's White_Space and U+001C .. U+001F.
std::string_view strip(std::string_view text);

} // namespace troupe
