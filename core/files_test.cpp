#include "core/error.hpp"
#include "core/files.hpp"
#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <functional>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include <vector>

namespace fs = std::filesystem;

namespace troupe {
namespace {

class files_test : public ::testing::Test {
protected:
  void SetUp() override {
    std::string pattern = (fs::temp_directory_path() / "troupe-files-XXXXXX").string();
    ASSERT_NE(::mkdtemp(pattern.data()), nullptr);
    dir_ = pattern;
  }
  void TearDown() override { fs::remove_all(dir_); }
  std::vector<std::string> names() const {
    std::vector<std::string> out;
    for (const auto& entry : fs::directory_iterator(dir_))
      out.push_back(entry.path().filename().string());
    std::sort(out.begin(), out.end());
    return out;
  }
  fs::path dir_;
};

errc code_of(const std::function<void()>& work, std::string* text = nullptr) {
  try {
    work();
  } catch (const error& e) {
    if (text)
      *text = e.what();
    return e.code();
  }
  return errc{};
}

TEST_F(files_test, a_file_is_read_as_it_was_written) {
  std::string bytes;
  for (int i = 0; i < 100000; ++i)
    bytes.push_back(char(i * 31));
  write_file(dir_ / "a", bytes);
  EXPECT_EQ(read_file(dir_ / "a"), bytes);
  write_file(dir_ / "a", "");
  EXPECT_EQ(read_file(dir_ / "a"), "");
  EXPECT_EQ(names(), std::vector<std::string>{"a"}) << "nothing stays beside the file";
}

TEST_F(files_test, reading_what_cannot_be_read_names_file_and_reason) {
  std::string text;
  EXPECT_EQ(code_of([&] { read_file(dir_ / "none"); }, &text), errc::bad_input);
  EXPECT_EQ(text, "cannot read " + (dir_ / "none").string() + ": No such file or directory");
  EXPECT_EQ(code_of([&] { read_file(dir_); }, &text), errc::bad_input);
  EXPECT_EQ(text, "cannot read " + dir_.string() + ": Is a directory");
}

TEST_F(files_test, a_models_file_ends) {
  write_file(dir_ / "a", "x");
  EXPECT_EQ(read_model_file(dir_ / "a"), "x");
  ASSERT_EQ(::mkfifo((dir_ / "pipe").c_str(), 0600), 0);
  write_file(dir_ / "sparse", "");
  fs::resize_file(dir_ / "sparse", std::uintmax_t(1) << 40);
  fs::create_symlink("loop", dir_ / "loop");
  const std::pair<const char*, const char*> rows[] = {{"pipe", "it is not a regular file"},
                                                      {"sparse", "1099511627776 bytes; at most 1073741824 are read"},
                                                      {"loop", "Too many levels of symbolic links"}};
  for (const auto& [name, reason] : rows) {
    std::string text;
    EXPECT_EQ(code_of([&, file = dir_ / name] { read_model_file(file); }, &text), errc::bad_input);
    EXPECT_EQ(text, "cannot read " + (dir_ / name).string() + ": " + reason);
    EXPECT_TRUE(is_there(dir_ / name)) << name;
  }
  EXPECT_FALSE(is_there(dir_ / "none"));
  EXPECT_FALSE(is_there(dir_ / "a" / "none"));
}

TEST_F(files_test, a_write_that_fails_leaves_the_old_file_and_nothing_else) {
  std::string text;
  EXPECT_EQ(code_of([&] { write_file(dir_ / "none" / "a", "x"); }, &text), errc::io);
  EXPECT_EQ(text, "cannot write " + (dir_ / "none" / "a").string() + ": No such file or directory");
  fs::create_directory(dir_ / "b");
  EXPECT_EQ(code_of([&] { write_file(dir_ / "b", "x"); }), errc::io) << "a directory is in the way";
  EXPECT_EQ(names(), std::vector<std::string>{"b"});
}

TEST_F(files_test, lines_end_in_either_way_and_keep_their_numbers) {
  write_file(dir_ / "a", "one\r\n\n  two \n\r\nthree");
  std::vector<std::pair<std::size_t, std::string>> rows;
  for_each_line(dir_ / "a", [&](std::size_t number, std::string_view line) { rows.emplace_back(number, line); });
  const std::vector<std::pair<std::size_t, std::string>> expected = {{1, "one"}, {3, "  two "}, {5, "three"}};
  EXPECT_EQ(rows, expected);
}

TEST_F(files_test, a_staged_directory_appears_whole) {
  {
    staged_directory staged(dir_ / "deep" / "out/");
    std::ofstream(staged.path() / "a") << "x";
    fs::create_directory(staged.path() / "sub");
    std::ofstream(staged.path() / "sub" / "b") << "y";
    EXPECT_FALSE(fs::exists(dir_ / "deep" / "out"));
    staged.commit();
  }
  EXPECT_EQ(read_file(dir_ / "deep" / "out" / "a"), "x");
  EXPECT_EQ(read_file(dir_ / "deep" / "out" / "sub" / "b"), "y");
}

TEST_F(files_test, a_staged_directory_that_is_not_committed_leaves_nothing) {
  { staged_directory staged(dir_ / "out"); }
  EXPECT_TRUE(names().empty());
}

TEST_F(files_test, a_staged_directory_may_replace_an_empty_one_only) {
  fs::create_directory(dir_ / "out");
  {
    staged_directory staged(dir_ / "out");
    std::ofstream(staged.path() / "a") << "x";
    staged.commit();
  }
  EXPECT_TRUE(fs::exists(dir_ / "out" / "a"));
  std::string text;
  EXPECT_EQ(code_of([&] { staged_directory again(dir_ / "out"); }, &text), errc::bad_input);
  EXPECT_EQ(text, "the directory " + (dir_ / "out").string() + " must not exist or be empty; name another or remove it");
  EXPECT_EQ(code_of([&] { staged_directory file(dir_ / "out" / "a"); }), errc::bad_input);
  EXPECT_EQ(code_of([&] { staged_directory below_a_file(dir_ / "out" / "a" / "b"); }), errc::io);
}

TEST_F(files_test, what_a_killed_process_left_is_removed) {
  const pid_t child = ::fork();
  if (child == 0) {
    new staged_directory(dir_ / "out");
    ::_exit(0); // no destructor runs
  }
  ASSERT_EQ(::waitpid(child, nullptr, 0), child);
  ASSERT_EQ(names().size(), 1u);
  {
    staged_directory staged(dir_ / "out");
    staged.commit();
  }
  EXPECT_EQ(names(), std::vector<std::string>{"out"});
}

} // namespace
} // namespace troupe
