#include "model/weights/gguf.hpp"
#include "core/error.hpp"
#include "model/weights/json.hpp"
#include "model/weights/mapped_file.hpp"
#include <algorithm>
#include <bit>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>

namespace troupe {

namespace fs = std::filesystem;

namespace {

constexpr int max_array_depth = 4;
constexpr std::uint32_t max_dims = 4;
constexpr std::size_t default_alignment = 32;

[[noreturn]] void refuse_file(const fs::path& file, const std::string& reason) {
  throw error(errc::bad_input, file.string() + ": " + reason);
}

/// Bytes of a scalar; 0 for strings and arrays.
std::size_t scalar_bytes(gguf_type type) noexcept {
  switch (type) {
  case gguf_type::u8:
  case gguf_type::i8:
  case gguf_type::boolean:
    return 1;
  case gguf_type::u16:
  case gguf_type::i16:
    return 2;
  case gguf_type::u32:
  case gguf_type::i32:
  case gguf_type::f32:
    return 4;
  case gguf_type::u64:
  case gguf_type::i64:
  case gguf_type::f64:
    return 8;
  default:
    return 0;
  }
}

const char* type_name(const gguf_value& value) noexcept {
  constexpr const char* names[] = {"u8", "i8", "u16", "i16", "u32", "i32", "f32", "bool", "string", "array", "u64", "i64", "f64"};
  return value.is_array ? "an array" : names[std::size_t(value.type)];
}

template <class T>
T load(const std::byte* from) noexcept {
  T value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

/// Reads the file from front to back, refusing to pass its end.
class cursor {
public:
  cursor(const fs::path& file, std::span<const std::byte> bytes) : file_(file), bytes_(bytes) {}

  std::span<const std::byte> take(std::uint64_t n, const std::string& what) {
    if (n > left())
      refuse_file(file_, "truncated: " + what + " at byte " + std::to_string(at_) + " needs " + std::to_string(n) + " bytes, " +
                             std::to_string(left()) + " are left");
    at_ += n;
    return bytes_.subspan(at_ - n, n);
  }
  std::uint32_t u32(const std::string& what) { return load<std::uint32_t>(take(4, what).data()); }
  std::uint64_t u64(const std::string& what) { return load<std::uint64_t>(take(8, what).data()); }
  /// A number of things of at least `least` bytes each: refused when the file cannot hold them.
  std::uint64_t count(const std::string& what, std::size_t least) {
    const auto n = u64(what);
    if (n > left() / least)
      refuse_file(file_, what + " " + std::to_string(n) + " is more than the " + std::to_string(left()) + " bytes left can hold");
    return n;
  }
  std::string_view string(const std::string& what) {
    const auto n = u64(what);
    const auto text = take(n, what);
    return {reinterpret_cast<const char*>(text.data()), text.size()};
  }
  std::size_t at() const noexcept { return at_; }
  std::size_t left() const noexcept { return bytes_.size() - at_; }
  std::span<const std::byte> since(std::size_t begin) const noexcept { return bytes_.subspan(begin, at_ - begin); }
  const fs::path& file() const noexcept { return file_; }

private:
  const fs::path& file_;
  std::span<const std::byte> bytes_;
  std::size_t at_ = 0;
};

gguf_type value_type(cursor& in, const std::string& what) {
  const auto type = in.u32(what);
  if (type > std::uint32_t(gguf_type::f64))
    refuse_file(in.file(), what + ": unknown value type " + std::to_string(type));
  return gguf_type(type);
}

void skip_elements(cursor& in, gguf_type type, std::uint64_t n, const std::string& what, int depth);

void skip_array(cursor& in, const std::string& what, int depth) {
  if (depth > max_array_depth)
    refuse_file(in.file(), what + ": arrays nested deeper than " + std::to_string(max_array_depth));
  const auto type = value_type(in, what);
  const auto n = in.count(what + ": array length", 1);
  skip_elements(in, type, n, what, depth);
}

void skip_elements(cursor& in, gguf_type type, std::uint64_t n, const std::string& what, int depth) {
  if (const auto bytes = scalar_bytes(type); bytes > 0) {
    if (n > in.left() / bytes)
      refuse_file(in.file(), what + ": " + std::to_string(n) + " values do not fit in the " + std::to_string(in.left()) + " bytes left");
    const auto values = in.take(n * bytes, what);
    if (type == gguf_type::boolean && std::any_of(values.begin(), values.end(), [](std::byte b) { return b > std::byte{1}; }))
      refuse_file(in.file(), what + ": a bool that is neither 0 nor 1");
    return;
  }
  for (std::uint64_t i = 0; i < n; ++i) {
    if (type == gguf_type::string)
      in.string(what);
    else
      skip_array(in, what, depth + 1);
  }
}

gguf_value read_value(cursor& in, const std::string& what) {
  gguf_value value;
  value.type = value_type(in, what);
  if (value.type == gguf_type::array) {
    value.is_array = true;
    value.type = value_type(in, what);
    value.count = in.count(what + ": array length", 1);
  }
  const auto begin = in.at();
  skip_elements(in, value.type, value.count, what, 1);
  value.bytes = in.since(begin);
  return value;
}

/// A tensor as the file declares it; `offset` counts from the start of the data.
struct declared_tensor {
  gguf_tensor tensor;
  std::uint64_t offset = 0, bytes = 0;
};

std::uint64_t bytes_of(const fs::path& file, const std::string& what, const ggml_layout& layout, const std::vector<std::int64_t>& shape) {
  std::uint64_t elements = 1, bytes = 0;
  for (const auto dim : shape)
    if (__builtin_mul_overflow(elements, std::uint64_t(dim), &elements))
      refuse_file(file, what + ": its shape overflows 64 bits");
  if (std::uint64_t(shape.back()) % layout.block != 0)
    refuse_file(file, what + ": rows of " + std::to_string(shape.back()) + " are not whole " + layout.name + " blocks of " +
                          std::to_string(layout.block));
  if (__builtin_mul_overflow(elements / layout.block, std::uint64_t(layout.bytes), &bytes))
    refuse_file(file, what + ": its size overflows 64 bits");
  return bytes;
}

declared_tensor read_declaration(cursor& in) {
  declared_tensor declared;
  auto& tensor = declared.tensor;
  tensor.name = in.string("a tensor's name");
  const auto what = "tensor " + in_quotes(tensor.name);
  const auto n_dims = in.u32(what + ": number of dimensions");
  if (n_dims < 1 || n_dims > max_dims)
    refuse_file(in.file(), what + ": " + std::to_string(n_dims) + " dimensions, 1 to 4 are possible");
  for (std::uint32_t i = 0; i < n_dims; ++i) {
    const auto dim = in.u64(what + ": shape");
    if (dim < 1 || dim > std::uint64_t(std::numeric_limits<std::int64_t>::max()))
      refuse_file(in.file(), what + ": shape entry " + std::to_string(dim) + " is out of range");
    tensor.shape.insert(tensor.shape.begin(), std::int64_t(dim));
  }
  const auto type = in.u32(what + ": type");
  const auto* layout = layout_of(type);
  if (layout == nullptr && ggml_name(type) == nullptr)
    refuse_file(in.file(), what + ": unknown type " + std::to_string(type));
  if (layout == nullptr)
    throw error(errc::unsupported, in.file().string() + ": " + what + ": type " + ggml_name(type) +
                                       "; this version reads F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K and Q6_K");
  tensor.type = ggml_type(type);
  declared.offset = in.u64(what + ": offset");
  declared.bytes = bytes_of(in.file(), what, *layout, tensor.shape);
  return declared;
}

void check_version(const fs::path& file, std::uint32_t version) {
  if (version == 2 || version == 3)
    return;
  const bool swapped = __builtin_bswap32(version) == 2 || __builtin_bswap32(version) == 3;
  if (version == 1 || swapped)
    throw error(errc::unsupported,
                file.string() + ": GGUF " + (swapped ? "in big-endian order" : "version 1") + "; this version reads little-endian 2 and 3");
  refuse_file(file, "GGUF version " + std::to_string(version) + " is unknown; 2 and 3 can be read");
}

double shortest(float value) {
  char text[64];
  const auto end = std::to_chars(text, text + sizeof text, value).ptr;
  double parsed = 0;
  std::from_chars(text, end, parsed);
  return parsed;
}

std::int64_t integer_at(const gguf_value& value, std::uint64_t i) {
  const auto* p = value.bytes.data() + i * scalar_bytes(value.type);
  switch (value.type) {
  case gguf_type::u8:
    return load<std::uint8_t>(p);
  case gguf_type::i8:
    return load<std::int8_t>(p);
  case gguf_type::u16:
    return load<std::uint16_t>(p);
  case gguf_type::i16:
    return load<std::int16_t>(p);
  case gguf_type::u32:
    return load<std::uint32_t>(p);
  case gguf_type::i32:
    return load<std::int32_t>(p);
  default:
    return load<std::int64_t>(p);
  }
}

bool is_integer(gguf_type type) noexcept { return type <= gguf_type::i32 || type == gguf_type::u64 || type == gguf_type::i64; }

} // namespace

std::size_t gguf_tensor::numel() const {
  std::size_t n = 1;
  for (const auto dim : shape)
    n *= std::size_t(dim);
  return n;
}

struct gguf_reader::impl {
  fs::path path;
  mapped_file file;
  std::map<std::string, gguf_value> metadata;
  std::map<std::string, gguf_tensor> tensors;
  std::vector<gguf_reader> parts; // after the first

  explicit impl(const fs::path& from) : path(from), file(from) {}

  void read_metadata(cursor& in, std::uint64_t n) {
    for (std::uint64_t i = 0; i < n; ++i) {
      const std::string key(in.string("a metadata key"));
      const auto value = read_value(in, "key " + in_quotes(key));
      if (!metadata.emplace(key, value).second)
        refuse_file(path, "key " + in_quotes(key) + " occurs twice");
    }
  }

  void place(std::vector<declared_tensor> declared, std::size_t header_bytes, std::size_t alignment) {
    const auto size = file.bytes().size();
    const auto begin = (header_bytes + alignment - 1) / alignment * alignment;
    const auto data = begin <= size ? file.bytes().subspan(begin) : std::span<const std::byte>();
    std::sort(declared.begin(), declared.end(), [](const auto& a, const auto& b) { return a.offset < b.offset; });
    std::uint64_t covered = 0;
    for (auto& [tensor, offset, bytes] : declared) {
      const auto what = "tensor " + in_quotes(tensor.name);
      if (offset % alignment != 0)
        refuse_file(path, what + ": offset " + std::to_string(offset) + " is not a multiple of the alignment " + std::to_string(alignment));
      if (offset > data.size() || bytes > data.size() - offset)
        refuse_file(path, "truncated: " + what + " needs " + std::to_string(bytes) + " bytes at offset " + std::to_string(offset) +
                              ", the file has " + std::to_string(data.size()) + " bytes of data");
      if (offset < covered)
        refuse_file(path, what + ": overlaps the tensor before it");
      covered = offset + bytes;
      tensor.bytes = data.subspan(offset, bytes);
      if (const auto name = tensor.name; !tensors.emplace(name, std::move(tensor)).second)
        refuse_file(path, what + " occurs twice");
    }
  }

  void read(const gguf_reader& reader) {
    cursor in(path, file.bytes());
    if (file.bytes().size() < 4 || std::memcmp(in.take(4, "magic").data(), "GGUF", 4) != 0)
      refuse_file(path, "is not a GGUF file: it does not begin with GGUF");
    check_version(path, in.u32("version"));
    const auto n_tensors = in.count("tensor count", 32);
    const auto n_keys = in.count("metadata count", 13);
    read_metadata(in, n_keys);
    const auto alignment = reader.integer("general.alignment").value_or(default_alignment);
    if (alignment < 1 || alignment > 1 << 20 || !std::has_single_bit(std::uint64_t(alignment)))
      refuse_file(path, "general.alignment " + std::to_string(alignment) + " is not a power of two up to 2^20");
    std::vector<declared_tensor> declared;
    for (std::uint64_t i = 0; i < n_tensors; ++i)
      declared.push_back(read_declaration(in));
    place(std::move(declared), in.at(), std::size_t(alignment));
  }

  const gguf_value* find(const std::string& key, bool is_array, bool (*fits)(gguf_type), const char* wanted) const {
    const auto found = metadata.find(key);
    if (found == metadata.end())
      return nullptr;
    if (found->second.is_array != is_array || !fits(found->second.type))
      refuse_file(path, "key " + in_quotes(key) + " must be " + wanted + ", found " + type_name(found->second));
    return &found->second;
  }
};

namespace {

// "NAME-00002-of-00003.gguf"
std::string part_suffix(std::int64_t number, std::int64_t count) {
  char text[48];
  std::snprintf(text, sizeof text, "-%05lld-of-%05lld.gguf", static_cast<long long>(number), static_cast<long long>(count));
  return text;
}

} // namespace

gguf_reader::gguf_reader(const fs::path& file, bool /*part*/) : impl_(std::make_unique<impl>(file)) { impl_->read(*this); }

gguf_reader::gguf_reader(const fs::path& file) : gguf_reader(file, true) {
  if (const auto count = integer("split.count").value_or(1); count != 1)
    read_parts(count);
}

// The parts lie beside the first; metadata are the first's, each part has its own tensors.
void gguf_reader::read_parts(std::int64_t count) {
  constexpr std::int64_t most = 99999; // five digits
  const auto number = integer("split.no").value_or(0);
  if (count < 1 || count > most || number < 0 || number >= count)
    refuse("split.no = " + std::to_string(number) + " of split.count = " + std::to_string(count));
  const auto own = part_suffix(number + 1, count), name = path().filename().string();
  if (!name.ends_with(own))
    refuse("is part " + std::to_string(number + 1) + " of " + std::to_string(count) + "; its name must end with " + own +
           " for the others to be found");
  const auto stem = name.substr(0, name.size() - own.size());
  if (number != 0)
    refuse("is part " + std::to_string(number + 1) + " of " + std::to_string(count) + "; name the first, " + stem + part_suffix(1, count));
  for (std::int64_t i = 1; i < count; ++i) {
    gguf_reader part(path().parent_path() / (stem + part_suffix(i + 1, count)), true);
    if (part.integer("split.no").value_or(-1) != i || part.integer("split.count").value_or(-1) != count)
      part.refuse("is not part " + std::to_string(i + 1) + " of " + std::to_string(count) + " by its split.no and split.count");
    for (const auto& [tensor, where] : part.tensors())
      if (!impl_->tensors.emplace(tensor, where).second)
        part.refuse("tensor " + in_quotes(tensor) + " is in a part before it too");
    impl_->parts.push_back(std::move(part));
  }
  if (const auto all = integer("split.tensors.count"); all && *all != std::int64_t(tensors().size()))
    refuse("split.tensors.count = " + std::to_string(*all) + ", but the " + std::to_string(count) + " parts have " +
           std::to_string(tensors().size()) + " tensors");
}
gguf_reader::~gguf_reader() = default;
gguf_reader::gguf_reader(gguf_reader&&) noexcept = default;

const fs::path& gguf_reader::path() const { return impl_->path; }
const std::map<std::string, gguf_value>& gguf_reader::metadata() const { return impl_->metadata; }
const std::map<std::string, gguf_tensor>& gguf_reader::tensors() const { return impl_->tensors; }
void gguf_reader::refuse(const std::string& reason) const { refuse_file(impl_->path, reason); }

std::optional<std::int64_t> gguf_reader::integer(const std::string& key) const {
  const auto* value = impl_->find(key, false, is_integer, "an integer");
  if (value == nullptr)
    return std::nullopt;
  const auto number = integer_at(*value, 0);
  if (value->type == gguf_type::u64 && number < 0)
    refuse("key " + in_quotes(key) + " is over 2^63 - 1");
  return number;
}

std::optional<double> gguf_reader::number(const std::string& key) const {
  const auto* value = impl_->find(
      key, false, [](gguf_type t) { return t == gguf_type::f32 || t == gguf_type::f64; }, "a float");
  if (value == nullptr)
    return std::nullopt;
  const double number = value->type == gguf_type::f32 ? shortest(load<float>(value->bytes.data())) : load<double>(value->bytes.data());
  if (!std::isfinite(number))
    refuse("key " + in_quotes(key) + " is not finite");
  return number;
}

std::optional<bool> gguf_reader::flag(const std::string& key) const {
  const auto* value = impl_->find(
      key, false, [](gguf_type t) { return t == gguf_type::boolean; }, "a bool");
  return value == nullptr ? std::nullopt : std::optional(value->bytes[0] != std::byte{0});
}

std::optional<std::string_view> gguf_reader::text(const std::string& key) const {
  const auto* value = impl_->find(
      key, false, [](gguf_type t) { return t == gguf_type::string; }, "a string");
  if (value == nullptr)
    return std::nullopt;
  return cursor(impl_->path, value->bytes).string(key);
}

std::optional<std::vector<std::string_view>> gguf_reader::texts(const std::string& key) const {
  const auto* value = impl_->find(
      key, true, [](gguf_type t) { return t == gguf_type::string; }, "an array of strings");
  if (value == nullptr)
    return std::nullopt;
  std::vector<std::string_view> all;
  cursor in(impl_->path, value->bytes);
  for (std::uint64_t i = 0; i < value->count; ++i)
    all.push_back(in.string(key));
  return all;
}

std::optional<std::vector<std::int64_t>> gguf_reader::integers(const std::string& key) const {
  const auto* value = impl_->find(key, true, is_integer, "an array of integers");
  if (value == nullptr)
    return std::nullopt;
  std::vector<std::int64_t> all;
  for (std::uint64_t i = 0; i < value->count; ++i)
    all.push_back(integer_at(*value, i));
  return all;
}

std::optional<std::vector<float>> gguf_reader::floats(const std::string& key) const {
  const auto* value = impl_->find(
      key, true, [](gguf_type t) { return t == gguf_type::f32; }, "an array of float32");
  if (value == nullptr)
    return std::nullopt;
  std::vector<float> all(value->count);
  std::memcpy(all.data(), value->bytes.data(), all.size() * sizeof(float));
  return all;
}

} // namespace troupe
