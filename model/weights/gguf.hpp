#pragma once
#include "model/weights/ggml_quants.hpp"
#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace troupe {

/// Types of metadata values, with the format's numbers.
enum class gguf_type : std::uint32_t { u8, i8, u16, i16, u32, i32, f32, boolean, string, array, u64, i64, f64 };

/// A metadata value where it lies in the file; read it with the reader's getters.
struct gguf_value {
  gguf_type type = gguf_type::u8; // of an array's elements when `is_array`
  bool is_array = false;
  std::uint64_t count = 1;
  std::span<const std::byte> bytes; // mapped
};

struct gguf_tensor {
  std::string name;
  ggml_type type = ggml_type::f32;
  std::vector<std::int64_t> shape;  // row-major, outermost first (the file has it reversed)
  std::span<const std::byte> bytes; // mapped
  std::size_t numel() const;
};

/// A GGUF file of version 2 or 3, little-endian, mapped, or the first of a split one's parts, which stand for all of them. Every count,
/// offset and length is checked against the file's size before it is used. Throws errc::bad_input naming file, key or tensor,
/// errc::unsupported for versions and tensor types that cannot be read. Reading is thread-safe; views live as long as the reader.
class gguf_reader {
public:
  explicit gguf_reader(const std::filesystem::path& file);
  ~gguf_reader();
  gguf_reader(gguf_reader&&) noexcept;
  const std::filesystem::path& path() const;
  const std::map<std::string, gguf_value>& metadata() const;
  const std::map<std::string, gguf_tensor>& tensors() const;

  // A key's value; nothing when the key is absent. Throw errc::bad_input when it has another type.
  std::optional<std::int64_t> integer(const std::string& key) const;
  /// A float32 is taken as the shortest decimal that names it: 1e-5, not 9.99999974737875163e-06.
  std::optional<double> number(const std::string& key) const;
  std::optional<bool> flag(const std::string& key) const;
  std::optional<std::string_view> text(const std::string& key) const;
  std::optional<std::vector<std::string_view>> texts(const std::string& key) const;
  std::optional<std::vector<std::int64_t>> integers(const std::string& key) const;
  std::optional<std::vector<float>> floats(const std::string& key) const; // of float32

  /// errc::bad_input: "FILE: reason".
  [[noreturn]] void refuse(const std::string& reason) const;

private:
  struct impl;
  gguf_reader(const std::filesystem::path& file, bool part);
  void read_parts(std::int64_t count);
  std::unique_ptr<impl> impl_;
};

} // namespace troupe
