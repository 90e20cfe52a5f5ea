// What one tensor-parallel rank reads and holds when it loads its slices of a model that is larger than it.
// bench_rank_load [TP] [LAYERS]; a Llama of width 4096 in a sparse file, bfloat16.
// Formula: resident memory after loading - before, less the rank's tensors and their layout for the kernels, is what loading
// cost beside them; at most 64 MiB is allowed.
#include "model/compute.hpp"
#include "model/layout.hpp"
#include "model/parallel/communicator.hpp"
#include "model/registry.hpp"
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>

namespace troupe {
namespace {

namespace fs = std::filesystem;

model_config wide_llama(int layers) {
  model_config cfg;
  cfg.architecture = "LlamaForCausalLM";
  cfg.vocab_size = 128256;
  cfg.n_layers = layers;
  cfg.layer.hidden = 4096;
  cfg.layer.intermediate = 14336;
  cfg.layer.n_heads = 32;
  cfg.layer.n_kv_heads = 8;
  cfg.layer.head_dim = 128;
  return cfg;
}

// A file of zeros that takes no room on the disk.
void write_sparse(const model_config& cfg, const fs::path& file) {
  nlohmann::json header;
  std::uint64_t end = 0;
  for (const auto& t : tensors_of(cfg)) {
    header[t.name] = {{"dtype", "BF16"}, {"shape", t.shape}, {"data_offsets", {end, end + t.numel() * 2}}};
    end += t.numel() * 2;
  }
  const std::string text = header.dump();
  const std::uint64_t length = text.size();
  std::ofstream(file, std::ios::binary).write(reinterpret_cast<const char*>(&length), 8) << text;
  fs::resize_file(file, 8 + length + end);
}

// Largest resident memory so far, bytes.
std::uint64_t peak_resident() {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);)
    if (line.starts_with("VmHWM:"))
      return std::strtoull(line.c_str() + 6, nullptr, 10) << 10;
  return 0;
}

int run(int tp, int layers) {
  const model_config cfg = wide_llama(layers);
  const fs::path dir = fs::temp_directory_path() / "troupe-rank-load";
  fs::create_directories(dir);
  write_sparse(cfg, dir / "model.safetensors");
  thread_world world;
  auto setup = std::make_shared<rank_setup>();
  setup->ranks = make_contexts(world, {1, 1, tp})[0];
  compute where(1);
  const std::uint64_t before = peak_resident();
  const auto model = make_model(cfg, {dtype::bf16, false, {}, setup}, where);
  const std::uint64_t bytes = load_weights(*model, dir);
  const std::uint64_t after = peak_resident();
  fs::remove_all(dir);
  std::uint64_t held = 0, laid_out = 0, whole = 0;
  for (const auto& t : tensors_of(cfg)) {
    whole += t.numel() * 2;
    std::uint64_t part = 2;
    for (const auto size : shard_shape(t, 0, tp))
      part *= std::uint64_t(size);
    held += part;
    laid_out += t.linear ? part : 0;
  }
  const double mib = 1 << 20;
  std::printf("model %.0f MiB, rank 0 of %d holds %.0f MiB and read %.0f MiB\n", double(whole) / mib, tp, double(held) / mib,
              double(bytes) / mib);
  std::printf("peak resident %.0f MiB = tensors %.0f + laid out for the kernels %.0f + %.0f more (at most 64)\n",
              double(after - before) / mib, double(held) / mib, double(laid_out) / mib,
              (double(after - before) - double(held) - double(laid_out)) / mib);
  return 0;
}

} // namespace
} // namespace troupe

int main(int argc, char** argv) { return troupe::run(argc > 1 ? std::atoi(argv[1]) : 8, argc > 2 ? std::atoi(argv[2]) : 8); }
