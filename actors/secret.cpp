#include "actors/secret.hpp"
#include "core/error.hpp"
#include <cerrno>
#include <cstring>
#include <fcntl.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

namespace troupe {
namespace {

std::string directory() { return "/tmp/troupe-" + std::to_string(getuid()); }

/// The directory must be this user's alone: /tmp is everybody's.
bool is_private(const std::string& dir) {
  struct stat s {};
  return lstat(dir.c_str(), &s) == 0 && S_ISDIR(s.st_mode) && s.st_uid == getuid() && (s.st_mode & 077) == 0;
}

std::string path_of(std::uint16_t port) { return directory() + '/' + std::to_string(port) + ".secret"; }

[[noreturn]] void refuse(const std::string& path) {
  throw error(errc::io, path + ": cannot keep the run's secret there: " + std::strerror(errno));
}

} // namespace

std::string make_secret() {
  unsigned char bytes[16];
  if (getrandom(bytes, sizeof bytes, 0) != ssize_t(sizeof bytes))
    throw error(errc::io, "the system gave no random bytes for the run's secret");
  std::string out;
  for (const unsigned char b : bytes) {
    out += "0123456789abcdef"[b >> 4];
    out += "0123456789abcdef"[b & 15];
  }
  return out;
}

secret_file::secret_file(std::uint16_t port, const std::string& secret) : path_(path_of(port)) {
  if (mkdir(directory().c_str(), 0700) != 0 && errno != EEXIST)
    refuse(directory());
  if (!is_private(directory()))
    throw error(errc::io, directory() + ": is not this user's alone, so the run's secret cannot be kept there; remove it");
  unlink(path_.c_str());
  const int fd = open(path_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
  if (fd < 0)
    refuse(path_);
  const bool written = write(fd, secret.data(), secret.size()) == ssize_t(secret.size());
  close(fd);
  if (!written)
    refuse(path_);
}

secret_file::~secret_file() { unlink(path_.c_str()); }

std::string read_secret(std::uint16_t port) {
  const std::string path = path_of(port);
  const int fd = is_private(directory()) ? open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW) : -1;
  if (fd < 0)
    throw error(errc::bad_usage, "this user has no run that listens on port " + std::to_string(port) +
                                     " of this machine; join with the address that `troupe train` wrote in log.txt");
  char bytes[64];
  const ssize_t n = read(fd, bytes, sizeof bytes);
  close(fd);
  return n > 0 ? std::string(bytes, std::size_t(n)) : std::string();
}

} // namespace troupe
