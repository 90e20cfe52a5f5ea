#include "cli/line_file.hpp"
#include "core/error.hpp"
#include "core/files.hpp"
#include <cerrno>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <fcntl.h>
#include <nlohmann/json.hpp>
#include <unistd.h>
#include <utility>
#include <vector>

namespace fs = std::filesystem;

namespace troupe {

line_file::line_file(const std::filesystem::path& file) : file_(file) {
  std::signal(SIGPIPE, SIG_IGN); // write says EPIPE instead
  fd_ = ::open(file.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
  if (fd_ < 0)
    fail("cannot open");
}

line_file::~line_file() {
  if (fd_ >= 0)
    ::close(fd_);
}

void line_file::write(std::string_view lines) {
  while (!lines.empty()) {
    const auto n = ::write(fd_, lines.data(), lines.size());
    if (n < 0 && errno != EINTR)
      fail("cannot write");
    lines.remove_prefix(n > 0 ? std::size_t(n) : 0);
  }
}

void line_file::close() {
  if (::close(std::exchange(fd_, -1)) != 0)
    fail("cannot finish");
}

void line_file::fail(const char* what) const {
  throw error{errc::io, std::string(what) + " " + file_.string() + ": " + write_failure(errno)};
}

void write_lines(const fs::path& file, std::string_view lines) {
  std::error_code ignored;
  const auto kind = fs::symlink_status(file, ignored).type();
  if (kind == fs::file_type::regular || kind == fs::file_type::not_found)
    return write_file(file, lines);
  line_file out(file);
  out.write(lines);
  out.close();
}

void check_output(const fs::path& file) {
  const auto refuse = [&](const std::string& why) { throw error{errc::bad_usage, "--output " + file.string() + ": " + why}; };
  std::error_code ignored;
  const auto kind = fs::status(file, ignored).type();
  if (kind == fs::file_type::directory)
    refuse("is a directory; a file is wanted");
  const fs::path dir = file.has_parent_path() ? file.parent_path() : fs::path(".");
  const bool is_new = kind == fs::file_type::not_found;
  if (file.filename().empty() || (is_new && !fs::is_directory(dir, ignored)))
    refuse("there is no directory " + dir.string() + "; make it first");
  if (access(is_new ? dir.c_str() : file.c_str(), W_OK) != 0)
    refuse("cannot be written: " + write_failure(errno) + " or name another");
}

namespace {

void append(std::string& out, std::int32_t v) { out += std::to_string(v); }

void append(std::string& out, float v) {
  char text[32];
  std::snprintf(text, sizeof text, "%.9g", double(v));
  out += text;
}

} // namespace

template <class T>
std::string json_list(const T& values) {
  std::string out = "[";
  for (std::size_t i = 0; i < values.size(); ++i) {
    if (i > 0)
      out += ", ";
    append(out, values[i]);
  }
  return out + "]";
}

template std::string json_list(const std::vector<std::int32_t>&);
template std::string json_list(const std::vector<float>&);

std::string json_text(std::string_view text) { return nlohmann::json(text).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace); }

} // namespace troupe
