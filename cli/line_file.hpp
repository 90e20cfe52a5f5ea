#pragma once
#include <filesystem>
#include <string>
#include <string_view>

namespace troupe {

/// A result file whose lines a reader sees as soon as they are written. Opening empties it: open when the input is known to be good.
/// A reader that went away or a full disk is errc::io with the file's name, not a signal. One thread.
class line_file {
public:
  explicit line_file(const std::filesystem::path& file);
  ~line_file();
  line_file(const line_file&) = delete;
  line_file& operator=(const line_file&) = delete;
  /// `lines`: whole lines with their ends.
  void write(std::string_view lines);
  /// Reports what only closing reports.
  void close();

private:
  [[noreturn]] void fail(const char* what) const;
  std::filesystem::path file_;
  int fd_ = -1;
};

/// Whole lines at once: a file is the old or the new one, never half; a pipe or a terminal gets them as they are. Throws errc::io.
void write_lines(const std::filesystem::path& file, std::string_view lines);

/// A result file that cannot be written is wrong usage, said before any work is done. Throws errc::bad_usage; changes nothing.
void check_output(const std::filesystem::path& file);

/// A JSON list of numbers: ids, or float32 with the 9 digits that bring the same bits back.
template <class T>
std::string json_list(const T& values);

/// A JSON string; what is not UTF-8 becomes U+FFFD.
std::string json_text(std::string_view text);

} // namespace troupe
