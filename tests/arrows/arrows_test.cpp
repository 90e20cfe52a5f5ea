// No include arrow climbs; CAF, torch and CUDA stay where they belong (README, "Folders").
#include <cctype>
#include <filesystem>
#include <fstream>
#include <gtest/gtest.h>
#include <map>
#include <set>
#include <sstream>
#include <string>
#include <vector>

namespace {

namespace fs = std::filesystem;

/// What each folder may include, itself left out.
const std::map<std::string, std::set<std::string>>& allowed_arrows() {
  static const std::map<std::string, std::set<std::string>> arrows = {
      {"core", {}},
      {"model", {"core"}},
      {"experience", {"core", "model"}},
      {"rollout", {"core", "model", "experience"}},
      {"learner", {"core", "model", "experience"}},
      {"weightsync", {"core", "model", "experience"}},
      {"actors", {"core", "model", "experience", "rollout", "learner", "weightsync"}},
      {"cli", {"core", "model", "experience", "rollout", "learner", "weightsync", "actors"}},
  };
  return arrows;
}

bool starts_with_any(const std::string& text, const std::vector<std::string>& prefixes) {
  for (const auto& prefix : prefixes)
    if (text.starts_with(prefix))
      return true;
  return false;
}

/// The header that a line includes, "" for other lines.
std::string included(const std::string& line) {
  std::size_t at = line.find_first_not_of(" \t");
  if (at == std::string::npos || line[at] != '#')
    return "";
  at = line.find_first_not_of(" \t", at + 1);
  if (at == std::string::npos || line.compare(at, 7, "include") != 0)
    return "";
  const std::size_t open = line.find_first_of("\"<", at + 7);
  if (open == std::string::npos)
    return "";
  const std::size_t close = line.find(line[open] == '<' ? '>' : '"', open + 1);
  return close == std::string::npos ? "" : line.substr(open + 1, close - open - 1);
}

/// Why `file` (its path from the root) may not include `header`; "" if it may.
std::string objection(const std::string& file, const std::string& header) {
  const auto& arrows = allowed_arrows();
  const std::string from = file.substr(0, file.find('/'));
  const std::string to = header.substr(0, header.find('/'));
  const bool is_test = file.ends_with("_test.cpp") || from == "tests";
  const bool is_device_code = file.ends_with(".cu") || file.ends_with(".cuh");
  if (header.starts_with("..") || header.find("/../") != std::string::npos)
    return "names a path upwards";
  if (arrows.contains(from) && arrows.contains(to) && header.find('/') != std::string::npos && from != to && !arrows.at(from).contains(to))
    return from + "/ may not include " + to + "/";
  if (starts_with_any(header, {"caf/"}) && from != "actors" && from != "cli" && !is_test)
    return "CAF stays in actors/ and cli/";
  if (starts_with_any(header, {"torch/", "ATen/", "c10/"}) && from != "model" && !is_test && from != "bench")
    return "torch stays in model/";
  if (header == "torch/torch.h" || header == "torch/all.h" || header == "ATen/ATen.h" || header == "ATen/Functions.h")
    return "costs half a minute to compile; include ATen/ops/<operator>.h";
  if (is_device_code && starts_with_any(header, {"torch/", "ATen/", "c10/"}))
    return "device code takes raw pointers, not tensors";
  if (!is_device_code && starts_with_any(header, {"cuda", "cublas", "nccl", "cub/", "cute/", "cutlass/", "mma.h"}))
    return "CUDA stays in .cu files";
  return "";
}

/// Every forbidden include of one file: "file:line: header: why".
std::vector<std::string> findings(const std::string& file, std::istream& text) {
  std::vector<std::string> found;
  std::string line;
  for (int number = 1; std::getline(text, line); ++number)
    if (const std::string header = included(line); !header.empty())
      if (const std::string why = objection(file, header); !why.empty())
        found.push_back(file + ":" + std::to_string(number) + ": " + header + ": " + why);
  return found;
}

bool is_source(const fs::path& path) {
  static const std::set<std::string> endings = {".hpp", ".cpp", ".inl", ".cu", ".cuh", ".h"};
  return endings.contains(path.extension().string());
}

struct include_case {
  const char* file;
  const char* line;
  bool forbidden;
};

TEST(arrows, table_of_includes) {
  const include_case cases[] = {
      {"core/error.cpp", "#include \"core/error.hpp\"", false},
      {"core/error.cpp", "#include \"model/config.hpp\"", true},
      {"model/llama.cpp", "#include \"experience/packing.hpp\"", true},
      {"rollout/generator.cpp", "#include \"learner/loss.hpp\"", true},
      {"learner/learner.cpp", "#include \"rollout/sampler.hpp\"", true},
      {"learner/learner.cpp", "#include \"weightsync/channel.hpp\"", true},
      {"weightsync/zmq.cpp", "#include \"rollout/generator.hpp\"", true},
      {"weightsync/zmq.cpp", "#include \"model/causal_lm.hpp\"", false},
      {"actors/learner.cpp", "#include \"cli/command.hpp\"", true},
      {"actors/learner.cpp", "#include \"learner/learner.hpp\"", false},
      {"actors/learner.cpp", "#include <caf/all.hpp>", false},
      {"cli/train.cpp", "# include <caf/io/all.hpp>", false},
      {"experience/channel.cpp", "#include <caf/all.hpp>", true},
      {"model/llama.cpp", "#include <ATen/ops/mm.h>", false},
      {"model/llama.cpp", "#include <ATen/ATen.h>", true},
      {"model/llama.cpp", "#include <torch/torch.h>", true},
      {"learner/loss.cpp", "#include <ATen/ops/mm.h>", true},
      {"learner/loss_test.cpp", "#include <ATen/ops/mm.h>", false},
      {"actors/learner.cpp", "#include <ATen/core/Tensor.h>", true},
      {"model/kernels/cuda/norm.cu", "#include <cuda_bf16.h>", false},
      {"model/kernels/cuda/norm.cu", "#include <ATen/core/Tensor.h>", true},
      {"model/kernels/cuda/norm.hpp", "#include <cuda_runtime.h>", true},
      {"model/llama.cpp", "#include \"../core/error.hpp\"", true},
      {"core/error.cpp", "// #include \"model/config.hpp\"", false},
      {"cli/main.cpp", "#include <CLI/CLI.hpp>", false},
      {"tests/run/kill_test.cpp", "#include <caf/all.hpp>", false},
  };
  for (const auto& [file, line, forbidden] : cases) {
    std::istringstream text(line);
    EXPECT_EQ(findings(file, text).size(), forbidden ? 1u : 0u) << file << ": " << line;
  }
}

TEST(arrows, the_tree_has_no_forbidden_include) {
  const fs::path root = TROUPE_SOURCE_DIR;
  std::size_t n_files = 0;
  for (const auto* folder : {"core", "model", "experience", "rollout", "learner", "weightsync", "actors", "cli", "tests", "bench"})
    for (const auto& entry : fs::recursive_directory_iterator(root / folder))
      if (is_source(entry.path())) {
        ++n_files;
        std::ifstream text(entry.path());
        for (const auto& finding : findings(fs::relative(entry.path(), root).string(), text))
          ADD_FAILURE() << finding;
      }
  EXPECT_GT(n_files, 20u) << "no sources below " << root;
}

} // namespace
