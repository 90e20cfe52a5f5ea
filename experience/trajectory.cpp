#include "experience/trajectory.hpp"
#include "core/binary.hpp"

namespace troupe {
namespace {

constexpr std::uint32_t group_magic = 0x52544754;  // "TGTR"
constexpr std::uint32_t scored_magic = 0x43534754; // "TGSC"
constexpr std::uint32_t format = 1;
constexpr std::size_t token_bytes = 4 + 4 + 8;                 // id, log-probability, version
constexpr std::size_t sample_bytes = 1 + 4;                    // of an empty sample
constexpr std::size_t group_bytes = 4 + 4 + 1 + 8 + 8 + 4 + 4; // of an empty group
constexpr std::size_t scored_bytes = group_bytes + 4 * 4;

void put_version(byte_writer& out, weights_version v) {
  out.put(v.incarnation);
  out.put(v.step);
}

weights_version get_version(byte_reader& in) {
  const auto incarnation = in.get<std::uint32_t>();
  return {incarnation, in.get<std::uint32_t>()};
}

void put_sample(byte_writer& out, const sample& s) {
  if (s.logprobs.size() != s.output_ids.size() || s.versions.size() != s.output_ids.size())
    throw error(errc::bad_shape, "a sample of " + std::to_string(s.output_ids.size()) + " tokens has " + std::to_string(s.logprobs.size()) +
                                     " log-probabilities and " + std::to_string(s.versions.size()) + " versions");
  out.put(std::uint8_t(s.finish));
  out.put(std::uint32_t(s.output_ids.size()));
  for (std::size_t i = 0; i < s.output_ids.size(); ++i) {
    out.put(s.output_ids[i]);
    out.put(s.logprobs[i]);
    put_version(out, s.versions[i]);
  }
}

sample get_sample(byte_reader& in) {
  sample s;
  const auto finish = in.get<std::uint8_t>();
  if (finish > std::uint8_t(finish_reason::abort))
    in.fail("finish reason " + std::to_string(finish) + " is not known");
  s.finish = finish_reason(finish);
  const std::uint32_t n = in.get_count(token_bytes);
  s.output_ids.reserve(n);
  s.logprobs.reserve(n);
  s.versions.reserve(n);
  for (std::uint32_t i = 0; i < n; ++i) {
    s.output_ids.push_back(in.get<std::int32_t>());
    s.logprobs.push_back(in.get<float>());
    s.versions.push_back(get_version(in));
  }
  return s;
}

void put_group(byte_writer& out, const trajectory_group& g) {
  out.put(g.key.step);
  out.put(g.key.index);
  out.put(std::uint8_t(g.key.validation));
  put_version(out, g.version);
  out.put(g.source);
  out.put_array(std::span<const std::int32_t>(g.prompt_ids));
  out.put(std::uint32_t(g.samples.size()));
  for (const sample& s : g.samples)
    put_sample(out, s);
}

trajectory_group get_group(byte_reader& in) {
  trajectory_group g;
  g.key.step = in.get<std::uint32_t>();
  g.key.index = in.get<std::uint32_t>();
  const auto validation = in.get<std::uint8_t>();
  if (validation > 1)
    in.fail("the validation flag is " + std::to_string(validation));
  g.key.validation = validation == 1;
  g.version = get_version(in);
  g.source = in.get<std::uint64_t>();
  g.prompt_ids = in.get_array<std::int32_t>();
  const std::uint32_t n = in.get_count(sample_bytes);
  g.samples.reserve(n);
  for (std::uint32_t i = 0; i < n; ++i)
    g.samples.push_back(get_sample(in));
  return g;
}

void get_header(byte_reader& in, std::uint32_t magic) {
  if (in.get<std::uint32_t>() != magic)
    in.fail("not such a message");
  if (const auto v = in.get<std::uint32_t>(); v != format)
    in.fail("format " + std::to_string(v) + ", this program reads " + std::to_string(format));
}

// Later stations may not have filled a column yet; a filled one has a value a sample.
bool whole_column(std::size_t n, const scored_group& g) { return n == 0 || n == g.group.samples.size(); }

bool whole_columns(const scored_group& g) {
  return whole_column(g.texts.size(), g) && whole_column(g.rewards.size(), g) && whole_column(g.advantages.size(), g);
}

void put_scored(byte_writer& out, const scored_group& g) {
  if (!whole_columns(g))
    throw error(errc::bad_shape, "a group of " + std::to_string(g.group.samples.size()) + " samples has " + std::to_string(g.texts.size()) +
                                     " texts, " + std::to_string(g.rewards.size()) + " rewards and " + std::to_string(g.advantages.size()) +
                                     " advantages");
  put_group(out, g.group);
  out.put_string(g.answer);
  out.put(std::uint32_t(g.texts.size()));
  for (const std::string& text : g.texts)
    out.put_string(text);
  out.put_array(std::span<const double>(g.rewards));
  out.put_array(std::span<const double>(g.advantages));
}

scored_group get_scored(byte_reader& in) {
  scored_group g;
  g.group = get_group(in);
  g.answer = in.get_string();
  const std::uint32_t n = in.get_count(4);
  g.texts.reserve(n);
  for (std::uint32_t i = 0; i < n; ++i)
    g.texts.push_back(in.get_string());
  g.rewards = in.get_array<double>();
  g.advantages = in.get_array<double>();
  if (!whole_columns(g))
    in.fail("texts, rewards or advantages are not one a sample");
  return g;
}

} // namespace

std::string_view name_of(finish_reason r) {
  switch (r) {
  case finish_reason::stop:
    return "stop";
  case finish_reason::length:
    return "length";
  case finish_reason::abort:
    return "abort";
  }
  throw error(errc::bad_input, "finish reason " + std::to_string(int(r)) + " is not known");
}

std::string pack_group(const trajectory_group& group) {
  byte_writer out;
  out.put(group_magic);
  out.put(format);
  put_group(out, group);
  return out.take();
}

trajectory_group unpack_group(std::string_view bytes) {
  byte_reader in(bytes, "trajectory");
  get_header(in, group_magic);
  trajectory_group group = get_group(in);
  in.finish();
  return group;
}

std::string pack_scored(const std::vector<scored_group>& groups) {
  byte_writer out;
  out.put(scored_magic);
  out.put(format);
  out.put(std::uint32_t(groups.size()));
  for (const scored_group& g : groups)
    put_scored(out, g);
  return out.take();
}

std::vector<scored_group> unpack_scored(std::string_view bytes) {
  byte_reader in(bytes, "scored trajectories");
  get_header(in, scored_magic);
  const std::uint32_t n = in.get_count(scored_bytes);
  std::vector<scored_group> groups;
  for (std::uint32_t i = 0; i < n; ++i)
    groups.push_back(get_scored(in));
  in.finish();
  return groups;
}

} // namespace troupe
