#include "model/weights/mapped_file.hpp"
#include "core/error.hpp"
#include <cerrno>
#include <cstring>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <utility>

namespace troupe {

namespace {

/// Closes a descriptor at the end of its scope; a mapping outlives it.
struct descriptor {
  int fd;
  ~descriptor() {
    if (fd >= 0)
      ::close(fd);
  }
};

[[noreturn]] void refuse(const std::filesystem::path& file, const std::string& reason) {
  throw error(errc::bad_input, "cannot read " + file.string() + ": " + reason);
}

} // namespace

mapped_file::mapped_file(const std::filesystem::path& file) {
  // O_NONBLOCK: opening a named pipe must not wait for a writer.
  const descriptor opened{::open(file.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)};
  if (opened.fd < 0)
    refuse(file, std::strerror(errno));
  struct stat status {};
  if (::fstat(opened.fd, &status) != 0)
    refuse(file, std::strerror(errno));
  if (!S_ISREG(status.st_mode))
    refuse(file, S_ISDIR(status.st_mode) ? "it is a directory" : "it is not a regular file");
  if (status.st_size == 0)
    refuse(file, "it is empty");
  void* mapped = ::mmap(nullptr, std::size_t(status.st_size), PROT_READ, MAP_PRIVATE, opened.fd, 0);
  if (mapped == MAP_FAILED)
    refuse(file, std::strerror(errno));
  data_ = static_cast<const std::byte*>(mapped);
  size_ = std::size_t(status.st_size);
}

mapped_file::mapped_file(mapped_file&& other) noexcept : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

mapped_file::~mapped_file() {
  if (data_ != nullptr)
    ::munmap(const_cast<std::byte*>(data_), size_);
}

} // namespace troupe
