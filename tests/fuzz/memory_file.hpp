#pragma once
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <string>
#include <sys/mman.h>
#include <unistd.h>

namespace troupe::fuzz {

/// The fuzzer's bytes under a path, without a disk.
class memory_file {
public:
  memory_file(const std::uint8_t* data, std::size_t size) : fd_(::memfd_create("troupe-fuzz", MFD_CLOEXEC)) {
    if (fd_ < 0 || ::write(fd_, data, size) != ssize_t(size))
      ::_exit(1);
  }
  ~memory_file() { ::close(fd_); }
  memory_file(const memory_file&) = delete;
  memory_file& operator=(const memory_file&) = delete;
  std::filesystem::path path() const { return "/proc/self/fd/" + std::to_string(fd_); }

private:
  int fd_;
};

} // namespace troupe::fuzz
