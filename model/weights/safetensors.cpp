#include "model/weights/safetensors.hpp"
#include "core/error.hpp"
#include "core/files.hpp"
#include "model/weights/json.hpp"
#include "model/weights/mapped_file.hpp"
#include <algorithm>
#include <array>
#include <cstring>
#include <limits>
#include <set>
#include <sys/mman.h>
#include <unistd.h>

namespace troupe {

namespace fs = std::filesystem;

namespace {

constexpr std::size_t length_bytes = 8;
constexpr std::size_t max_header_bytes = 100'000'000; // as the safetensors package

[[noreturn]] void refuse(const fs::path& file, const std::string& reason) { throw error(errc::bad_input, file.string() + ": " + reason); }

/// One tensor's entry in a header, in the words of messages.
struct entry_place {
  const fs::path& file;
  const std::string& tensor;
  [[noreturn]] void refuse(const std::string& reason) const { troupe::refuse(file, "tensor " + in_quotes(tensor) + ": " + reason); }
};

/// A JSON value for a message; a hostile header's may be megabytes long.
std::string shown(const nlohmann::json& value) {
  const auto text = value.dump();
  return text.size() > 100 ? text.substr(0, 100) + "..." : text;
}

dtype dtype_from_name(const entry_place& at, const std::string& name) {
  for (int i = 0; i <= int(dtype::boolean); ++i)
    if (name_of(dtype(i)) == name)
      return dtype(i);
  constexpr std::array known = {"U16",         "U32",         "U64",     "F8_E4M3", "F8_E5M2", "F8_E8M0",
                                "F8_E4M3FNUZ", "F8_E5M2FNUZ", "F6_E2M3", "F6_E3M2", "F4",      "C64"};
  if (std::find(known.begin(), known.end(), name) != known.end())
    throw error(errc::unsupported, at.file.string() + ": tensor " + in_quotes(at.tensor) + ": dtype " + name +
                                       "; this version reads F64, F32, F16, BF16, I64, I32, I16, I8, U8 and BOOL");
  at.refuse("unknown dtype " + in_quotes(name));
}

std::vector<std::int64_t> shape_of(const entry_place& at, const nlohmann::json& value) {
  std::vector<std::int64_t> shape;
  for (const auto& entry : value) {
    if (!entry.is_number_unsigned() || entry.get<std::uint64_t>() > std::uint64_t(std::numeric_limits<std::int64_t>::max()))
      at.refuse("shape " + shown(value) + ": every entry must be an integer from 0 to 2^63 - 1");
    shape.push_back(entry.get<std::int64_t>());
  }
  return shape;
}

std::size_t bytes_of(const entry_place& at, const std::vector<std::int64_t>& shape, dtype type) {
  std::uint64_t bytes = size_of(type);
  for (const auto dim : shape)
    if (__builtin_mul_overflow(bytes, std::uint64_t(dim), &bytes))
      at.refuse("shape is too large to count its bytes in 64 bits");
  return bytes;
}

/// A member of an entry, of the JSON type that the format asks for.
const nlohmann::json& member(const entry_place& at, const nlohmann::json& entry, const char* key, nlohmann::json::value_t type) {
  const auto found = entry.find(key);
  if (found == entry.end())
    at.refuse(std::string("has no ") + in_quotes(key));
  if (found->type() != type)
    at.refuse(in_quotes(key) + " must be " + (type == nlohmann::json::value_t::array ? "an array" : "a string") + ", found " +
              found->type_name());
  return *found;
}

struct byte_range {
  std::size_t begin = 0, end = 0;
};

byte_range offsets_of(const entry_place& at, const nlohmann::json& value, std::size_t n_data) {
  if (value.size() != 2 || !value[0].is_number_unsigned() || !value[1].is_number_unsigned())
    at.refuse("data_offsets " + shown(value) + ": two integers from 0 are wanted");
  const byte_range range{value[0].get<std::size_t>(), value[1].get<std::size_t>()};
  if (range.begin > range.end)
    at.refuse("data_offsets " + shown(value) + ": begins after its end");
  if (range.end > n_data)
    at.refuse("data_offsets " + shown(value) + ": the file has only " + std::to_string(n_data) + " bytes of data");
  return range;
}

tensor_info parse_entry(const fs::path& file, const std::string& name, const nlohmann::json& entry, std::span<const std::byte> data) {
  const entry_place at{file, name};
  if (!entry.is_object())
    at.refuse(std::string("its entry must be an object, found ") + entry.type_name());
  tensor_info info;
  info.name = name;
  info.type = dtype_from_name(at, member(at, entry, "dtype", nlohmann::json::value_t::string).get<std::string>());
  info.shape = shape_of(at, member(at, entry, "shape", nlohmann::json::value_t::array));
  info.n_bytes = bytes_of(at, info.shape, info.type);
  const auto range = offsets_of(at, member(at, entry, "data_offsets", nlohmann::json::value_t::array), data.size());
  if (range.end - range.begin != info.n_bytes)
    at.refuse("data_offsets span " + std::to_string(range.end - range.begin) + " bytes, its shape and dtype need " +
              std::to_string(info.n_bytes));
  info.bytes = data.subspan(range.begin, info.n_bytes);
  return info;
}

/// The header's text, without trusting its length.
std::string_view header_of(const fs::path& file, std::span<const std::byte> bytes) {
  if (bytes.size() < length_bytes)
    refuse(file, "truncated: " + std::to_string(bytes.size()) + " bytes, a safetensors file begins with 8 bytes of header length");
  std::uint64_t length = 0;
  std::memcpy(&length, bytes.data(), length_bytes);
  if (length > max_header_bytes)
    refuse(file, "header length " + std::to_string(length) + " is over the limit of 100000000; this is not a safetensors file");
  if (length > bytes.size() - length_bytes)
    refuse(file, "truncated: header length " + std::to_string(length) + ", but only " + std::to_string(bytes.size() - length_bytes) +
                     " bytes follow");
  const std::string_view text(reinterpret_cast<const char*>(bytes.data()) + length_bytes, length);
  if (text.empty() || text.front() != '{')
    refuse(file, "the header must begin with {");
  return text;
}

void check_metadata(const fs::path& file, const nlohmann::json& metadata) {
  if (!metadata.is_object())
    refuse(file, std::string("__metadata__ must be an object, found ") + metadata.type_name());
  for (const auto& [key, value] : metadata.items())
    if (!value.is_string())
      refuse(file, "__metadata__: " + in_quotes(key) + " must be a string, found " + value.type_name());
}

/// The tensors must cover the data exactly: no overlap, no gap, nothing after the last.
void check_coverage(const fs::path& file, std::vector<const tensor_info*> infos, std::span<const std::byte> data) {
  std::sort(infos.begin(), infos.end(),
            [](const auto* a, const auto* b) { return std::pair(a->bytes.data(), a->n_bytes) < std::pair(b->bytes.data(), b->n_bytes); });
  const tensor_info* before = nullptr;
  std::size_t covered = 0;
  for (const auto* info : infos) {
    const auto begin = std::size_t(info->bytes.data() - data.data());
    if (begin < covered)
      refuse(file, "tensors " + in_quotes(before->name) + " and " + in_quotes(info->name) + " overlap");
    if (begin > covered)
      refuse(file, "bytes " + std::to_string(covered) + " to " + std::to_string(begin) + " of the data belong to no tensor");
    covered = begin + info->n_bytes;
    before = info;
  }
  if (covered != data.size())
    refuse(file, "the tensors end at byte " + std::to_string(covered) + " of the data, the file has " + std::to_string(data.size()));
}

std::vector<tensor_info> parse_file(const fs::path& file, std::span<const std::byte> bytes) {
  const auto text = header_of(file, bytes);
  const auto header = parse_json_object(text, file.string() + ": header");
  const auto data = bytes.subspan(length_bytes + text.size());
  std::vector<tensor_info> infos;
  for (const auto& [name, entry] : header.items()) {
    if (name == "__metadata__")
      check_metadata(file, entry);
    else
      infos.push_back(parse_entry(file, name, entry, data));
  }
  std::vector<const tensor_info*> pointers;
  for (const auto& info : infos)
    pointers.push_back(&info);
  check_coverage(file, std::move(pointers), data);
  return infos;
}

bool is_plain_name(const std::string& name) {
  return !name.empty() && name != "." && name != ".." && name.find_first_of(std::string_view("/\\\0", 3)) == std::string::npos;
}

/// tensor name -> shard name, as the index says.
std::map<std::string, std::string> read_index(const fs::path& file) {
  const mapped_file mapped(file);
  const auto bytes = mapped.bytes();
  const auto index = parse_json_object({reinterpret_cast<const char*>(bytes.data()), bytes.size()}, file.string());
  const auto found = index.find("weight_map");
  if (found == index.end() || !found->is_object())
    refuse(file,
           found == index.end() ? "has no \"weight_map\"" : std::string("\"weight_map\" must be an object, found ") + found->type_name());
  std::map<std::string, std::string> shards;
  for (const auto& [name, shard] : found->items()) {
    if (!shard.is_string())
      refuse(file, "weight_map: " + in_quotes(name) + " must name a file, found " + shard.type_name());
    if (!is_plain_name(shard.get_ref<const std::string&>()))
      refuse(file, "weight_map: " + in_quotes(name) + " names " + in_quotes(shard.get<std::string>()) +
                       "; a shard lies in the index's directory");
    shards.emplace(name, shard.get<std::string>());
  }
  if (shards.empty())
    refuse(file, "\"weight_map\" is empty");
  return shards;
}

} // namespace

struct safetensors_reader::impl {
  fs::path path;
  std::vector<mapped_file> files;
  std::map<std::string, tensor_info> tensors;

  void read_single(const fs::path& file) {
    files.emplace_back(file);
    for (auto& info : parse_file(file, files.back().bytes()))
      tensors.emplace(info.name, std::move(info));
  }

  void read_shard(const fs::path& index, const std::map<std::string, std::string>& shards, const std::string& shard) {
    const auto file = index.parent_path() / shard;
    if (!is_there(file))
      refuse(index, "weight_map names " + in_quotes(shard) + ", which does not exist");
    files.emplace_back(file);
    for (auto& info : parse_file(file, files.back().bytes())) {
      const auto mapped = shards.find(info.name);
      if (mapped == shards.end())
        refuse(file, "tensor " + in_quotes(info.name) + " is not in " + index.filename().string());
      if (mapped->second != shard)
        refuse(file, "tensor " + in_quotes(info.name) + " is here, but " + index.filename().string() + " places it in " +
                         in_quotes(mapped->second));
      tensors.emplace(info.name, std::move(info));
    }
  }

  void read_shards(const fs::path& index) {
    const auto shards = read_index(index);
    std::set<std::string> names;
    for (const auto& [tensor, shard] : shards)
      names.insert(shard);
    for (const auto& shard : names)
      read_shard(index, shards, shard);
    for (const auto& [tensor, shard] : shards)
      if (!tensors.contains(tensor))
        refuse(index, "weight_map places " + in_quotes(tensor) + " in " + in_quotes(shard) + ", which has no such tensor");
  }

  void read_directory() {
    const auto single = path / "model.safetensors", index = path / "model.safetensors.index.json";
    if (is_there(single))
      return read_single(single);
    if (is_there(index))
      return read_shards(index);
    refuse(path, "holds neither model.safetensors nor model.safetensors.index.json; a Hugging Face model directory is wanted");
  }
};

safetensors_reader::safetensors_reader(const fs::path& dir_or_file) : impl_(std::make_unique<impl>()) {
  impl_->path = dir_or_file;
  std::error_code ignored;
  if (fs::is_directory(dir_or_file, ignored))
    impl_->read_directory();
  else if (dir_or_file.filename().string().ends_with(".safetensors.index.json"))
    impl_->read_shards(dir_or_file);
  else
    impl_->read_single(dir_or_file);
}

safetensors_reader::~safetensors_reader() = default;
safetensors_reader::safetensors_reader(safetensors_reader&&) noexcept = default;

const tensor_info* safetensors_reader::find(const std::string& name) const {
  const auto found = impl_->tensors.find(name);
  return found == impl_->tensors.end() ? nullptr : &found->second;
}

const std::map<std::string, tensor_info>& safetensors_reader::tensors() const { return impl_->tensors; }
const fs::path& safetensors_reader::path() const { return impl_->path; }

void safetensors_reader::release(const tensor_info& tensor) const {
  // Whole pages alone; the neighbours share the others.
  const auto page = std::uintptr_t(sysconf(_SC_PAGESIZE)), begin = std::uintptr_t(tensor.bytes.data());
  const std::uintptr_t first = (begin + page - 1) / page * page, last = (begin + tensor.n_bytes) / page * page;
  if (first < last)
    madvise(reinterpret_cast<void*>(first), last - first, MADV_DONTNEED);
}

} // namespace troupe
