#include "experience/records.hpp"
#include "core/error.hpp"
#include "core/files.hpp"
#include "experience/json_lines.hpp"
#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <limits>

namespace troupe {
namespace {

using json = nlohmann::ordered_json;

/// Spells a number for JSON: a float with 9 significant digits (which give its bits back), a double in the shortest form that does.
/// A reader takes "-0" for the integer 0.
template <class... Format>
void append_real(std::string& out, Format... value) {
  char text[32];
  const std::string_view spelt(text, std::size_t(std::to_chars(text, text + sizeof text, value...).ptr - text));
  out += spelt == "-0" ? "-0.0" : spelt;
}
void append(std::string& out, float value) { append_real(out, value, std::chars_format::general, 9); }
void append(std::string& out, double value) { append_real(out, value); }
void append(std::string& out, std::int32_t value) { out += std::to_string(value); }
void append(std::string& out, const weights_version& version) { out += std::to_string(version.step); }

template <class T>
void append(std::string& out, const std::vector<T>& values) {
  out += '[';
  for (std::size_t i = 0; i < values.size(); ++i) {
    if (i > 0)
      out += ", ";
    append(out, values[i]);
  }
  out += ']';
}

std::string quoted(const std::string& text) { return json(text).dump(-1, ' ', false, json::error_handler_t::replace); }

void append_versions(std::string& out, const trajectory_group& group, const sample& s) {
  const weights_version first = s.versions.empty() ? group.version : s.versions.front();
  if (std::all_of(s.versions.begin(), s.versions.end(), [&](weights_version v) { return v.step == first.step; }))
    append(out, first);
  else
    append(out, s.versions);
}

void check_finite(const scored_group& g, std::size_t i) {
  bool finite = std::isfinite(g.rewards[i]) && (g.advantages.empty() || std::isfinite(g.advantages[i]));
  for (float p : g.group.samples[i].logprobs)
    finite = finite && std::isfinite(p);
  if (!finite)
    throw error(errc::failed, "step " + std::to_string(g.group.key.step) + ", index " + std::to_string(g.group.key.index) + ", sample " +
                                  std::to_string(i) + ": a reward, advantage or log-probability is not finite; the sample is not recorded");
}

void append_line(std::string& out, std::int64_t step, const scored_group& g, std::size_t i) {
  check_finite(g, i);
  const sample& s = g.group.samples[i];
  out += "{\"step\": " + std::to_string(step) + ", \"index\": " + std::to_string(g.group.key.index) + ", \"sample\": " + std::to_string(i) +
         ", \"source\": " + std::to_string(g.group.source) + ", \"input_ids\": ";
  append(out, g.group.prompt_ids);
  out += ", \"output_ids\": ";
  append(out, s.output_ids);
  out += ", \"logprobs\": ";
  append(out, s.logprobs);
  out += ", \"text\": " + quoted(g.texts[i]) + ", \"answer\": " + quoted(g.answer) + ", \"reward\": ";
  append(out, g.rewards[i]);
  if (!g.advantages.empty()) {
    out += ", \"advantage\": ";
    append(out, g.advantages[i]);
  }
  out += ", \"weights_version\": ";
  append_versions(out, g.group, s);
  out += ", \"finish_reason\": \"" + std::string(name_of(s.finish)) + "\"}\n";
}

template <class T>
T integer(const json_line& line, const char* key, const json& value) {
  if (value.is_number_unsigned()) {
    const auto n = value.get<std::uint64_t>();
    if (n <= std::uint64_t(std::numeric_limits<T>::max()))
      return T(n);
  } else if (value.is_number_integer() && std::numeric_limits<T>::is_signed) {
    const auto n = value.get<std::int64_t>();
    if (n >= std::int64_t(std::numeric_limits<T>::min()))
      return T(n);
  }
  line.fail(std::string("\"") + key + "\" must be a number of " + std::to_string(sizeof(T) * 8) + " bits, found " + value.dump());
}

template <class T>
T real(const json_line& line, const char* key, const json& value) {
  if (!value.is_number() || !std::isfinite(value.get<T>()))
    line.fail("\"" + std::string(key) + "\" must be a finite number, found " + value.dump());
  return value.get<T>();
}

const json& array(const json_line& line, const char* key) {
  const json& value = line.at(key);
  if (!value.is_array())
    line.fail(std::string("\"") + key + "\" must be a list, found " + value.type_name());
  return value;
}

std::vector<std::int32_t> ids(const json_line& line, const char* key) {
  std::vector<std::int32_t> out;
  for (const json& value : array(line, key))
    out.push_back(integer<std::int32_t>(line, key, value));
  return out;
}

const std::string& text(const json_line& line, const char* key) {
  const json& value = line.at(key);
  if (!value.is_string())
    line.fail(std::string("\"") + key + "\" must be a string, found " + value.type_name());
  return value.get_ref<const std::string&>();
}

finish_reason finish(const json_line& line) {
  const std::string& name = text(line, "finish_reason");
  for (finish_reason r : {finish_reason::stop, finish_reason::length, finish_reason::abort})
    if (name == name_of(r))
      return r;
  line.fail("\"finish_reason\" must be stop, length or abort, found \"" + name + "\"");
}

sample read_sample(const json_line& line) {
  sample s;
  s.output_ids = ids(line, "output_ids");
  for (const json& value : array(line, "logprobs"))
    s.logprobs.push_back(real<float>(line, "logprobs", value));
  const json& version = line.at("weights_version");
  if (version.is_array())
    for (const json& value : version)
      s.versions.push_back({0, integer<std::uint32_t>(line, "weights_version", value)});
  else
    s.versions.assign(s.output_ids.size(), {0, integer<std::uint32_t>(line, "weights_version", version)});
  if (s.logprobs.size() != s.output_ids.size() || s.versions.size() != s.output_ids.size())
    line.fail(std::to_string(s.output_ids.size()) + " output_ids, " + std::to_string(s.logprobs.size()) + " logprobs and " +
              std::to_string(s.versions.size()) + " versions; one a token is expected");
  s.finish = finish(line);
  return s;
}

/// The group that a line belongs to, without samples.
scored_group read_group(const json_line& line, std::int64_t step) {
  if (integer<std::int64_t>(line, "step", line.at("step")) != step)
    line.fail("\"step\" is " + line.at("step").dump() + ", the file's name says " + std::to_string(step));
  scored_group g;
  g.group.key = {std::uint32_t(step), integer<std::uint32_t>(line, "index", line.at("index")), false};
  g.group.source = integer<std::uint64_t>(line, "source", line.at("source"));
  g.group.prompt_ids = ids(line, "input_ids");
  g.answer = text(line, "answer");
  return g;
}

void add_sample(const json_line& line, scored_group& g) {
  if (const auto n = integer<std::uint32_t>(line, "sample", line.at("sample")); n != g.group.samples.size())
    line.fail("sample " + std::to_string(n) + " of index " + std::to_string(g.group.key.index) + " where sample " +
              std::to_string(g.group.samples.size()) + " is expected");
  sample s = read_sample(line);
  weights_version oldest = {0, s.versions.empty() ? integer<std::uint32_t>(line, "weights_version", line.at("weights_version"))
                                                  : s.versions[0].step};
  for (weights_version v : s.versions)
    oldest = std::min(oldest, v);
  g.group.version = g.group.samples.empty() ? oldest : std::min(g.group.version, oldest);
  g.group.samples.push_back(std::move(s));
  g.texts.push_back(text(line, "text"));
  g.rewards.push_back(real<double>(line, "reward", line.at("reward")));
  if (line.value.contains("advantage"))
    g.advantages.push_back(real<double>(line, "advantage", line.at("advantage")));
  if (!g.advantages.empty() && g.advantages.size() != g.rewards.size())
    line.fail("\"advantage\" must stand on every line of a group or on none");
}

} // namespace

std::filesystem::path rollouts_file(const std::filesystem::path& run_dir, std::int64_t step) {
  char name[40];
  std::snprintf(name, sizeof name, "step-%06lld.jsonl", static_cast<long long>(step));
  return run_dir / "rollouts" / name;
}

void write_rollouts(const std::filesystem::path& run_dir, std::int64_t step, const std::vector<scored_group>& groups) {
  std::string out;
  for (const scored_group& g : groups) {
    const std::size_t n = g.group.samples.size();
    if (g.texts.size() != n || g.rewards.size() != n || (!g.advantages.empty() && g.advantages.size() != n))
      throw error(errc::bad_shape, "step " + std::to_string(step) + ", index " + std::to_string(g.group.key.index) + ": " +
                                       std::to_string(n) + " samples, " + std::to_string(g.texts.size()) + " texts, " +
                                       std::to_string(g.rewards.size()) + " rewards, " + std::to_string(g.advantages.size()) +
                                       " advantages");
    for (std::size_t i = 0; i < n; ++i)
      append_line(out, step, g, i);
  }
  const auto file = rollouts_file(run_dir, step);
  std::error_code failed;
  std::filesystem::create_directories(file.parent_path(), failed);
  if (failed)
    throw error(errc::io, file.parent_path().string() + ": cannot be made: " + write_failure(failed.value()));
  write_file(file, out);
}

std::vector<scored_group> read_rollouts(const std::filesystem::path& run_dir, std::int64_t step) {
  std::vector<scored_group> groups;
  for_each_json_line(rollouts_file(run_dir, step), [&](const json_line& line) {
    scored_group g = read_group(line, step);
    if (groups.empty() || groups.back().group.key.index < g.group.key.index)
      groups.push_back(std::move(g));
    else if (groups.back().group.key.index > g.group.key.index)
      line.fail("\"index\" is below the line before's; lines are in the order of index");
    else if (const scored_group& last = groups.back();
             last.answer != g.answer || last.group.source != g.group.source || last.group.prompt_ids != g.group.prompt_ids)
      line.fail("source, input_ids and answer differ from the line before, of the same index");
    add_sample(line, groups.back());
  });
  return groups;
}

} // namespace troupe
