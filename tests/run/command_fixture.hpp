#pragma once
#include "tests/run/tiny_run.hpp"
#include <fstream>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>
#include <sstream>

namespace troupe {

namespace fs = std::filesystem;
using namespace std::chrono_literals;
using nlohmann::json;

constexpr auto deadline = 120s; // generous: a loaded machine

using words = std::vector<std::string>;

inline words operator+(words a, const words& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

/// The program's commands as processes, on the tiny model. In arguments and messages "DIR/" stands for the test's directory.
struct command_files : ::testing::Test {
  static tiny_world& world() {
    static tiny_world w;
    return w;
  }
  static fs::path dir() { return world().dir(); }
  static std::string put(const std::string& name, const std::string& text) {
    std::ofstream(dir() / name, std::ios::binary) << text;
    return (dir() / name).string();
  }
  static std::string placed(std::string text) {
    for (auto at = text.find("DIR/"); at != std::string::npos; at = text.find("DIR/", at))
      text.replace(at, 3, dir().string());
    return text;
  }
  static program start(const words& arguments, const surroundings& around = {}) {
    words all;
    for (const auto& a : arguments)
      all.push_back(placed(a));
    return program(all, dir() / "output", around);
  }
  static std::string result(const words& arguments, const surroundings& around = {}) {
    auto p = start(arguments, around);
    EXPECT_EQ(p.wait(deadline), 0) << p.err();
    return p.out();
  }

  static std::string jsonl(const std::vector<json>& rows) {
    std::string out;
    for (const auto& row : rows)
      out += row.dump() + '\n';
    return out;
  }
  static std::vector<json> rows_of(const std::string& text) {
    std::vector<json> out;
    std::istringstream in(text);
    for (std::string line; std::getline(in, line);)
      out.push_back(json::parse(line));
    return out;
  }
};

} // namespace troupe
