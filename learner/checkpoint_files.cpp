#include "learner/checkpoint_files.hpp"
#include "core/error.hpp"
#include "core/files.hpp"
#include "learner/checkpoint.hpp"
#include "model/weights/export.hpp"
#include "model/weights/safetensors.hpp"
#include <algorithm>
#include <cstring>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <string>

namespace troupe {

namespace fs = std::filesystem;
using json = nlohmann::json;

namespace {

constexpr int format_version = 1;

std::string spell_shape(std::span<const std::int64_t> shape) {
  std::string text = "[";
  for (auto d : shape)
    text += (text.size() > 1 ? ", " : "") + std::to_string(d);
  return text + "]";
}

bool is_float(dtype type) { return type == dtype::f32 || type == dtype::bf16 || type == dtype::f16 || type == dtype::f64; }

// Whether a stored tensor is the one that the model holds, rounded once to its compute type.
bool holds(const causal_lm& model, const parameter& p, const tensor_info& stored) {
  constexpr std::size_t piece = 1 << 16;
  const std::size_t from = size_of(stored.type), to = size_of(model.compute_type());
  std::vector<float> wide(piece);
  std::vector<std::byte> rounded(piece * to);
  auto* bytes = reinterpret_cast<std::byte*>(wide.data());
  for (std::size_t begin = 0; begin < p.numel(); begin += piece) {
    const std::size_t count = std::min(piece, p.numel() - begin);
    convert_elements(stored.type, stored.bytes.data() + begin * from, dtype::f32, bytes, count);
    convert_elements(dtype::f32, bytes, model.compute_type(), rounded.data(), count);
    if (std::memcmp(rounded.data(), p.value.data() + begin * to, count * to) != 0)
      return false;
  }
  return true;
}

// A frozen tensor goes back as it came, byte for byte: the model holds it in its compute type alone.
tensor_to_make frozen(const causal_lm& model, const parameter& p, const safetensors_reader& source) {
  const tensor_info* stored = source.find(p.name);
  if (!stored) // one that a file may lack: zero
    return {p.name, dtype::f32, p.shape, [](std::span<std::byte> out) { std::fill(out.begin(), out.end(), std::byte{}); }};
  return {p.name, stored->type, p.shape, [&model, &p, &source, stored](std::span<std::byte> out) {
            if (stored->n_bytes != out.size() || !holds(model, p, *stored))
              throw error{errc::failed, source.path().string() + ": tensor " + p.name +
                                            ", which is not trained, is another than when it was loaded; model.path must stay as it is"};
            std::copy(stored->bytes.begin(), stored->bytes.end(), out.begin());
            source.release(*stored);
          }};
}

void write_weights(const fs::path& dir, const fs::path& source, causal_lm& model) {
  const auto params = model.parameters();
  std::optional<safetensors_reader> original;
  if (std::any_of(params.begin(), params.end(), [](const auto& p) { return !p.trainable; }))
    original.emplace(source);
  std::vector<tensor_to_make> tensors;
  for (const auto& p : params)
    if (p.trainable)
      tensors.push_back({p.name, dtype::f32, p.shape, [&p](std::span<std::byte> out) {
                           const auto bytes = std::as_bytes(p.master);
                           std::copy(bytes.begin(), bytes.end(), out.begin());
                         }});
    else
      tensors.push_back(frozen(model, p, *original));
  write_safetensors(dir, tensors);
}

void write_moments(const fs::path& dir, std::span<const parameter> params, std::span<const moments> state) {
  std::vector<tensor_to_write> tensors;
  std::size_t i = 0;
  for (const auto& p : params) {
    if (!p.trainable)
      continue;
    tensors.push_back({"exp_avg." + p.name, dtype::f32, p.shape, std::as_bytes(std::span(state[i].first))});
    tensors.push_back({"exp_avg_sq." + p.name, dtype::f32, p.shape, std::as_bytes(std::span(state[i].second))});
    ++i;
  }
  write_safetensors_file(dir / "optimizer.safetensors", tensors);
}

const tensor_info& expect_tensor(const safetensors_reader& reader, const std::string& name, const parameter& p, bool any_float) {
  const auto* info = reader.find(name);
  if (!info)
    throw error{errc::bad_input,
                reader.path().string() + ": tensor " + name + " is missing; is the checkpoint of another model or `model.trainable`?"};
  if (info->shape != p.shape)
    throw error{errc::bad_input, reader.path().string() + ": tensor " + name + " has shape " + spell_shape(info->shape) +
                                     ", the model's is " + spell_shape(p.shape)};
  if (info->type != dtype::f32 && !(any_float && is_float(info->type)))
    throw error{errc::bad_input,
                reader.path().string() + ": tensor " + name + " is " + std::string(name_of(info->type)) + " where F32 was written"};
  return *info;
}

void expect_no_other(const safetensors_reader& reader, const std::set<std::string>& known) {
  for (const auto& [name, info] : reader.tensors())
    if (!known.count(name))
      throw error{errc::bad_input, reader.path().string() + ": tensor " + name + " is none of this run's; is `model.trainable` another?"};
}

learner_counters read_counters(const fs::path& file) {
  const auto all = json::parse(read_file(file), nullptr, false);
  const auto number = [&](const char* key, std::int64_t largest) {
    if (!all.is_object() || !all.contains(key) || !all[key].is_number_unsigned() || all[key].get<std::uint64_t>() > std::uint64_t(largest))
      throw error{errc::bad_input, file.string() + ": key " + key + " must be a number from 0 to " + std::to_string(largest)};
    return all[key].get<std::int64_t>();
  };
  if (const auto format = number("format", 1 << 30); format != format_version)
    throw error{errc::bad_input,
                file.string() + ": format " + std::to_string(format) + ", this version reads " + std::to_string(format_version)};
  constexpr std::int64_t most = 0xffffffff;
  return {number("step", most), number("optimizer_steps", std::int64_t{1} << 53), std::uint32_t(number("incarnation", most))};
}

} // namespace

void write_learner_files(const fs::path& dir, const fs::path& source, causal_lm& model, dtype declared, std::span<const moments> state,
                         const learner_counters& counters) {
  write_weights(dir, source, model);
  write_moments(dir, model.parameters(), state);
  write_model_config(dir, model.config(), declared);
  copy_tokenizer_files(source, dir);
  const json all = {{"format", format_version},
                    {"step", counters.step},
                    {"optimizer_steps", counters.optimizer_steps},
                    {"incarnation", counters.incarnation}};
  write_file(dir / "learner.json", all.dump(1) + "\n");
  seal_directory(dir);
}

learner_counters read_learner_files(const fs::path& dir, causal_lm& model, std::span<moments> state) {
  verify_sealed(dir);
  const auto counters = read_counters(dir / "learner.json");
  const safetensors_reader weights(dir), optimizer(dir / "optimizer.safetensors");
  const auto params = model.parameters();
  std::set<std::string> weight_names, moment_names;
  for (const auto& p : params) {
    expect_tensor(weights, p.name, p, !p.trainable);
    weight_names.insert(p.name);
    if (!p.trainable)
      continue;
    for (const auto* prefix : {"exp_avg.", "exp_avg_sq."}) {
      expect_tensor(optimizer, prefix + p.name, p, false);
      moment_names.insert(prefix + p.name);
    }
  }
  expect_no_other(weights, weight_names);
  expect_no_other(optimizer, moment_names);
  for (const auto& p : params) {
    if (p.trainable)
      continue;
    const tensor_info& stored = *weights.find(p.name);
    if (!holds(model, p, stored))
      throw error{errc::bad_input, dir.string() + ": tensor " + p.name +
                                       ", which is not trained, is another than the model's; does model.path hold another model now?"};
    weights.release(stored);
  }

  const auto copy = [](const tensor_info& from, std::span<float> to) {
    convert_elements(from.type, from.bytes.data(), dtype::f32, std::as_writable_bytes(to).data(), to.size());
  };
  std::size_t i = 0;
  for (const auto& p : params) {
    if (!p.trainable)
      continue;
    copy(*weights.find(p.name), p.master);
    copy(*optimizer.find("exp_avg." + p.name), state[i].first);
    copy(*optimizer.find("exp_avg_sq." + p.name), state[i].second);
    ++i;
  }
  return counters;
}

} // namespace troupe
