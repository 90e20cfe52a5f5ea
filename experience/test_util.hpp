#pragma once
#include "core/error.hpp"
#include <filesystem>
#include <fstream>
#include <gtest/gtest.h>
#include <string>
#include <string_view>
#include <unistd.h>

namespace troupe {

/// A directory of its own for a test, removed afterwards.
class temporary_directory {
public:
  temporary_directory() {
    std::string name = (std::filesystem::temp_directory_path() / "troupe-XXXXXX").string();
    if (!mkdtemp(name.data()))
      throw std::runtime_error("mkdtemp failed");
    path_ = name;
  }
  ~temporary_directory() { std::filesystem::remove_all(path_); }
  temporary_directory(const temporary_directory&) = delete;
  temporary_directory& operator=(const temporary_directory&) = delete;
  const std::filesystem::path& path() const { return path_; }
  std::string write(const std::string& name, std::string_view text) const {
    std::ofstream(path_ / name, std::ios::binary) << text;
    return (path_ / name).string();
  }

private:
  std::filesystem::path path_;
};

/// Expects a troupe::error with that code, in one line that holds every part; returns the text.
template <class F>
std::string expect_error(errc code, std::initializer_list<std::string_view> parts, F&& f) {
  try {
    f();
  } catch (const error& e) {
    const std::string text = e.what();
    EXPECT_EQ(int(e.code()), int(code)) << text;
    EXPECT_EQ(text.find('\n'), std::string::npos) << text;
    for (std::string_view part : parts)
      EXPECT_NE(text.find(part), std::string::npos) << "\"" << part << "\" is not in: " << text;
    return text;
  }
  ADD_FAILURE() << "no error was thrown";
  return {};
}

} // namespace troupe
