#include "cli/report.hpp"
#include "cli/report_page.hpp"
#include "core/error.hpp"
#include "core/files.hpp"
#include <algorithm>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace fs = std::filesystem;

namespace troupe {
namespace {

using json = nlohmann::ordered_json;

constexpr std::size_t most_rows = 48; // samples shown of a step

/// One JSON object a line; the last line may be half written by a run under way.
json read_rows(const fs::path& file, std::size_t most) {
  json rows = json::array();
  std::string damage;
  for_each_line(file, [&](std::size_t number, std::string_view line) {
    if (!damage.empty())
      throw error(errc::bad_input, damage);
    if (rows.size() >= most)
      return;
    json row = json::parse(line, nullptr, false);
    if (row.is_object())
      rows.push_back(std::move(row));
    else
      damage = file.string() + ":" + std::to_string(number) + ": not a JSON object; the file is damaged";
  });
  return rows;
}

/// The samples' files, by step.
std::vector<fs::path> rollout_files(const fs::path& run_dir) {
  std::vector<fs::path> files;
  const fs::path dir = run_dir / "rollouts";
  if (!fs::is_directory(dir))
    return files;
  for (const auto& entry : fs::directory_iterator(dir)) {
    const std::string name = entry.path().filename().string();
    if (name.starts_with("step-") && name.ends_with(".jsonl"))
      files.push_back(entry.path());
  }
  std::sort(files.begin(), files.end());
  return files;
}

json samples_of(const fs::path& file) {
  json shown = json::array(), step = nullptr;
  for (const auto& row : read_rows(file, most_rows)) {
    json kept;
    for (const char* key : {"index", "text", "answer", "reward", "advantage", "finish_reason"})
      kept[key] = row.contains(key) ? row[key] : json(nullptr);
    step = row.contains("step") ? row["step"] : step;
    shown.push_back(std::move(kept));
  }
  return {{"step", step}, {"rows", shown}};
}

/// JSON that can stand inside a script element: no "</script>" and no comment's beginning.
std::string for_html(const json& data) {
  std::string out;
  for (const char c : data.dump(-1, ' ', false, json::error_handler_t::replace))
    if (c == '<')
      out += "\\u003c";
    else
      out += c;
  return out;
}

} // namespace

void write_report(const fs::path& run_dir) {
  json data;
  data["name"] = (run_dir.has_filename() ? run_dir : run_dir.parent_path()).filename().string();
  data["metrics"] = is_there(run_dir / "metrics.jsonl") ? read_rows(run_dir / "metrics.jsonl", ~std::size_t{0}) : json::array();
  data["samples"] = json::array();
  const auto files = rollout_files(run_dir);
  if (!files.empty())
    data["samples"].push_back(samples_of(files.back()));
  if (files.size() > 1)
    data["samples"].push_back(samples_of(files.front()));
  data["config"] = is_there(run_dir / "config.toml") ? json(read_file(run_dir / "config.toml")) : json(nullptr);
  write_file(run_dir / "report.html", std::string(report_page_begin) + for_html(data) + std::string(report_page_end));
}

} // namespace troupe
