// How fast a model directory is mapped and loaded, against copying its file out of the page cache with the same threads.
// bench_load [LAYERS [THREADS [TYPE]]]   default: 28 (6.4 GB, the shapes of Llama 3.2 3B), one a core, BF16 in the file (or F32, F16);
// compute in bfloat16 rate = bytes of weights / seconds until the last tensor is read (making the model and validating the header
// included); copy_rate = the same bytes / seconds of copying them into fresh memory: the better of pread and of memcpy from a mapping;
// share = rate / copy_rate, of the medians of three rounds in turn (at least 0.8); ready_seconds: with the layout for the kernels;
// beside_mib: the most memory that is no file's until the last tensor is read - the tensors (at most 64).
#include "model/compute.hpp"
#include "model/kernels/thread_pool.hpp"
#include "model/layout.hpp"
#include "model/registry.hpp"
#include "model/weights/mapped_file.hpp"
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fcntl.h>
#include <filesystem>
#include <fstream>
#include <malloc.h>
#include <nlohmann/json.hpp>
#include <string>
#include <sys/mman.h>
#include <thread>
#include <unistd.h>

namespace troupe {
namespace {

namespace fs = std::filesystem;
using clock = std::chrono::steady_clock;

double since(clock::time_point begin) { return std::chrono::duration<double>(clock::now() - begin).count(); }

model_config llama_3b(int layers) {
  model_config cfg;
  cfg.architecture = "LlamaForCausalLM";
  cfg.vocab_size = 128256;
  cfg.n_layers = layers;
  cfg.tie_word_embeddings = true;
  cfg.layer.hidden = 3072;
  cfg.layer.intermediate = 8192;
  cfg.layer.n_heads = 24;
  cfg.layer.n_kv_heads = 8;
  cfg.layer.head_dim = 128;
  return cfg;
}

// Random finite numbers; returns the bytes of the tensors.
std::uint64_t write_model(const model_config& cfg, const fs::path& file, const std::string& type) {
  const std::uint64_t width = type == "F32" ? 4 : 2;
  nlohmann::json header;
  std::uint64_t end = 0;
  for (const auto& t : tensors_of(cfg)) {
    header[t.name] = {{"dtype", type}, {"shape", t.shape}, {"data_offsets", {end, end + t.numel() * width}}};
    end += t.numel() * width;
  }
  std::string text = header.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');
  const std::uint64_t length = text.size();
  std::ofstream out(file, std::ios::binary);
  out.write(reinterpret_cast<const char*>(&length), 8) << text;
  std::vector<std::uint32_t> piece(1 << 22);
  std::uint32_t x = 1;
  for (auto& v : piece) {
    x = x * 1664525u + 1013904223u;
    v = x & 0xBFFFBFFFu; // no exponent of ones
  }
  for (std::uint64_t at = 0; at < end; at += piece.size() * 4)
    out.write(reinterpret_cast<const char*>(piece.data()), std::streamsize(std::min<std::uint64_t>(piece.size() * 4, end - at)));
  return end;
}

// Seconds of copying the file into fresh memory, pieces of 1 MiB on all threads.
template <class Copy>
double copy_seconds(compute& where, std::uint64_t bytes, Copy copy) {
  constexpr std::uint64_t piece = 1 << 20;
  const auto begin = clock::now();
  void* to = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  madvise(to, bytes, MADV_HUGEPAGE);
  where.pool().each(std::int64_t((bytes + piece - 1) / piece), [&](std::int64_t i) {
    const std::uint64_t at = std::uint64_t(i) * piece;
    copy(static_cast<char*>(to) + at, at, std::min(piece, bytes - at));
  });
  const double seconds = since(begin);
  munmap(to, bytes);
  return seconds;
}

double copied_by_pread(compute& where, const fs::path& file, std::uint64_t bytes) {
  const int fd = open(file.c_str(), O_RDONLY);
  const double seconds = copy_seconds(where, bytes, [&](char* to, std::uint64_t at, std::uint64_t n) {
    if (pread(fd, to, n, off_t(at)) != ssize_t(n))
      std::abort();
  });
  close(fd);
  return seconds;
}

double copied_by_memcpy(compute& where, const fs::path& file, std::uint64_t bytes) {
  const auto begin = clock::now();
  const mapped_file mapped(file);
  copy_seconds(where, bytes, [&](char* to, std::uint64_t at, std::uint64_t n) { std::memcpy(to, mapped.bytes().data() + at, n); });
  return since(begin);
}

// A line "NAME: N kB" of /proc/self/status, in MiB.
double status_mib(const std::string& name) {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);)
    if (line.starts_with(name + ":"))
      return double(std::strtoull(line.c_str() + name.size() + 1, nullptr, 10)) / 1024;
  return 0;
}

struct loaded {
  double read, whole; // seconds until the last tensor was read, and until the model can run
  double beside;      // most memory that is no file's while reading, less the tensors, MiB
};

// Samples the largest RssAnon while it lives.
class watched_memory {
public:
  watched_memory()
      : thread_([this] {
          while (!done_) {
            most_ = std::max<double>(most_, status_mib("RssAnon"));
            std::this_thread::sleep_for(std::chrono::milliseconds(5));
          }
        }) {}
  double stop() {
    done_ = true;
    if (thread_.joinable())
      thread_.join();
    return most_;
  }

private:
  std::atomic<bool> done_{false};
  double most_ = 0;
  std::thread thread_;
};

loaded load(const model_config& cfg, const fs::path& dir, compute& where, std::uint64_t tensors) {
  loaded out{};
  const double before = status_mib("RssAnon");
  watched_memory memory;
  const auto begin = clock::now();
  const auto model = make_model(cfg, {dtype::bf16, false, {}, nullptr}, where);
  load_weights(*model, dir, {&where, [&](std::uint64_t read, std::uint64_t all) {
                               if (read < all)
                                 return;
                               out.read = since(begin);
                               out.beside = memory.stop() - before - double(tensors) / (1 << 20);
                             }});
  out.whole = since(begin);
  return out;
}

double median(std::vector<double> of) {
  std::sort(of.begin(), of.end());
  return of[of.size() / 2];
}

int run(int layers, int threads, const std::string& type) {
  const model_config cfg = llama_3b(layers);
  const fs::path dir = fs::temp_directory_path() / "troupe-load", file = dir / "model.safetensors";
  fs::create_directories(dir);
  const std::uint64_t bytes = write_model(cfg, file, type);
  const std::uint64_t tensors = type == "F32" ? bytes / 2 : bytes; // in bfloat16
  compute where(threads);
  std::vector<double> copies, reads, wholes;
  double beside = 0;
  copied_by_pread(where, file, bytes); // into the page cache
  for (int round = 0; round < 3; ++round) {
    const double by_pread = copied_by_pread(where, file, bytes), by_memcpy = copied_by_memcpy(where, file, bytes);
    copies.push_back(std::min(by_pread, by_memcpy));
    const loaded l = load(cfg, dir, where, tensors);
    malloc_trim(0);
    reads.push_back(l.read);
    wholes.push_back(l.whole);
    beside = std::max(beside, l.beside);
    std::fprintf(stderr, "round %d: pread %.3f s, memcpy %.3f s; read %.3f s, ready %.3f s\n", round, by_pread, by_memcpy, l.read, l.whole);
  }
  fs::remove_all(dir);
  const double gb = double(bytes) * 1e-9;
  std::printf("{\"gb\": %.3f, \"threads\": %d, \"copy_rate\": %.3f, \"rate\": %.3f, \"share\": %.3f, \"ready_seconds\": %.3f, "
              "\"beside_mib\": %.1f}\n",
              gb, where.threads(), gb / median(copies), gb / median(reads), median(copies) / median(reads), median(wholes), beside);
  return 0;
}

} // namespace
} // namespace troupe

int main(int argc, char** argv) {
  return troupe::run(argc > 1 ? std::atoi(argv[1]) : 28, argc > 2 ? std::atoi(argv[2]) : 0, argc > 3 ? argv[3] : "BF16");
}
