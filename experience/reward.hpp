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
  std::string_view text;               // decoded without special tokens
  std::string_view answer;
  finish_reason finish;
};

/// A reward. Called from one thread at a time; may throw; must be deterministic for a run to be.
class reward_function {
public:
  virtual ~reward_function() = default;
  virtual double operator()(const reward_input& in) const = 0;
};

/// The table of built-in rewards: "last_number", "exact_match". Throws errc::bad_config listing the known names.
std::unique_ptr<reward_function> make_reward(const reward_section& section);
std::vector<std::string> reward_names();

/// The last number in a text as a canonical decimal string (commas between digits dropped), or empty when there is none.
std::string last_number(std::string_view text);
/// Whether two decimal strings denote the same number, exactly ("7" = "7.0" = "007").
bool same_number(std::string_view a, std::string_view b);

} // namespace troupe
