#include "core/error.hpp"
#include "core/files.hpp"
#include "core/random.hpp"
#include "model/weights/convert.hpp"
#include "model/weights/export.hpp"
#include "model/weights/tensor_check.hpp"
#include <cmath>
#include <cstring>
#include <numbers>

namespace troupe {

namespace fs = std::filesystem;

namespace {

constexpr double new_weight_std = 0.02;

// A tensor that stands in one of the sources.
struct stored {
  const safetensors_reader* files;
  const tensor_info* info;
};

// What a split model is read from; every header is checked when this exists.
struct split_sources {
  model_config cfg;
  whole_models whole;
  safetensors_reader first, second;
  std::optional<safetensors_reader> adapter;
};

safetensors_reader open_model(const std::string& path, const std::string& key, const std::string& file, const model_config& whole) {
  if (path.empty())
    throw error(errc::bad_input, file + ": " + key + ": is missing; the weights are read from the directory that it names");
  std::error_code ignored;
  if (!fs::is_directory(path, ignored))
    throw error(errc::bad_input, file + ": " + key + ": \"" + path + "\" is not a directory; it must hold a Hugging Face model");
  safetensors_reader files(path);
  check_tensors(files, whole);
  check_tied_head(files, whole);
  return files;
}

std::string widths(const model_config& cfg) {
  return "the first model is " + std::to_string(cfg.layer.hidden) + " wide and the second " + std::to_string(cfg.last_layer().hidden);
}

// The two adapter tensors and nothing else.
safetensors_reader open_adapter(const model_config& cfg) {
  safetensors_reader files(cfg.split->adapter_path);
  std::size_t wanted = 0;
  for (const auto& block : layout_of(cfg))
    for (const auto& expected : block.tensors) {
      if (block.kind != block_kind::adapter)
        continue;
      const tensor_info* found = files.find(expected.name);
      if (found && found->shape != expected.shape) {
        const bool transposed = found->shape.size() == 2 && found->shape[0] == expected.shape[1] && found->shape[1] == expected.shape[0];
        throw error(errc::bad_input, files.path().string() + ": tensor " + expected.name + " is " + spelled(found->shape) +
                                         (transposed ? ", transposed: " : ": ") + widths(cfg) + ", so it must be " +
                                         spelled(expected.shape));
      }
      check_tensor(files, expected.name, expected);
      ++wanted;
    }
  if (files.tensors().size() != wanted)
    for (const auto& [name, info] : files.tensors())
      if (!name.ends_with("adapter.linear1.weight") && !name.ends_with("adapter.linear2.weight"))
        throw error(errc::bad_input,
                    files.path().string() + ": tensor " + name + " " + spelled(info.shape) +
                        " belongs to no adapter; its tensors are model.adapter.linear1.weight and model.adapter.linear2.weight");
  return files;
}

split_sources open_sources(const fs::path& file, bool fitted) {
  model_config cfg = parse_model_config(read_model_file(file), file.string());
  if (!cfg.split)
    throw error(errc::bad_input, file.string() + ": architectures[0] = \"" + cfg.architecture +
                                     "\" is no split model; CustomSplitLLamaForCausalLM is wanted");
  auto whole = sources_of(*cfg.split);
  auto first = open_model(cfg.split->path_8, "path8b", file.string(), whole.first);
  auto second = open_model(cfg.split->path_70, "path70b", file.string(), whole.second);
  std::optional<safetensors_reader> adapter;
  if (!cfg.split->adapter_path.empty())
    adapter.emplace(open_adapter(cfg));
  else if (cfg.split->start == adapter_start::fit && !fitted)
    throw error(errc::bad_input, file.string() + ": adapter_init = \"fit\" needs text to fit to: convert split --fit-text FILE");
  return {std::move(cfg), std::move(whole), std::move(first), std::move(second), std::move(adapter)};
}

stored find_stored(const split_sources& from, const block_spec& block, const std::string& name) {
  const auto in = [](const safetensors_reader& files, const std::string& source) { return stored{&files, files.find(source)}; };
  if (block.kind == block_kind::embedding)
    return in(from.first, name);
  if (block.kind == block_kind::adapter)
    return from.adapter ? in(*from.adapter, name) : stored{nullptr, nullptr};
  if (block.kind == block_kind::decoder) {
    const bool front = block.prefix.starts_with("model.layers_8b.");
    return in(front ? from.first : from.second,
              "model.layers." + std::to_string(block.source_layer) + "." + name.substr(block.prefix.size()));
  }
  if (name == "lm_head.weight" && from.whole.second.tie_word_embeddings)
    return in(from.second, "model.embed_tokens.weight");
  return name.starts_with("score.") ? stored{nullptr, nullptr} : in(from.second, name);
}

// A row of ones on the diagonal; columns or rows beyond the smaller width stay zero.
void fill_identity(const tensor_spec& tensor, std::vector<float>& row, std::int64_t r) {
  std::fill(row.begin(), row.end(), 0.0f);
  if (r < tensor.shape.back())
    row[std::size_t(r)] = 1.0f;
}

void fill_normal(std::uint64_t seed, std::uint32_t which, std::vector<float>& row, std::int64_t r) {
  for (std::size_t i = 0; i < row.size(); i += 2) {
    const auto bits = draw_bits({seed, draw::init, which, std::uint32_t(r), 0, std::uint32_t(i / 2)});
    const double radius = new_weight_std * std::sqrt(-2 * std::log((double(bits[0]) + 0.5) / 4294967296.0));
    const double angle = 2 * std::numbers::pi * (double(bits[1]) / 4294967296.0);
    row[i] = float(radius * std::cos(angle));
    if (i + 1 < row.size())
      row[i + 1] = float(radius * std::sin(angle));
  }
}

// A tensor that no source holds, made row by row in float32 and rounded once.
tensor_to_make make_new(const model_config& cfg, const block_spec& block, std::size_t which, dtype type, std::uint64_t seed,
                        const new_adapter* adapter) {
  const tensor_spec& tensor = block.tensors[which];
  if (adapter && block.kind == block_kind::adapter)
    return {tensor.name, type, tensor.shape, [&values = which == 0 ? adapter->linear1 : adapter->linear2, type](std::span<std::byte> out) {
              convert_elements(dtype::f32, reinterpret_cast<const std::byte*>(values.data()), type, out.data(), values.size());
            }};
  const bool identity = block.kind == block_kind::adapter && cfg.split->start == adapter_start::identity, zero = tensor.optional;
  return {tensor.name, type, tensor.shape, [tensor, which, type, seed, identity, zero](std::span<std::byte> out) {
            const std::int64_t rows = tensor.shape.size() > 1 ? tensor.shape[0] : 1;
            std::vector<float> row(static_cast<std::size_t>(tensor.shape.back()));
            for (std::int64_t r = 0; r < rows; ++r) {
              if (identity)
                fill_identity(tensor, row, r);
              else if (!zero)
                fill_normal(seed, std::uint32_t(which), row, r);
              convert_elements(dtype::f32, reinterpret_cast<const std::byte*>(row.data()), type,
                               out.data() + std::size_t(r) * row.size() * size_of(type), row.size());
            }
          }};
}

tensor_to_make take(const stored& from, const tensor_spec& tensor, std::optional<dtype> type) {
  const auto to = type.value_or(from.info->type);
  return {tensor.name, to, tensor.shape, [from, to](std::span<std::byte> out) {
            check_finite(*from.files, *from.info);
            convert_elements(from.info->type, from.info->bytes.data(), to, out.data(), from.info->n_bytes / size_of(from.info->type));
          }};
}

std::vector<tensor_to_make> plan(const split_sources& from, std::optional<dtype> type, std::uint64_t seed, const new_adapter* adapter) {
  const auto blocks = layout_of(from.cfg);
  const dtype second_type = from.second.find("model.norm.weight")->type;
  std::vector<tensor_to_make> tensors;
  for (const auto& block : blocks)
    for (std::size_t i = 0; i < block.tensors.size(); ++i) {
      const auto source = find_stored(from, block, block.tensors[i].name);
      tensors.push_back(source.info ? take(source, block.tensors[i], type)
                                    : make_new(from.cfg, block, i, type.value_or(second_type), seed, adapter));
    }
  return tensors;
}

// What config.json declares: the type of all tensors where it is one, else float32.
dtype declared_for(std::span<const tensor_to_make> tensors) {
  for (const auto& tensor : tensors)
    if (tensor.type != dtype::bf16)
      return dtype::f32;
  return dtype::bf16;
}

} // namespace

conversion convert_split(const fs::path& config, const fs::path& target, std::optional<dtype> type, std::uint64_t seed,
                         const new_adapter* adapter) {
  auto from = open_sources(config, adapter != nullptr);
  const auto tensors = plan(from, type, seed, adapter);
  conversion done;
  done.source = config;
  done.tensors = tensors.size();
  for (const auto& tensor : tensors_of(from.cfg))
    done.parameters += tensor.numel();
  staged_directory staged(target);
  from.cfg.split->adapter_path.clear(); // the adapter is in the checkpoint now
  write_model_config(staged.path(), from.cfg, declared_for(tensors));
  copy_tokenizer_files(from.cfg.split->path_8, staged.path());
  if (adapter)
    write_file(staged.path() / "adapter_fit.json", adapter->report);
  write_safetensors(staged.path(), tensors);
  staged.commit();
  return done;
}

} // namespace troupe
