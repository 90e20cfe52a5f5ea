#include "learner/checkpoint_files.hpp"
#include "core/error.hpp"
#include "core/files.hpp"
#include "learner/checkpoint.hpp"
#include "learner/whole_state.hpp"
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

// Where this rank's part of a stored tensor lies: each run of `count` elements, in the file's tensor and in the part.
template <class F>
void for_each_run(const tensor_info& stored, const parameter& p, const F& run) {
  constexpr std::size_t piece = 1 << 16;
  const std::size_t width = stored.shape.size() > 1 ? std::size_t(stored.shape[1]) : 1, begin = std::size_t(p.begin);
  const bool columns = p.dim == 1 && std::size_t(p.shape[1]) != width;
  const std::size_t runs = columns ? std::size_t(p.shape[0]) : 1, length = p.numel() / std::max<std::size_t>(1, runs);
  for (std::size_t r = 0; r < runs; ++r)
    for (std::size_t at = 0; at < length; at += piece)
      run((columns ? r * width + begin : begin * width) + at, r * length + at, std::min(piece, length - at));
}

// Whether a stored tensor is the one that the model holds its part of, rounded once to its compute type.
bool holds(const causal_lm& model, const parameter& p, const tensor_info& stored) {
  const std::size_t from = size_of(stored.type), to = size_of(model.compute_type());
  std::vector<float> wide;
  std::vector<std::byte> rounded;
  bool same = true;
  for_each_run(stored, p, [&](std::size_t in_file, std::size_t own, std::size_t count) {
    wide.resize(count);
    rounded.resize(count * to);
    auto* bytes = reinterpret_cast<std::byte*>(wide.data());
    convert_elements(stored.type, stored.bytes.data() + in_file * from, dtype::f32, bytes, count);
    convert_elements(dtype::f32, bytes, model.compute_type(), rounded.data(), count);
    same = same && std::memcmp(rounded.data(), p.value.data() + own * to, count * to) == 0;
  });
  return same;
}

// A part's tensor has the whole's shape.
std::span<const std::int64_t> shape_in_files(const parameter& p) { return p.global_shape.empty() ? p.shape : p.global_shape; }

bool same_shape(const tensor_info& stored, std::span<const std::int64_t> shape) {
  return std::equal(stored.shape.begin(), stored.shape.end(), shape.begin(), shape.end());
}

// Frozen tensors go back as they came, byte for byte: the model holds them in its compute type alone. Every rank looks at its parts.
void check_frozen(causal_lm& model, const fs::path& source) {
  const auto params = model.parameters();
  if (std::all_of(params.begin(), params.end(), [](const auto& p) { return p.trainable; }))
    return;
  const safetensors_reader files(source);
  for (const auto& p : params) {
    const tensor_info* stored = p.trainable ? nullptr : files.find(p.name);
    if (!stored)
      continue;
    if (!same_shape(*stored, shape_in_files(p)) || !holds(model, p, *stored))
      throw error{errc::failed, files.path().string() + ": tensor " + p.name +
                                    ", which is not trained, is another than when it was loaded; model.path must stay as it is"};
    files.release(*stored);
  }
}

// Where this process holds what is written, as `whole_state::order` numbers it.
enum part_number : std::size_t { master_part, first_moment, second_moment };

std::vector<whole_state::part_of> parts_of(std::span<const parameter> params, std::span<const moments> state) {
  std::vector<std::size_t> moment_of;
  std::size_t n = 0;
  for (const auto& p : params)
    moment_of.push_back(p.trainable ? n++ : state.size());
  return {[](const parameter& p, std::size_t) { return std::span<const float>(p.master); },
          [=](const parameter&, std::size_t i) { return std::span<const float>(state[moment_of[i]].first); },
          [=](const parameter&, std::size_t i) { return std::span<const float>(state[moment_of[i]].second); }};
}

tensor_to_make trained(whole_state& whole, std::size_t i, part_number which, const std::string& prefix,
                       std::span<const whole_state::part_of> parts) {
  return {prefix + whole.name(i), dtype::f32, whole.shape(i), [&whole, parts, which, i](std::span<std::byte> to) {
            const auto values = std::as_bytes(whole.order(i, which, parts));
            std::copy(values.begin(), values.end(), to.begin());
          }};
}

tensor_to_make frozen(const whole_state& whole, std::size_t i, const safetensors_reader& source) {
  const tensor_info* stored = source.find(whole.name(i));
  if (!stored) // one that a file may lack: zero
    return {whole.name(i), dtype::f32, whole.shape(i), [](std::span<std::byte> out) { std::fill(out.begin(), out.end(), std::byte{}); }};
  return {whole.name(i), stored->type, whole.shape(i), [&source, stored](std::span<std::byte> out) {
            std::copy(stored->bytes.begin(), stored->bytes.end(), out.begin());
            source.release(*stored);
          }};
}

void write_weights(const fs::path& dir, const fs::path& source, whole_state& whole, std::span<const whole_state::part_of> parts) {
  std::optional<safetensors_reader> original;
  std::vector<tensor_to_make> tensors;
  for (std::size_t i = 0; i < whole.size(); ++i) {
    if (!whole.trainable(i) && !original)
      original.emplace(source);
    tensors.push_back(whole.trainable(i) ? trained(whole, i, master_part, "", parts) : frozen(whole, i, *original));
  }
  write_safetensors(dir, tensors);
}

void write_moments(const fs::path& dir, whole_state& whole, std::span<const whole_state::part_of> parts) {
  std::vector<tensor_to_make> tensors;
  for (std::size_t i = 0; i < whole.size(); ++i) {
    if (!whole.trainable(i))
      continue;
    tensors.push_back(trained(whole, i, first_moment, "exp_avg.", parts));
    tensors.push_back(trained(whole, i, second_moment, "exp_avg_sq.", parts));
  }
  write_safetensors_file(dir / "optimizer.safetensors", tensors);
}

const tensor_info& expect_tensor(const safetensors_reader& reader, const std::string& name, const parameter& p, bool any_float) {
  const auto* info = reader.find(name);
  if (!info)
    throw error{errc::bad_input,
                reader.path().string() + ": tensor " + name + " is missing; is the checkpoint of another model or `model.trainable`?"};
  if (const auto shape = shape_in_files(p); !same_shape(*info, shape))
    throw error{errc::bad_input, reader.path().string() + ": tensor " + name + " has shape " + spell_shape(info->shape) +
                                     ", the model's is " + spell_shape(shape)};
  if (info->type != dtype::f32 && !(any_float && is_float(info->type)))
    throw error{errc::bad_input,
                reader.path().string() + ": tensor " + name + " is " + std::string(name_of(info->type)) + " where F32 was written"};
  return *info;
}

void copy_part(const tensor_info& stored, const parameter& p, std::span<float> to) {
  for_each_run(stored, p, [&](std::size_t in_file, std::size_t own, std::size_t count) {
    convert_elements(stored.type, stored.bytes.data() + in_file * size_of(stored.type), dtype::f32,
                     std::as_writable_bytes(to.subspan(own, count)).data(), count);
  });
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
  whole_state whole(model);
  const auto parts = parts_of(model.parameters(), state);
  check_frozen(model, source);
  if (!whole.leads())
    return whole.follow(parts);
  write_weights(dir, source, whole, parts);
  write_moments(dir, whole, parts);
  whole.finish();
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
  const whole_state whole(model);
  if (whole.leads())
    verify_sealed(dir);
  const auto counters = read_counters(dir / "learner.json");
  const safetensors_reader weights(dir), optimizer(dir / "optimizer.safetensors");
  const auto params = model.parameters();
  for (const auto& p : params) {
    expect_tensor(weights, p.name, p, !p.trainable);
    for (const auto* prefix : {"exp_avg.", "exp_avg_sq."})
      if (p.trainable)
        expect_tensor(optimizer, prefix + p.name, p, false);
  }
  std::set<std::string> weight_names, moment_names;
  for (std::size_t i = 0; i < whole.size(); ++i) {
    weight_names.insert(whole.name(i));
    if (whole.trainable(i))
      moment_names.insert({"exp_avg." + whole.name(i), "exp_avg_sq." + whole.name(i)});
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

  std::size_t i = 0;
  for (const auto& p : params) {
    if (!p.trainable)
      continue;
    copy_part(*weights.find(p.name), p, p.master);
    copy_part(*optimizer.find("exp_avg." + p.name), p, state[i].first);
    copy_part(*optimizer.find("exp_avg_sq." + p.name), p, state[i].second);
    ++i;
  }
  return counters;
}

} // namespace troupe
