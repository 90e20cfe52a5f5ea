#include "core/error.hpp"
#include "core/files.hpp"
#include "model/config.hpp"
#include "model/weights/convert.hpp"
#include "model/weights/export.hpp"
#include "model/weights/json.hpp"
#include "model/weights/tensor_check.hpp"
#include <algorithm>
#include <optional>

namespace troupe {

namespace fs = std::filesystem;

namespace {

constexpr std::string_view step_prefix = "step-";

/// The step of a directory named step-000040; nothing for other names.
std::optional<std::uint64_t> step_of(const fs::path& dir) {
  const auto name = dir.filename().string();
  const auto digits = std::string_view(name).substr(std::min(step_prefix.size(), name.size()));
  if (!name.starts_with(step_prefix) || digits.empty() || digits.size() > 18 ||
      digits.find_first_not_of("0123456789") != std::string_view::npos)
    return std::nullopt;
  return std::stoull(std::string(digits));
}

/// A run's checkpoints, newest first.
std::vector<fs::path> checkpoints_of(const fs::path& dir) {
  std::vector<std::pair<std::uint64_t, fs::path>> found;
  std::error_code failure;
  for (fs::directory_iterator entry(dir, failure), end; !failure && entry != end; entry.increment(failure))
    if (const auto step = step_of(entry->path()))
      found.emplace_back(*step, entry->path());
  if (failure)
    throw error(errc::bad_input, "cannot read " + dir.string() + ": " + failure.message());
  std::sort(found.rbegin(), found.rend());
  std::vector<fs::path> paths;
  for (auto& [step, path] : found)
    paths.push_back(std::move(path));
  return paths;
}

/// An open checkpoint: its configuration as written, and its tensors.
struct checkpoint {
  fs::path dir;
  model_config model;
  nlohmann::json config;
  safetensors_reader weights;
};

checkpoint open_checkpoint(const fs::path& dir) {
  const auto file = dir / "config.json";
  const auto text = read_model_file(file);
  auto model = parse_model_config(text, file.string());
  safetensors_reader weights(dir);
  check_tensors(weights, model);
  return {dir, std::move(model), parse_json_object(text, file.string()), std::move(weights)};
}

checkpoint find_checkpoint(const fs::path& source, std::vector<std::string>& passed_over) {
  if (!is_there(source))
    throw error(errc::bad_input, source.string() + " does not exist; a run's or a checkpoint's directory is wanted");
  const auto folder = source / "checkpoints";
  if (is_there(source / "config.json") || !is_there(folder))
    return open_checkpoint(source);
  for (const auto& dir : checkpoints_of(folder)) {
    try {
      return open_checkpoint(dir);
    } catch (const error& e) {
      passed_over.push_back("passed over " + dir.string() + ": " + e.what());
    }
  }
  throw error(errc::bad_input,
              folder.string() + " holds no whole checkpoint (step-NNNNNN)" + (passed_over.empty() ? "" : "; " + passed_over.front()));
}

bool is_float(dtype type) noexcept { return type == dtype::f32 || type == dtype::bf16 || type == dtype::f16 || type == dtype::f64; }

} // namespace

conversion convert_hf(const fs::path& source, const fs::path& target, dtype type) {
  conversion done;
  auto from = find_checkpoint(source, done.passed_over);
  done.source = from.dir;
  staged_directory staged(target);
  copy_tokenizer_files(from.dir, staged.path());
  if (from.model.split) // complete, whatever paths it was read through
    from.config.update(nlohmann::json::parse(to_config_json(from.model, type)));
  from.config["dtype"] = from.config["torch_dtype"] = type == dtype::f32 ? "float32" : "bfloat16";
  write_file(staged.path() / "config.json", from.config.dump(2) + "\n");
  write_modeling_file(staged.path(), from.model);
  std::vector<tensor_to_make> tensors;
  for (const auto& [name, info] : from.weights.tensors()) {
    const auto to = is_float(info.type) ? type : info.type;
    tensors.push_back({name, to, info.shape, [&info = info, to](std::span<std::byte> out) {
                         convert_elements(info.type, info.bytes.data(), to, out.data(), info.n_bytes / size_of(info.type));
                       }});
    done.parameters += info.n_bytes / size_of(info.type);
  }
  done.tensors = tensors.size();
  write_safetensors(staged.path(), tensors);
  staged.commit();
  return done;
}

} // namespace troupe
