#include "model/weights/tensor_check.hpp"
#include "core/error.hpp"
#include "model/weights/json.hpp"
#include <algorithm>
#include <cmath>
#include <cstring>
#include <set>
#include <span>

namespace troupe {

namespace {

bool is_float(dtype type) { return type == dtype::f32 || type == dtype::bf16 || type == dtype::f16 || type == dtype::f64; }

} // namespace

std::string spelled(const std::vector<std::int64_t>& shape) {
  std::string text = "[";
  constexpr std::size_t most = 8; // a hostile file's may be long
  for (const auto size : std::span(shape).first(std::min(shape.size(), most)))
    text += (text.size() > 1 ? ", " : "") + std::to_string(size);
  return text + (shape.size() > most ? ", ...]" : "]");
}

bool is_ignored(const std::string& name, const model_config& cfg) {
  return name.ends_with(".rotary_emb.inv_freq") || (cfg.tie_word_embeddings && name == "lm_head.weight");
}

const tensor_info* check_tensor(const safetensors_reader& files, const std::string& name, const tensor_spec& expected) {
  const tensor_info* found = files.find(name);
  const std::string tensor = files.path().string() + ": tensor " + name + " ";
  if (!found && expected.optional)
    return nullptr;
  if (!found)
    throw error(errc::bad_input, tensor + spelled(expected.shape) + " is missing");
  if (found->shape != expected.shape)
    throw error(errc::bad_input, tensor + "is " + spelled(found->shape) + ", config.json makes it " + spelled(expected.shape));
  if (!is_float(found->type))
    throw error(errc::bad_input, tensor + "is of type " + std::string(name_of(found->type)) + "; a weight is F32, BF16, F16 or F64");
  return found;
}

void check_finite(const safetensors_reader& files, const tensor_info& tensor) {
  constexpr std::size_t piece = 1 << 16;
  std::vector<float> values(piece);
  const std::size_t n = tensor.n_bytes / size_of(tensor.type);
  for (std::size_t begin = 0; begin < n; begin += piece) {
    const std::size_t count = std::min(piece, n - begin);
    convert_elements(tensor.type, tensor.bytes.data() + begin * size_of(tensor.type), dtype::f32,
                     reinterpret_cast<std::byte*>(values.data()), count);
    for (std::size_t i = 0; i < count; ++i)
      if (!std::isfinite(values[i]))
        throw error(errc::bad_input, files.path().string() + ": tensor " + tensor.name + " holds " +
                                         (std::isnan(values[i]) ? "NaN" : "infinity") + " at element " + std::to_string(begin + i) +
                                         "; weights must be finite");
  }
}

void check_tensors(const safetensors_reader& files, const model_config& cfg) {
  std::set<std::string> wanted;
  for (const auto& expected : tensors_of(cfg)) {
    wanted.insert(expected.name);
    check_tensor(files, expected.name, expected);
  }
  for (const auto& [name, tensor] : files.tensors())
    if (!wanted.contains(name) && !is_ignored(name, cfg))
      throw error(errc::bad_input, files.path().string() + ": tensor " + in_quotes(name) + " " + spelled(tensor.shape) +
                                       " belongs to no part of " + cfg.architecture);
}

void check_tied_head(const safetensors_reader& files, const model_config& cfg) {
  const tensor_info* head = cfg.tie_word_embeddings ? files.find("lm_head.weight") : nullptr;
  const tensor_info& table = *files.find("model.embed_tokens.weight");
  if (head &&
      (head->type != table.type || head->shape != table.shape || std::memcmp(head->bytes.data(), table.bytes.data(), head->n_bytes) != 0))
    throw error(errc::bad_input, files.path().string() + ": tensor lm_head.weight " + spelled(head->shape) + " belongs to no part of " +
                                     cfg.architecture + " with tie_word_embeddings; it differs from the embedding");
}

} // namespace troupe
