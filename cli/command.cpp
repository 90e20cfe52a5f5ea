#include "cli/command.hpp"
#include "core/error.hpp"
#include "model/compute.hpp"
#include "model/config.hpp"

namespace troupe {
namespace {

void check_device(const std::string& device) {
  if (device.empty() || device == "cpu")
    return;
  const bool numbered = device.starts_with("cuda:") && device.size() > 5 && device.find_first_not_of("0123456789", 5) == std::string::npos;
  if (device == "cuda" || numbered)
    throw error(errc::unsupported, "--device " + device + ": this build runs on the CPU only; use --device cpu");
  throw error(errc::bad_usage, "--device " + device + ": it is cpu, cuda or cuda:N");
}

} // namespace

void add_common_options(CLI::App& app, common_options& options) {
  app.add_option("--device", options.device, "cpu | cuda | cuda:N; default: cuda if there is one");
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
  check_device(options.device);
  return std::make_unique<compute>(options.threads, options.isa_name.empty() ? best_isa() : isa_from_name(options.isa_name));
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
