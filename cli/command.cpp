#include "cli/command.hpp"
#include "core/error.hpp"
#include "model/compute.hpp"
#include "model/config.hpp"
#ifdef TROUPE_CUDA
#include "model/kernels/cuda/memory.hpp"
#endif

namespace troupe {
namespace {

int gpu_count() {
#ifdef TROUPE_CUDA
  return cuda::device_count();
#else
  return 0;
#endif
}

} // namespace

int gpu_of(const std::string& device) {
  if (device == "cpu" || (device.empty() && gpu_count() == 0))
    return -1;
  const bool numbered = device.starts_with("cuda:") && device.size() > 5 && device.find_first_not_of("0123456789", 5) == std::string::npos;
  if (!device.empty() && device != "cuda" && !numbered)
    throw error(errc::bad_usage, "--device " + device + ": it is cpu, cuda or cuda:N");
#ifdef TROUPE_CUDA
  const int gpu = numbered && device.size() < 12 ? std::stoi(device.substr(5)) : numbered ? gpu_count() : 0;
  if (gpu >= gpu_count())
    throw error(errc::bad_usage, "--device " + device + ": this machine has " + std::to_string(gpu_count()) +
                                     " GPUs that this process can use; use --device cpu" + (gpu_count() > 0 ? " or a lower number" : ""));
  return gpu;
#else
  throw error(errc::unsupported,
              "--device " + device + ": this build runs on the CPU only; use --device cpu, or a build of ./dev build cuda");
#endif
}

void add_common_options(CLI::App& app, common_options& options) {
  app.add_option("--device", options.device, device_help);
  app.add_option("--dtype", options.dtype_name, "float32 | bfloat16; default: config.json's, else float32");
  app.add_option("--threads", options.threads, "threads of the CPU kernels; 0: one a core")->check(CLI::Range(0, 4096));
  app.add_option("--isa", options.isa_name, "scalar | avx2 | avx512 | amx; default: the best there is; the bits are the same");
  add_seed(app, options.seed, "of every random number");
}

void add_seed(CLI::App& app, std::uint64_t& seed, const std::string& help) {
  // What is parsed as unsigned takes -1 for 2^64 - 1.
  app.add_option("--seed", seed, help)->check([](const std::string& text) {
    return text.starts_with('-') ? "--seed " + text + ": it is an integer from 0 to 18446744073709551615" : "";
  });
}

std::unique_ptr<compute> make_compute(const common_options& options) {
  return std::make_unique<compute>(options.threads, options.isa_name.empty() ? best_isa() : isa_from_name(options.isa_name),
                                   gpu_of(options.device));
}

dtype compute_type(const common_options& options, const std::filesystem::path& model_dir) {
  if (options.dtype_name == "float32")
    return dtype::f32;
  if (options.dtype_name == "bfloat16")
    return dtype::bf16;
  if (!options.dtype_name.empty())
    throw error(errc::bad_usage, "--dtype " + options.dtype_name + ": it is float32 or bfloat16");
  return load_model_config(model_dir).declared_dtype.value_or(dtype::f32);
}

} // namespace troupe
