#pragma once
#include "core/dtype.hpp"
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

namespace troupe {

struct tensor_info {
  std::string name;
  dtype type = dtype::f32;
  std::vector<std::int64_t> shape;
  std::size_t n_bytes = 0;
  std::span<const std::byte> bytes;   // mapped, row-major; valid while the reader lives
};

/// The tensors of a Hugging Face directory (`model.safetensors`, or an index and its shards) or of one file, mapped.
/// Every header is validated whole: length, JSON, dtypes, shapes, bounds, overlaps, gaps, duplicate names, index against files.
/// Throws errc::bad_input naming file, tensor and reason. Reading is thread-safe.
class safetensors_reader {
public:
  explicit safetensors_reader(const std::filesystem::path& dir_or_file);
  ~safetensors_reader();
  safetensors_reader(safetensors_reader&&) noexcept;
  const tensor_info* find(const std::string& name) const;   // null when absent
  const std::map<std::string, tensor_info>& tensors() const;
  const std::filesystem::path& path() const;

private:
  struct impl;
  std::unique_ptr<impl> impl_;
};

/// Converts `count` elements from one type to another: f32, bf16 (round to nearest even), f16, f64. Any thread.
void convert_elements(dtype from, const std::byte* source, dtype to, std::byte* target, std::size_t count);

/// One tensor to be written; `bytes` must live until `write_safetensors` returns.
struct tensor_to_write {
  std::string name;
  dtype type = dtype::f32;
  std::vector<std::int64_t> shape;
  std::span<const std::byte> bytes;
};

/// Writes `dir/model.safetensors`, or shards of at most `max_shard_bytes` and their index; metadata `format: pt`.
/// Tensors in the order given. Throws errc::io.
void write_safetensors(const std::filesystem::path& dir, std::span<const tensor_to_write> tensors,
                       std::size_t max_shard_bytes = std::size_t{5} << 30);
/// One file with that name.
void write_safetensors_file(const std::filesystem::path& file, std::span<const tensor_to_write> tensors);

} // namespace troupe
