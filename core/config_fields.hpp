#pragma once
#include "core/config.hpp"
#include <array>
#include <cstdint>
#include <functional>
#include <limits>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

namespace troupe {

/// What stands on the right of a key. Integers are accepted where a number is wanted.
using config_value = std::variant<bool, std::int64_t, double, std::string, std::vector<std::string>, std::array<double, 2>,
                                  std::vector<std::int64_t>, std::map<std::int64_t, double>>;

/// One key of the configuration file: where it lives, what it may be and what it means. Reading, writing, comparing and
/// the manual's tables all come from the list of these.
struct config_field {
  std::string key;     // "learner.optim.lr"
  std::string meaning; // one line, for the manual
  std::function<config_value(const config&)> get;
  std::function<void(config&, const config_value&)> set;
  double min = -std::numeric_limits<double>::infinity(), max = std::numeric_limits<double>::infinity();
  bool above_min = false, below_max = false; // the bound itself is excluded
  bool may_be_empty = false;                 // of texts and lists
  bool any_text = false;                     // control characters too
  bool required = false;
  std::vector<std::string_view> choices; // of texts; empty: any
  std::vector<std::string> can;          // values, as TOML, that this version can do; empty: all
  std::string instead;                   // what this version does, where `can` needs a reason
};

/// Every key in the file's order.
const std::vector<config_field>& config_fields();

/// The field of a dotted key, or null.
const config_field* find_field(std::string_view key);

/// A key that belongs to troupe, but that this version lacks. `key` may end in ".*".
struct later_key {
  std::string_view key, instead;
};
std::span<const later_key> later_keys();

/// Says what a key of another system is called here ("TRL's; here it is rollout.n"), or is empty.
std::string foreign_key_hint(std::string_view key);

/// The known key that is nearest to a misspelt one.
std::string nearest_key(std::string_view key);

/// The nearest of some words.
std::string_view nearest_word(std::string_view word, std::span<const std::string_view> words);

/// A value in TOML's spelling; numbers round-trip.
std::string to_toml(const config_value& value);

/// The allowed values in words: "0 < value <= 1", "sync | one_step_off | async".
std::string range_of(const config_field& field);

} // namespace troupe
