#include "core/files.hpp"
#include "core/error.hpp"
#include <algorithm>
#include <cerrno>
#include <charconv>
#include <csignal>
#include <cstring>
#include <fcntl.h>
#include <sys/stat.h>
#include <system_error>
#include <unistd.h>
#include <utility>
#include <vector>

namespace fs = std::filesystem;

namespace troupe {
namespace {

/// Owns a file descriptor.
class descriptor {
public:
  explicit descriptor(int fd) : fd_(fd) {}
  ~descriptor() {
    if (fd_ >= 0)
      ::close(fd_);
  }
  descriptor(const descriptor&) = delete;
  descriptor& operator=(const descriptor&) = delete;
  int get() const { return fd_; }
  /// Closes and reports what only close reports (a full disk over NFS).
  bool close() { return ::close(std::exchange(fd_, -1)) == 0; }

private:
  int fd_;
};

std::string reason(int code) { return std::generic_category().message(code); }

[[noreturn]] void fail_io(const char* what, const fs::path& file, int code) {
  throw error(errc::io, std::string(what) + " " + file.string() + ": " + write_failure(code));
}

void write_all(int fd, std::string_view bytes, const fs::path& file) {
  while (!bytes.empty()) {
    const ssize_t n = ::write(fd, bytes.data(), bytes.size());
    if (n < 0 && errno == EINTR)
      continue;
    if (n < 0)
      fail_io("cannot write", file, errno);
    bytes.remove_prefix(std::size_t(n));
  }
}

void sync_path(const fs::path& path) {
  descriptor fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (fd.get() < 0)
    fail_io("cannot open", path, errno);
  // Some file systems cannot sync a directory; they say EINVAL, and there is nothing more to do.
  if (::fsync(fd.get()) != 0 && errno != EINVAL)
    fail_io("cannot flush", path, errno);
}

void sync_tree(const fs::path& dir) {
  for (const auto& entry : fs::recursive_directory_iterator(dir)) {
    if (entry.is_regular_file() || entry.is_directory())
      sync_path(entry.path());
  }
  sync_path(dir);
}

fs::path parent_of(const fs::path& path) { return path.has_parent_path() ? path.parent_path() : fs::path("."); }

std::string staging_prefix(const fs::path& target) { return "." + target.filename().string() + ".partial."; }

/// Removes what killed processes left of earlier attempts at the same target.
void remove_leftovers(const fs::path& target) {
  const std::string prefix = staging_prefix(target);
  std::error_code ignored;
  std::vector<fs::path> dead;
  for (const auto& entry : fs::directory_iterator(target.parent_path(), ignored)) {
    const std::string name = entry.path().filename().string();
    if (name.rfind(prefix, 0) != 0)
      continue;
    pid_t pid = 0;
    const auto [end, code] = std::from_chars(name.data() + prefix.size(), name.data() + name.size(), pid);
    if (code == std::errc() && end == name.data() + name.size() && pid > 0 && ::kill(pid, 0) != 0 && errno == ESRCH)
      dead.push_back(entry.path());
  }
  for (const auto& path : dead)
    fs::remove_all(path, ignored);
}

} // namespace

std::string write_failure(int code) {
  switch (code) {
  case ENOSPC:
  case EDQUOT:
    return reason(code) + "; free some space there";
  case EFBIG:
    return reason(code) + "; raise the limit on the size of files (ulimit -f)";
  case EACCES:
  case EPERM:
  case EROFS:
    return reason(code) + "; make it writable";
  default:
    return reason(code);
  }
}

static std::string read_all(const descriptor& fd, const fs::path& file) {
  struct stat info {};
  std::string bytes;
  if (::fstat(fd.get(), &info) == 0 && S_ISREG(info.st_mode))
    bytes.reserve(std::size_t(info.st_size) + 1);
  // The size is only a hint: pipes have none, and a file may grow.
  for (;;) {
    const std::size_t have = bytes.size();
    bytes.resize(std::max(bytes.capacity(), have + 4096));
    const ssize_t n = ::read(fd.get(), bytes.data() + have, bytes.size() - have);
    if (n < 0 && errno != EINTR)
      throw error(errc::bad_input, "cannot read " + file.string() + ": " + reason(errno));
    bytes.resize(have + std::size_t(std::max<ssize_t>(n, 0)));
    if (n == 0)
      return bytes;
  }
}

static descriptor open_to_read(const fs::path& file, int flags) {
  const int fd = ::open(file.c_str(), O_RDONLY | O_CLOEXEC | flags);
  if (fd < 0)
    throw error(errc::bad_input, "cannot read " + file.string() + ": " + reason(errno));
  return descriptor(fd);
}

std::string read_file(const fs::path& file) { return read_all(open_to_read(file, 0), file); }

std::string read_model_file(const fs::path& file) {
  constexpr off_t most = off_t(1) << 30;
  const descriptor fd = open_to_read(file, O_NONBLOCK); // opening a pipe must not wait for its writer
  struct stat info {};
  if (::fstat(fd.get(), &info) != 0)
    throw error(errc::bad_input, "cannot read " + file.string() + ": " + reason(errno));
  if (!S_ISREG(info.st_mode))
    throw error(errc::bad_input,
                "cannot read " + file.string() + ": it is " + (S_ISDIR(info.st_mode) ? "a directory" : "not a regular file"));
  if (info.st_size > most)
    throw error(errc::bad_input, "cannot read " + file.string() + ": " + std::to_string(info.st_size) + " bytes; at most " +
                                     std::to_string(most) + " are read");
  return read_all(fd, file);
}

bool is_there(const fs::path& path) noexcept {
  std::error_code ignored;
  return fs::exists(fs::symlink_status(path, ignored));
}

void write_file(const fs::path& file, std::string_view bytes) {
  const fs::path beside = parent_of(file) / ("." + file.filename().string() + ".tmp." + std::to_string(::getpid()));
  try {
    descriptor fd(::open(beside.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666));
    if (fd.get() < 0)
      fail_io("cannot write", file, errno);
    write_all(fd.get(), bytes, file);
    if (::fsync(fd.get()) != 0 || !fd.close())
      fail_io("cannot flush", file, errno);
    if (::rename(beside.c_str(), file.c_str()) != 0)
      fail_io("cannot write", file, errno);
  } catch (const error&) {
    ::unlink(beside.c_str());
    throw;
  }
  sync_path(parent_of(file));
}

void for_each_line(const fs::path& file, const std::function<void(std::size_t, std::string_view)>& row) {
  const std::string bytes = read_file(file);
  std::string_view rest = bytes;
  for (std::size_t number = 1; !rest.empty(); ++number) {
    const std::size_t end = rest.find('\n');
    std::string_view line = rest.substr(0, end);
    rest.remove_prefix(end == std::string_view::npos ? rest.size() : end + 1);
    if (!line.empty() && line.back() == '\r')
      line.remove_suffix(1);
    if (!line.empty())
      row(number, line);
  }
}

staged_directory::staged_directory(const fs::path& target) {
  std::error_code code;
  target_ = fs::absolute(target, code).lexically_normal();
  if (!target_.has_filename()) // "out/" names "out"
    target_ = target_.parent_path();
  if (fs::exists(target_, code) && (!fs::is_directory(target_, code) || !fs::is_empty(target_, code)))
    throw error(errc::bad_input, "the directory " + target.string() + " must not exist or be empty; name another or remove it");
  const fs::path parent = target_.parent_path();
  fs::create_directories(parent, code);
  if (code)
    fail_io("cannot create", parent, code.value());
  remove_leftovers(target_);
  staging_ = parent / (staging_prefix(target_) + std::to_string(::getpid()));
  fs::remove_all(staging_, code);
  if (::mkdir(staging_.c_str(), 0777) != 0)
    fail_io("cannot create", staging_, errno);
}

staged_directory::~staged_directory() {
  if (committed_)
    return;
  std::error_code ignored;
  fs::remove_all(staging_, ignored);
}

void staged_directory::commit() {
  sync_tree(staging_);
  if (::rename(staging_.c_str(), target_.c_str()) != 0)
    fail_io("cannot create", target_, errno);
  committed_ = true;
  sync_path(target_.parent_path());
}

} // namespace troupe
