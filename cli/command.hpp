#pragma once
#include "core/dtype.hpp"
#include "model/kernels/isa.hpp"
#include <CLI/CLI.hpp>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>

namespace troupe {

class compute;

/// What a subcommand does once its options are parsed; returns the exit code. Errors are thrown as troupe::error.
using action = std::function<int()>;

/// Options that every command which runs a model takes.
struct common_options {
  std::string device;     // cpu | cuda | cuda:N; default: cuda if there is one
  std::string dtype_name; // float32 | bfloat16; default: config.json's, else float32
  int threads = 0;        // 0: one a core
  std::string isa_name;   // scalar | avx2 | avx512 | amx; default: the best there is
  std::uint64_t seed = 0;
};
void add_common_options(CLI::App& app, common_options& options);
/// --seed N, 0 to 2^64 - 1.
void add_seed(CLI::App& app, std::uint64_t& seed, const std::string& help);
inline constexpr const char* device_help = "cpu | cuda | cuda:N; default: cuda if there is one";
/// The GPU that --device names, -1 for the CPU. Throws errc::bad_usage for another word or a GPU that is not there, errc::unsupported where
/// the build has no GPU parts.
int gpu_of(const std::string& device);
std::unique_ptr<compute> make_compute(const common_options& options);
/// The compute type asked for, else what the model's config.json declares, else float32.
dtype compute_type(const common_options& options, const std::filesystem::path& model_dir);

// One function a subcommand, one file each: registers it on `root` and sets `chosen` when it is called.
void add_train(CLI::App& root, action& chosen);
void add_check(CLI::App& root, action& chosen);
void add_worker(CLI::App& root, action& chosen);
void add_eval(CLI::App& root, action& chosen);
void add_generate(CLI::App& root, action& chosen);
void add_score(CLI::App& root, action& chosen);
void add_tokenize(CLI::App& root, action& chosen);
void add_serve(CLI::App& root, action& chosen);
void add_convert(CLI::App& root, action& chosen);

} // namespace troupe
