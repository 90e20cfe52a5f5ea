// Encoding on one thread, of the repository's own prose and code by paragraph; bench/peer_tokenizer.py does the same with the
// `tokenizers` package.   bench_tokenizer [DIR [FILE...]]   default: models/smollm2-135m, README.md, docs/*.md, model/**/*.cpp
// mb_per_s = bytes of all texts / seconds of the fastest of five passes / 10^6; first_mb_per_s: the first pass, caches empty.
// decode_mb_per_s: the same texts' ids back to text. sum: of all ids, equal to the package's.
#include "model/tokenizer/tokenizer.hpp"
#include "core/files.hpp"
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <string>
#include <vector>

using namespace troupe;

namespace {

std::vector<std::filesystem::path> default_files() {
  std::vector<std::filesystem::path> files = {"README.md"};
  for (const auto& entry : std::filesystem::recursive_directory_iterator("."))
    if (const auto path = entry.path().lexically_normal();
        (path.extension() == ".md" && *path.begin() == "docs") || (path.extension() == ".cpp" && *path.begin() == "model"))
      files.push_back(path);
  std::sort(files.begin() + 1, files.end());
  return files;
}

std::vector<std::string> paragraphs(const std::vector<std::filesystem::path>& files) {
  std::vector<std::string> out;
  for (const auto& file : files) {
    const auto text = read_file(file);
    for (std::size_t begin = 0; begin < text.size();) {
      const auto end = std::min(text.find("\n\n", begin), text.size());
      if (end > begin)
        out.push_back(text.substr(begin, end - begin));
      begin = end + 2;
    }
  }
  return out;
}

template <class F>
double seconds(F&& f) {
  const auto begin = std::chrono::steady_clock::now();
  f();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

} // namespace

int main(int argc, char** argv) {
  const auto tok = tokenizer::load(argc > 1 ? argv[1] : "models/smollm2-135m");
  const auto texts = paragraphs(argc > 2 ? std::vector<std::filesystem::path>(argv + 2, argv + argc) : default_files());
  std::size_t bytes = 0, sum = 0, tokens = 0;
  for (const auto& text : texts)
    bytes += text.size();
  std::vector<std::vector<std::int32_t>> ids(texts.size());
  const auto pass = [&] {
    for (std::size_t i = 0; i < texts.size(); ++i)
      ids[i] = tok->encode(texts[i], true);
  };
  const double first = seconds(pass);
  double best = first, back = 1e30;
  for (int i = 1; i < 5; ++i)
    best = std::min(best, seconds(pass));
  for (int i = 0; i < 5; ++i)
    back = std::min(back, seconds([&] {
                      for (const auto& list : ids)
                        tok->decode(list, false);
                    }));
  for (const auto& list : ids) {
    tokens += list.size();
    for (const auto id : list)
      sum += static_cast<std::size_t>(id);
  }
  const double mb = double(bytes) * 1e-6;
  std::printf("{\"texts\": %zu, \"bytes\": %zu, \"tokens\": %zu, \"sum\": %zu, \"first_mb_per_s\": %.2f, \"mb_per_s\": %.2f, "
              "\"decode_mb_per_s\": %.2f}\n",
              texts.size(), bytes, tokens, sum, mb / first, mb / best, mb / back);
}
