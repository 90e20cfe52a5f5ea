#define XXH_INLINE_ALL
#include "learner/checkpoint.hpp"
#include "core/error.hpp"
#include "core/files.hpp"
#include "learner/trainee.hpp"
#include <algorithm>
#include <cstdio>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <vector>
#include <xxhash.h>

namespace troupe {

namespace fs = std::filesystem;
using json = nlohmann::json;

namespace {

constexpr const char* seal_name = "checksums.json";

std::string hex(std::uint64_t value) {
  char text[17];
  std::snprintf(text, sizeof text, "%016llx", static_cast<unsigned long long>(value));
  return text;
}

struct file_sum {
  std::uint64_t bytes = 0;
  std::string xxh64;
};

file_sum sum_of(const fs::path& file) {
  std::ifstream in(file, std::ios::binary);
  XXH64_state_t state;
  XXH64_reset(&state, 0);
  std::vector<char> buffer(std::size_t{1} << 20);
  file_sum out;
  while (in) {
    in.read(buffer.data(), std::streamsize(buffer.size()));
    XXH64_update(&state, buffer.data(), std::size_t(in.gcount()));
    out.bytes += std::uint64_t(in.gcount());
  }
  if (!in.eof())
    throw error{errc::bad_input, file.string() + ": cannot be read"};
  out.xxh64 = hex(XXH64_digest(&state));
  return out;
}

// The one spelling of a seal, so that a changed byte of the file itself shows too.
std::string spell(const json& files) {
  const auto body = files.dump();
  return json{{"files", files}, {"xxh64", hex(XXH64(body.data(), body.size(), 0))}}.dump(1) + "\n";
}

bool well_formed(const json& seal) {
  if (!seal.is_object() || !seal.contains("files") || !seal["files"].is_object())
    return false;
  for (const auto& f : seal["files"])
    if (!f.is_object() || !f.contains("bytes") || !f["bytes"].is_number_unsigned() || !f.contains("xxh64") || !f["xxh64"].is_string() ||
        f.size() != 2)
      return false;
  return true;
}

json read_seal(const fs::path& dir) {
  const auto file = dir / seal_name;
  if (!is_there(file))
    throw error{errc::bad_input, file.string() + ": missing, so the checkpoint is not whole"};
  const auto text = read_file(file);
  const auto seal = json::parse(text, nullptr, false);
  if (!well_formed(seal) || spell(seal["files"]) != text)
    throw error{errc::bad_input, file.string() + ": damaged, its own checksum disagrees"};
  return seal["files"];
}

} // namespace

fs::path checkpoint_path(const fs::path& run_dir, std::int64_t step) {
  char name[32];
  std::snprintf(name, sizeof name, "step-%06lld", static_cast<long long>(step));
  return run_dir / "checkpoints" / name;
}

std::optional<std::int64_t> checkpoint_step(const fs::path& dir) {
  const auto name = dir.filename().string();
  if (name.rfind("step-", 0) != 0 || name.size() < 11 || name.size() > 20 || name.find_first_not_of("0123456789", 5) != std::string::npos)
    return std::nullopt;
  const std::int64_t step = std::stoll(name.substr(5));
  return checkpoint_path("", step).filename() == name ? std::optional(step) : std::nullopt;
}

void seal_directory(const fs::path& dir) {
  json files = json::object();
  for (const auto& entry : fs::directory_iterator(dir)) {
    const auto name = entry.path().filename().string();
    if (name == seal_name || !entry.is_regular_file())
      continue;
    const auto sum = sum_of(entry.path());
    files[name] = {{"bytes", sum.bytes}, {"xxh64", sum.xxh64}};
  }
  write_file(dir / seal_name, spell(files));
}

void verify_sealed(const fs::path& dir) {
  const auto files = read_seal(dir);
  for (const auto& [name, wanted] : files.items()) {
    const auto file = dir / name;
    if (!fs::is_regular_file(file))
      throw error{errc::bad_input, file.string() + ": missing"};
    if (const auto size = fs::file_size(file); size != wanted.at("bytes"))
      throw error{errc::bad_input,
                  file.string() + ": damaged, " + std::to_string(size) + " bytes where " + wanted.at("bytes").dump() + " were written"};
    if (const auto sum = sum_of(file); sum.xxh64 != wanted.at("xxh64"))
      throw error{errc::bad_input,
                  file.string() + ": damaged, checksum " + sum.xxh64 + " where " + wanted.at("xxh64").get<std::string>() + " was written"};
  }
}

std::optional<fs::path> newest_whole_checkpoint(const fs::path& run_dir, const std::function<void(std::string)>& log) {
  std::map<std::int64_t, fs::path, std::greater<>> found;
  std::error_code absent;
  for (const auto& entry : fs::directory_iterator(run_dir / "checkpoints", absent))
    if (const auto step = checkpoint_step(entry.path()); step && entry.is_directory())
      found[*step] = entry.path();
  for (const auto& [step, dir] : found) {
    try {
      verify_sealed(dir);
      return dir;
    } catch (const error& e) {
      log("checkpoint " + dir.string() + " is passed over: " + e.what());
    }
  }
  return std::nullopt;
}

fs::path write_checkpoint(const fs::path& run_dir, const trainee& from, const fs::path& tokenizer_source,
                          const std::function<void(const fs::path&)>& add) {
  const auto target = checkpoint_path(run_dir, from.steps_done());
  fs::path replaced = target;
  replaced += ".replaced";
  try {
    fs::create_directories(target.parent_path());
    fs::remove_all(replaced);
    if (is_there(target))
      fs::rename(target, replaced);
    {
      staged_directory staged(target);
      if (add)
        add(staged.path());
      from.save(staged.path(), tokenizer_source); // seals all of it
      staged.commit();
    }
    fs::remove_all(replaced);
  } catch (const fs::filesystem_error& e) {
    throw error{errc::io, "cannot write checkpoint " + target.string() + ": " + write_failure(e.code().value())};
  }
  return target;
}

} // namespace troupe
