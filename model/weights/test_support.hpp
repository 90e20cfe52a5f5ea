#pragma once
#include "core/error.hpp"
#include "core/files.hpp"
#include "model/weights/safetensors.hpp"
#include <atomic>
#include <cstring>
#include <filesystem>
#include <gtest/gtest.h>
#include <string>
#include <sys/mman.h>
#include <unistd.h>
#include <vector>

namespace troupe::test {

/// A fresh directory, removed at the end of its scope.
class scratch {
public:
  scratch() {
    static std::atomic<int> made{0};
    path_ = std::filesystem::temp_directory_path() / ("troupe-test-" + std::to_string(::getpid()) + "-" + std::to_string(made++));
    std::filesystem::create_directories(path_);
  }
  ~scratch() { std::filesystem::remove_all(path_); }
  scratch(const scratch&) = delete;
  scratch& operator=(const scratch&) = delete;
  std::filesystem::path operator/(const std::string& name) const { return path_ / name; }
  const std::filesystem::path& path() const { return path_; }

  /// Writes a small file without waiting for the disk.
  std::filesystem::path put(const std::string& name, std::string_view bytes) const {
    const auto file = path_ / name;
    std::filesystem::create_directories(file.parent_path());
    FILE* out = std::fopen(file.c_str(), "wb");
    std::fwrite(bytes.data(), 1, bytes.size(), out);
    std::fclose(out);
    return file;
  }

private:
  std::filesystem::path path_;
};

/// A file in memory under a path of its own: thousands of versions of it cost no disk.
class memory_file {
public:
  memory_file() : fd_(::memfd_create("troupe-test", MFD_CLOEXEC)) {}
  ~memory_file() { ::close(fd_); }
  memory_file(const memory_file&) = delete;
  memory_file& operator=(const memory_file&) = delete;
  std::filesystem::path path() const { return "/proc/self/fd/" + std::to_string(fd_); }
  std::filesystem::path put(std::string_view bytes) const {
    EXPECT_EQ(::ftruncate(fd_, 0), 0);
    EXPECT_EQ(::pwrite(fd_, bytes.data(), bytes.size(), 0), ssize_t(bytes.size()));
    return path();
  }

private:
  int fd_;
};

/// The message that `call` throws, with `dir` replaced by "DIR"; empty when it does not throw. Checks that it is one line.
template <class Call>
std::string message_of(const std::filesystem::path& dir, errc expected, Call call) {
  try {
    call();
  } catch (const error& e) {
    std::string text = e.what();
    for (auto at = text.find(dir.string()); at != std::string::npos; at = text.find(dir.string()))
      text.replace(at, dir.string().size(), "DIR");
    EXPECT_EQ(int(e.code()), int(expected)) << text;
    EXPECT_EQ(text.find('\n'), std::string::npos) << text;
    return text;
  }
  return "";
}

/// The elements of a tensor that is stored as T.
template <class T>
std::vector<T> read(const safetensors_reader& file, const std::string& name) {
  const tensor_info* t = file.find(name);
  EXPECT_NE(t, nullptr) << name;
  std::vector<T> v(t->n_bytes / sizeof(T));
  std::memcpy(v.data(), t->bytes.data(), t->n_bytes);
  return v;
}

inline std::filesystem::path reference(const std::string& name) {
  return std::filesystem::path(TROUPE_SOURCE_DIR) / "tests/reference/weights" / name;
}

} // namespace troupe::test
