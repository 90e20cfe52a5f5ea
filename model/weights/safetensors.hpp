#pragma once
#include "core/dtype.hpp"
#include "model/kernels/isa.hpp"
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
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
  std::span<const std::byte> bytes; // mapped, row-major; valid while the reader lives
};

/// The tensors of a Hugging Face directory (`model.safetensors`, or an index and its shards) or of one file, mapped.
/// Every header is validated whole: length, JSON, dtypes, shapes, bounds, overlaps, gaps, duplicate names, index against files.
/// Throws errc::bad_input naming file, tensor and reason. Reading is thread-safe.
class safetensors_reader {
public:
  explicit safetensors_reader(const std::filesystem::path& dir_or_file);
  ~safetensors_reader();
  safetensors_reader(safetensors_reader&&) noexcept;
  const tensor_info* find(const std::string& name) const; // null when absent
  const std::map<std::string, tensor_info>& tensors() const;
  const std::filesystem::path& path() const;
  /// Its bytes have been read: their memory is the system's to take back. They may still be read.
  void release(const tensor_info& tensor) const;

private:
  struct impl;
  std::unique_ptr<impl> impl_;
};

/// Converts `count` elements from one type to another: f32, bf16, f16, f64, each rounded once, to nearest even; NaN stays NaN.
/// Equal types are copied, whatever they are. Buffers need no alignment. Throws errc::unsupported for other pairs. Any thread.
/// `which`: the instructions used, this machine's best otherwise; the bits are the same.
void convert_elements(dtype from, const std::byte* source, dtype to, std::byte* target, std::size_t count);
void convert_elements(dtype from, const std::byte* source, dtype to, std::byte* target, std::size_t count, isa which);

/// One tensor to be written; `bytes` must live until `write_safetensors` returns.
struct tensor_to_write {
  std::string name;
  dtype type = dtype::f32;
  std::vector<std::int64_t> shape;
  std::span<const std::byte> bytes;
};

/// One tensor made when its turn comes: `fill` gets a buffer of its size. For models larger than memory.
struct tensor_to_make {
  std::string name;
  dtype type = dtype::f32;
  std::vector<std::int64_t> shape;
  std::function<void(std::span<std::byte>)> fill;
};

constexpr std::size_t default_shard_bytes = std::size_t{5} << 30;

/// Writes `dir/model.safetensors`, or shards of at most `max_shard_bytes` (a larger tensor has one to itself) and their index.
/// Tensors in the order given, in a file the wider types first; metadata `format: pt`. Each file is complete or absent.
/// Throws errc::io, errc::bad_shape (bytes and shape disagree, a name twice).
void write_safetensors(const std::filesystem::path& dir, std::span<const tensor_to_write> tensors,
                       std::size_t max_shard_bytes = default_shard_bytes);
void write_safetensors(const std::filesystem::path& dir, std::span<const tensor_to_make> tensors,
                       std::size_t max_shard_bytes = default_shard_bytes);
/// One file with that name.
void write_safetensors_file(const std::filesystem::path& file, std::span<const tensor_to_write> tensors);
void write_safetensors_file(const std::filesystem::path& file, std::span<const tensor_to_make> tensors);

} // namespace troupe
