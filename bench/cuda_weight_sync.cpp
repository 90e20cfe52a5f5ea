// Weights from one process to others over NCCL: bytes a second of a whole fetch, asking and checksums included.
// cuda_weight_sync [MIB] [SINKS]   MIB of bfloat16 in tensors of an 8B Llama's shapes, over and over; every process on a GPU of its own if
// there are enough. Prints for each version: seconds of publish (checksums), of the slowest fetch, and GB/s = bytes of one sink / that.
#include "core/error.hpp"
#include "model/kernels/cuda/memory.hpp"
#include "weightsync/channel.hpp"
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <fcntl.h>
#include <iostream>
#include <sstream>
#include <string>
#include <unistd.h>
#include <vector>

namespace {

using namespace troupe;
using std::chrono::steady_clock;

constexpr int n_versions = 8;

/// Tensors on the GPU and nothing else.
class tensors final : public causal_lm {
public:
  explicit tensors(std::size_t n_bytes) {
    const std::vector<std::vector<std::int64_t>> shapes = {{4096, 4096},  {1024, 4096},  {1024, 4096}, {4096, 4096}, {14336, 4096},
                                                           {14336, 4096}, {4096, 14336}, {4096},       {4096}};
    for (std::size_t sum = 0, i = 0; sum < n_bytes; ++i) {
      parameter p;
      p.name = "tensor." + std::to_string(i);
      p.shape = p.global_shape = shapes[i % shapes.size()];
      p.trainable = true;
      const cuda::device_buffer& buffer = buffers_.emplace_back(p.numel() * 2);
      cuda::fill_zero(buffer.data(), buffer.size(), nullptr);
      p.device_value = buffer.data();
      p.value = {static_cast<std::byte*>(buffer.data()), buffer.size()}; // for its size: nothing reads it on the host
      sum += buffer.size();
      parameters_.push_back(std::move(p));
    }
    cuda::synchronize();
  }
  std::span<parameter> parameters() override { return parameters_; }
  dtype compute_type() const override { return dtype::bf16; }
  const model_config& config() const override { throw error(errc::unsupported, "tensors alone"); }
  void publish_masters() override {}
  void publish_values(std::span<const std::size_t>) override {}
  std::unique_ptr<kv_cache> make_cache(std::int32_t) override { return nullptr; }
  std::size_t cache_block_bytes() const override { return 0; }
  void forward(const token_batch&, kv_cache&, std::span<const std::int32_t>, float*) override {}
  target_values score(const packed_batch&, float, bool, std::unique_ptr<tape>*) override { return {}; }
  void backward(tape&, std::span<const float>, std::span<const float>) override {}
  void zero_grads() override {}
  float logprob(const float*, std::int32_t, float) const override { return 0; }

private:
  std::vector<cuda::device_buffer> buffers_;
  std::vector<parameter> parameters_;
};

/// Fetches each version that a line of its input names, and prints bytes and seconds.
int sink(const std::string& endpoint, std::size_t n_bytes, int which) {
  cuda::set_device(which % cuda::device_count());
  const auto channel = make_process_sink("nccl", endpoint, std::make_shared<tensors>(n_bytes), "secret");
  for (std::uint32_t step = 0; std::cin >> step;) {
    const sync_result r = channel->fetch({0, step}, std::chrono::minutes(2));
    std::cout << r.bytes << " " << r.seconds << std::endl;
  }
  return 0;
}

struct child {
  FILE* in = nullptr;
  FILE* out = nullptr;
};

child start(const std::string& endpoint, std::size_t n_bytes, int which) {
  int in[2], out[2];
  if (pipe2(in, O_CLOEXEC) != 0 || pipe2(out, O_CLOEXEC) != 0)
    throw error(errc::io, "pipe failed");
  if (fork() == 0) { // nothing of CUDA's is used before the program begins anew
    dup2(in[0], 0);
    dup2(out[1], 1);
    execl("/proc/self/exe", "cuda_weight_sync", "sink", endpoint.c_str(), std::to_string(n_bytes).c_str(), std::to_string(which).c_str(),
          static_cast<char*>(nullptr));
    _exit(127);
  }
  close(in[0]);
  close(out[1]);
  return {fdopen(in[1], "w"), fdopen(out[0], "r")};
}

void run(std::size_t n_bytes, int n_sinks) {
  const auto source = make_process_source("nccl", std::make_shared<tensors>(n_bytes), "127.0.0.1", "secret");
  std::vector<child> sinks;
  for (int i = 0; i < n_sinks; ++i)
    sinks.push_back(start(source->endpoint(), n_bytes, i + 1));
  for (int step = 0; step < n_versions; ++step) {
    source->retract();
    const auto begin = steady_clock::now();
    source->publish({0, std::uint32_t(step)});
    const double published = std::chrono::duration<double>(steady_clock::now() - begin).count();
    for (const child& c : sinks) {
      std::fprintf(c.in, "%d\n", step);
      std::fflush(c.in);
    }
    double bytes = 0, slowest = 0;
    for (const child& c : sinks) {
      double seconds = 0;
      if (std::fscanf(c.out, "%lf %lf", &bytes, &seconds) != 2)
        throw error(errc::failed, "a sink gave no answer; its error stands above");
      slowest = std::max(slowest, seconds);
    }
    std::printf("version %d: %d x %.2f GB, publish %.4f s, fetch %.4f s, %.1f GB/s\n", step, n_sinks, bytes / 1e9, published, slowest,
                bytes / slowest / 1e9);
  }
  for (const child& c : sinks)
    std::fclose(c.in);
}

} // namespace

int main(int argc, char** argv) {
  try {
    if (argc == 5 && std::string(argv[1]) == "sink")
      return sink(argv[2], std::stoull(argv[3]), std::stoi(argv[4]));
    run(std::size_t(argc > 1 ? std::stoi(argv[1]) : 4096) << 20, argc > 2 ? std::stoi(argv[2]) : 1);
    return 0;
  } catch (const std::exception& e) {
    std::fprintf(stderr, "cuda_weight_sync: %s\n", e.what());
    return 1;
  }
}
