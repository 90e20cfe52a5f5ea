#include "actors/run.hpp"
#include "cli/command.hpp"
#include "cli/memory.hpp"
#include "cli/progress.hpp"
#include "cli/report.hpp"
#include "cli/run_server.hpp"
#include "cli/validate.hpp"
#include "core/error.hpp"
#include "core/files.hpp"
#include "learner/checkpoint.hpp"
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

namespace troupe {
namespace {

namespace fs = std::filesystem;

struct train_options {
  std::string file, resume, device, isa_name;
  std::vector<std::string> overrides;
  int threads = 0;
  std::string api_key; // of rollout.serve
};

/// The run's directory, made if need be and held against a second `train` while this lives; the system lets go with the process.
class run_lock {
public:
  explicit run_lock(const fs::path& dir) {
    std::error_code failed;
    fs::create_directories(dir, failed);
    if (failed)
      throw error(errc::bad_config, "run.dir = \"" + dir.string() + "\" cannot be made: " + failed.message() + "; name another");
    if (access(dir.c_str(), W_OK | X_OK) != 0)
      throw error(errc::bad_config, "run.dir = \"" + dir.string() + "\" cannot be written: " + std::strerror(errno) + "; name another");
    fd_ = open(dir.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd_ < 0 || flock(fd_, LOCK_EX | LOCK_NB) != 0)
      throw error(errc::bad_config, "run.dir = \"" + dir.string() + "\" is in use by another `troupe train`; wait for it or name another");
  }
  ~run_lock() { close(fd_); }
  run_lock(const run_lock&) = delete;
  run_lock& operator=(const run_lock&) = delete;

private:
  int fd_ = -1;
};

config read_config(const train_options& options) {
  std::vector<std::string> overrides = options.overrides;
  if (!options.resume.empty())
    overrides.push_back("run.resume=" + options.resume);
  return load_config(options.file, overrides);
}

bool names_checkpoint(const config& cfg) { return cfg.run.resume != "auto" && cfg.run.resume != "never"; }

/// The step that the run goes on from, as far as its directory says; 0: the start.
std::int64_t step_to_resume(const config& cfg) {
  if (names_checkpoint(cfg))
    return checkpoint_step(fs::absolute(cfg.run.resume).lexically_normal()).value_or(0);
  const auto newest = newest_whole_checkpoint(cfg.run_dir(), [](const std::string&) {});
  return newest ? checkpoint_step(*newest).value_or(0) : 0;
}

/// Later steps are done again: their checkpoints would be taken for newer ones. They go when the one that is named is seen to be whole.
void remove_later_checkpoints(const config& cfg, std::int64_t step) {
  verify_sealed(cfg.run.resume);
  std::vector<fs::path> later;
  for (const auto& entry : fs::directory_iterator(cfg.run_dir() / "checkpoints")) {
    if (checkpoint_step(entry.path()).value_or(0) > step)
      later.push_back(entry.path());
  }
  for (const auto& dir : later) {
    std::error_code failed;
    fs::remove_all(dir, failed);
    if (failed)
      throw error(errc::bad_config,
                  "run.resume: the later checkpoint " + dir.string() + " cannot be removed: " + write_failure(failed.value()));
  }
}

/// The directory of a run that was refused as it began is left as it was found.
void remove_unbegun(const fs::path& dir) {
  std::error_code ignored;
  if (fs::exists(dir / "metrics.jsonl", ignored))
    return;
  fs::remove(dir / "config.toml", ignored);
  fs::remove(dir / "template_time.txt", ignored);
  fs::remove(dir / "log.txt", ignored);
  fs::remove(dir, ignored); // if it is empty
}

/// What a run that begins writes first. A directory that takes no files is wrong usage, and is left as it was.
std::unique_ptr<train_outputs> open_outputs(const config& cfg, bool used, std::int64_t total_steps, std::time_t template_time) {
  const fs::path dir = cfg.run_dir();
  try {
    if (!kept_template_time(cfg))
      keep_template_time(cfg, template_time);
    write_file(dir / "config.toml", to_toml(cfg));
    return std::make_unique<train_outputs>(cfg, total_steps);
  } catch (const error& e) {
    if (!used)
      remove_unbegun(dir);
    throw error(errc::bad_config, "run.dir = \"" + dir.string() + "\": " + e.what() + ", or name another");
  }
}

void check_memory(const validated_run& run) {
  const auto lacking = memory_shortage(run.cfg, estimate_memory(run.cfg, run.model, run.n_trainable, run.teacher), machine_memory());
  if (!lacking.empty())
    throw error(errc::bad_config, lacking);
}

run_inputs make_inputs(const train_options& options, validated_run& run, int gpu) {
  run_inputs in;
  in.cfg = run.cfg;
  in.model = run.model;
  in.end_tokens = run.end_tokens;
  in.tok = run.tok;
  in.train_rows = std::move(run.train_rows);
  in.val_rows = std::move(run.val_rows);
  in.sft_train = std::move(run.sft_train);
  in.sft_val = std::move(run.sft_val);
  in.chat = run.chat;
  in.serve = make_run_server(options.api_key);
  in.template_time = run.template_time;
  in.total_steps = run.total_steps;
  if (names_checkpoint(run.cfg))
    in.resume_only = fs::absolute(run.cfg.run.resume).lexically_normal().string();
  in.threads = options.threads;
  in.gpu = gpu;
  in.which = options.isa_name.empty() ? best_isa() : isa_from_name(options.isa_name);
  return in;
}

int train(const train_options& options) {
  const int gpu = gpu_of(options.device);
  const config cfg = read_config(options);
  const bool used = check_run_directory(cfg);
  check_placement(cfg);
  check_run_server(cfg, options.api_key);
  check_listen(cfg);
  validated_run run = validate_run(cfg);
  check_memory(run);
  const run_inputs inputs = make_inputs(options, run, gpu);
  const run_lock lock(cfg.run_dir());
  const std::int64_t step = used ? step_to_resume(cfg) : 0;
  if (step >= run.total_steps) {
    std::printf("the run in %s has reached its last step, %lld: nothing to do\n", cfg.run_dir().c_str(), static_cast<long long>(step));
    return 0;
  }
  if (names_checkpoint(cfg))
    remove_later_checkpoints(cfg, step);
  const auto outputs = open_outputs(cfg, used, run.total_steps, run.template_time);
  for (const auto& warning : run.warnings)
    outputs->log("warning: " + warning);
  try {
    run_training(inputs, *outputs);
  } catch (const error& e) {
    outputs->log(e.what());
    outputs->close();
    if (!used && exit_code(e.code()) == 2)
      remove_unbegun(cfg.run_dir());
    if (e.code() == errc::io)
      throw error(e.code(), std::string(e.what()) + "; started again, the run goes on from its last checkpoint");
    throw;
  }
  write_report(cfg.run_dir());
  return 0;
}

} // namespace

void add_train(CLI::App& root, action& chosen) {
  auto options = std::make_shared<train_options>();
  auto* app = root.add_subcommand("train", "train a model as a configuration says; goes on where an interrupted run ended");
  app->add_option("config", options->file, "the configuration, a TOML file")->required();
  app->add_option("--set", options->overrides, "key=value: overrides a key, the value in TOML; a bare word is a string")
      ->allow_extra_args(false);
  app->add_option("--resume", options->resume, "auto | never | DIR, a checkpoint of this run; overrides run.resume");
  app->add_option("--device", options->device, device_help);
  app->add_option("--threads", options->threads, "threads of the CPU kernels; 0: one a core")->check(CLI::Range(0, 4096));
  app->add_option("--isa", options->isa_name, "scalar | avx2 | avx512 | amx; default: the best there is; the bits are the same");
  if (const char* key = std::getenv("TROUPE_API_KEY"))
    options->api_key = key;
  app->callback([options, &chosen] { chosen = [options] { return train(*options); }; });
}

} // namespace troupe
