#pragma once
#include <compare>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace troupe {

/// A version of the weights. After a learner reloads a checkpoint the incarnation rises, and what is older is dropped.
struct weights_version {
  std::uint32_t incarnation = 0;
  std::uint32_t step = 0; // updates done
  auto operator<=>(const weights_version&) const = default;
};

enum class finish_reason : std::uint8_t { stop, length, abort };
std::string_view name_of(finish_reason r);

/// Which group of a run: fixed when it is dispatched, whoever makes it.
struct group_key {
  std::uint32_t step = 0;  // the update it is for, from 1; validation: the updates done before it
  std::uint32_t index = 0; // the prompt's place in the step
  bool validation = false;
  auto operator<=>(const group_key&) const = default;
};

/// One sample of a group as the rollout made it.
struct sample {
  std::vector<std::int32_t> output_ids;  // with the token that ended it
  std::vector<float> logprobs;           // [output_ids], under the policy sampled from (logits / temperature)
  std::vector<weights_version> versions; // [output_ids], of the weights that drew each token
  finish_reason finish = finish_reason::length;
  bool operator==(const sample&) const = default;
};

/// A prompt and its samples: the unit of dispatch, reward and advantage.
struct trajectory_group {
  group_key key;
  weights_version version;  // asked for when dispatched
  std::uint64_t source = 0; // row in the data, from 0, through all files in order
  std::vector<std::int32_t> prompt_ids;
  std::vector<sample> samples;
  bool operator==(const trajectory_group&) const = default;
};

/// A group with what the later stations know of it.
struct scored_group {
  trajectory_group group;
  std::string answer;
  std::vector<std::string> texts; // [samples], decoded without special tokens; these three: empty until known
  std::vector<double> rewards;    // [samples]
  std::vector<double> advantages; // [samples]
  bool operator==(const scored_group&) const = default;
};

/// Binary form for the wire (versioned, little endian). `unpack_*` throws errc::bad_input on anything malformed:
/// counts are checked against the bytes there are before anything is allocated. `pack_*` throws errc::bad_shape when columns disagree.
std::string pack_group(const trajectory_group& group);
trajectory_group unpack_group(std::string_view bytes);
std::string pack_scored(const std::vector<scored_group>& groups);
std::vector<scored_group> unpack_scored(std::string_view bytes);

} // namespace troupe
