#include "core/error.hpp"
#include "core/files.hpp"
#include "model/weights/json.hpp"
#include "model/weights/safetensors.hpp"
#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <fcntl.h>
#include <numeric>
#include <set>
#include <unistd.h>

namespace troupe {

namespace fs = std::filesystem;

namespace {

/// A file written under another name and renamed when whole; removed when not.
class staged_file {
public:
  explicit staged_file(fs::path target) : target_(std::move(target)), staging_(target_.string() + ".part") {
    fd_ = ::open(staging_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (fd_ < 0)
      fail();
  }
  ~staged_file() {
    if (fd_ < 0)
      return;
    ::close(fd_);
    ::unlink(staging_.c_str());
  }
  staged_file(const staged_file&) = delete;
  staged_file& operator=(const staged_file&) = delete;

  void write(std::span<const std::byte> bytes) {
    while (!bytes.empty()) {
      const auto n = ::write(fd_, bytes.data(), bytes.size());
      if (n < 0 && errno == EINTR)
        continue;
      if (n < 0)
        fail();
      bytes = bytes.subspan(std::size_t(n));
    }
  }

  void commit() {
    if (::fsync(fd_) != 0 || ::rename(staging_.c_str(), target_.c_str()) != 0)
      fail();
    ::close(fd_);
    fd_ = -1;
  }

private:
  [[noreturn]] void fail() const { throw error(errc::io, "cannot write " + target_.string() + ": " + write_failure(errno)); }

  fs::path target_, staging_;
  int fd_ = -1;
};

std::size_t bytes_of(const std::string& name, dtype type, const std::vector<std::int64_t>& shape) {
  std::uint64_t bytes = size_of(type);
  for (const auto dim : shape)
    if (dim < 0 || __builtin_mul_overflow(bytes, std::uint64_t(dim), &bytes))
      throw error(errc::bad_shape, "tensor " + in_quotes(name) + ": its shape has a negative entry or overflows");
  return bytes;
}

void check(std::span<const tensor_to_make> tensors) {
  std::set<std::string_view> names;
  for (const auto& tensor : tensors) {
    bytes_of(tensor.name, tensor.type, tensor.shape);
    if (!is_utf8(tensor.name) || tensor.name == "__metadata__")
      throw error(errc::bad_shape, "tensor " + in_quotes(tensor.name) + ": no tensor can have that name in a safetensors file");
    if (!names.insert(tensor.name).second)
      throw error(errc::bad_shape, "tensor " + in_quotes(tensor.name) + " is given twice");
  }
}

/// Order of the data in a file: wider types first, so that every tensor stays aligned to its element.
std::vector<std::size_t> layout_of(std::span<const tensor_to_make> tensors) {
  std::vector<std::size_t> order(tensors.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](std::size_t a, std::size_t b) { return size_of(tensors[a].type) > size_of(tensors[b].type); });
  return order;
}

std::string header_of(std::span<const tensor_to_make> tensors, std::span<const std::size_t> order) {
  std::string text = R"({"__metadata__":{"format":"pt"})";
  std::size_t begin = 0;
  for (const auto i : order) {
    const auto& tensor = tensors[i];
    const auto end = begin + bytes_of(tensor.name, tensor.type, tensor.shape);
    text += "," + nlohmann::json(tensor.name).dump() + R"(:{"dtype":")" + std::string(name_of(tensor.type)) + R"(","shape":)" +
            nlohmann::json(tensor.shape).dump() + R"(,"data_offsets":[)" + std::to_string(begin) + "," + std::to_string(end) + "]}";
    begin = end;
  }
  text += "}";
  text.resize((text.size() + 7) / 8 * 8, ' ');
  return text;
}

void write_one(const fs::path& target, std::span<const tensor_to_make> tensors) {
  const auto order = layout_of(tensors);
  const auto header = header_of(tensors, order);
  const std::uint64_t length = header.size();
  staged_file file(target);
  file.write(std::as_bytes(std::span(&length, 1)));
  file.write(std::as_bytes(std::span(header)));
  std::vector<std::byte> buffer;
  for (const auto i : order) {
    buffer.resize(bytes_of(tensors[i].name, tensors[i].type, tensors[i].shape));
    tensors[i].fill(buffer);
    file.write(buffer);
  }
  file.commit();
}

/// Ends (one past the last) of each shard's tensors, filled in order.
std::vector<std::size_t> shard_ends(std::span<const tensor_to_make> tensors, std::size_t max_bytes) {
  std::vector<std::size_t> ends;
  std::size_t filled = 0;
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    const auto bytes = bytes_of(tensors[i].name, tensors[i].type, tensors[i].shape);
    if (filled > 0 && bytes > max_bytes - std::min(filled, max_bytes)) {
      ends.push_back(i);
      filled = 0;
    }
    filled += bytes;
  }
  ends.push_back(tensors.size());
  return ends;
}

std::string shard_name(std::size_t i, std::size_t n) {
  char name[64];
  std::snprintf(name, sizeof name, "model-%05zu-of-%05zu.safetensors", i + 1, n);
  return name;
}

void write_shards(const fs::path& dir, std::span<const tensor_to_make> tensors, const std::vector<std::size_t>& ends) {
  nlohmann::json map = nlohmann::json::object();
  std::uint64_t total = 0;
  std::size_t begin = 0;
  for (std::size_t shard = 0; shard < ends.size(); ++shard) {
    const auto part = tensors.subspan(begin, ends[shard] - begin);
    const auto name = shard_name(shard, ends.size());
    for (const auto& tensor : part) {
      map[tensor.name] = name;
      total += bytes_of(tensor.name, tensor.type, tensor.shape);
    }
    write_one(dir / name, part);
    begin = ends[shard];
  }
  const auto text = nlohmann::json{{"metadata", {{"total_size", total}}}, {"weight_map", std::move(map)}}.dump(2) + "\n";
  staged_file index(dir / "model.safetensors.index.json");
  index.write(std::as_bytes(std::span(text)));
  index.commit();
}

std::vector<tensor_to_make> as_makers(std::span<const tensor_to_write> tensors) {
  std::vector<tensor_to_make> makers;
  for (const auto& tensor : tensors) {
    if (tensor.bytes.size() != bytes_of(tensor.name, tensor.type, tensor.shape))
      throw error(errc::bad_shape, "tensor " + in_quotes(tensor.name) + ": " + std::to_string(tensor.bytes.size()) +
                                       " bytes given, its shape and dtype need " +
                                       std::to_string(bytes_of(tensor.name, tensor.type, tensor.shape)));
    makers.push_back({tensor.name, tensor.type, tensor.shape,
                      [bytes = tensor.bytes](std::span<std::byte> out) { std::copy(bytes.begin(), bytes.end(), out.begin()); }});
  }
  return makers;
}

} // namespace

void write_safetensors(const fs::path& dir, std::span<const tensor_to_make> tensors, std::size_t max_shard_bytes) {
  check(tensors);
  const auto ends = shard_ends(tensors, max_shard_bytes);
  if (ends.size() == 1)
    write_one(dir / "model.safetensors", tensors);
  else
    write_shards(dir, tensors, ends);
}

void write_safetensors(const fs::path& dir, std::span<const tensor_to_write> tensors, std::size_t max_shard_bytes) {
  write_safetensors(dir, as_makers(tensors), max_shard_bytes);
}

void write_safetensors_file(const fs::path& file, std::span<const tensor_to_write> tensors) {
  write_safetensors_file(file, as_makers(tensors));
}

void write_safetensors_file(const fs::path& file, std::span<const tensor_to_make> tensors) {
  check(tensors);
  write_one(file, tensors);
}

} // namespace troupe
