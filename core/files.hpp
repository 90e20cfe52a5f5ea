#pragma once
#include <cstddef>
#include <filesystem>
#include <functional>
#include <string>
#include <string_view>

namespace troupe {

/// The system's words for an errno of a write, and what helps where a user can help: "No space left on device; free some".
std::string write_failure(int code);

/// Whole file as bytes. Throws errc::bad_input naming the file and the reason.
std::string read_file(const std::filesystem::path& file);

/// The same of a file that came with a model: a pipe or a device, which may never end, and more than 1 GiB are refused.
std::string read_model_file(const std::filesystem::path& file);

/// Whether something has this name, a link to nowhere or to itself included: reading it then says what is wrong. Does not throw.
bool is_there(const std::filesystem::path& path) noexcept;

/// Writes beside and renames: the file is the old or the new one, never half. fsyncs. Throws errc::io.
void write_file(const std::filesystem::path& file, std::string_view bytes);

/// Calls `row(line_number, line)` for each non-empty line, numbers from 1. A line ends in \n or \r\n. Throws errc::bad_input.
void for_each_line(const std::filesystem::path& file, const std::function<void(std::size_t, std::string_view)>& row);

/// A directory that is complete or absent: write into `path()`, then `commit()` renames it to the target.
/// The destructor removes what was not committed. Construction throws errc::bad_input when the target exists and is not empty.
class staged_directory {
public:
  explicit staged_directory(const std::filesystem::path& target);
  ~staged_directory();
  staged_directory(const staged_directory&) = delete;
  staged_directory& operator=(const staged_directory&) = delete;
  const std::filesystem::path& path() const { return staging_; }
  void commit(); // fsyncs the files and the directory

private:
  std::filesystem::path target_, staging_;
  bool committed_ = false;
};

} // namespace troupe
