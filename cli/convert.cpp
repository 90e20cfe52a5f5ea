#include "model/weights/convert.hpp"
#include "cli/command.hpp"
#include "cli/fit.hpp"
#include "core/error.hpp"
#include "learner/checkpoint.hpp"
#include "model/compute.hpp"
#include <cstdio>
#include <optional>

namespace troupe {

namespace {

struct convert_options {
  std::string source, target, dtype_name = "float32";
};

using converter = conversion (*)(const std::filesystem::path& source, const std::filesystem::path& target, dtype type);

dtype dtype_from_option(const std::string& name) {
  if (name != "float32" && name != "bfloat16")
    throw error(errc::bad_usage, "--dtype " + name + ": convert writes float32 or bfloat16");
  return name == "float32" ? dtype::f32 : dtype::bf16;
}

void print_conversion(const conversion& done, const std::string& target, const std::string& types) {
  for (const auto& line : done.passed_over)
    std::printf("%s\n", line.c_str());
  std::fprintf(stderr, "%s -> %s: %zu tensors, %.1f million parameters, %s\n", done.source.string().c_str(), target.c_str(), done.tensors,
               double(done.parameters) / 1e6, types.c_str());
}

/// convert_hf of what is whole to the last bit: a run's newest such checkpoint, or the checkpoint that is named.
conversion convert_whole(const std::filesystem::path& source, const std::filesystem::path& target, dtype type) {
  namespace fs = std::filesystem;
  std::error_code ignored;
  std::vector<std::string> passed_over;
  fs::path from = source;
  if (fs::exists(source / "checksums.json", ignored)) {
    verify_sealed(source);
  } else if (!fs::exists(source / "config.json", ignored) && fs::exists(source / "checkpoints", ignored)) {
    const auto newest = newest_whole_checkpoint(source, [&](const std::string& line) { passed_over.push_back(line); });
    if (!newest && !passed_over.empty())
      throw error(errc::bad_input, (source / "checkpoints").string() + " holds no whole checkpoint: " + passed_over.front());
    from = newest.value_or(source);
  }
  auto done = convert_hf(from, target, type);
  done.passed_over.insert(done.passed_over.begin(), passed_over.begin(), passed_over.end());
  return done;
}

int run_convert(const convert_options& options, converter convert) {
  const auto done = convert(options.source, options.target, dtype_from_option(options.dtype_name));
  print_conversion(done, options.target, options.dtype_name);
  return 0;
}

void add_conversion(CLI::App& convert, action& chosen, const char* name, const char* source_name, const char* help, converter function) {
  auto* app = convert.add_subcommand(name, help);
  auto options = std::make_shared<convert_options>();
  app->add_option(source_name, options->source, "what to read")->required();
  app->add_option("DIR", options->target, "directory to write; must not exist or be empty")->required();
  app->add_option("--dtype", options->dtype_name, "float32 | bfloat16")->capture_default_str();
  app->callback([&chosen, options, function] { chosen = [options, function] { return run_convert(*options, function); }; });
}

void add_split(CLI::App& convert, action& chosen) {
  struct options {
    std::string config, target, dtype_name;
    std::uint64_t seed = 0;
    fit_command fit;
    int threads = 0;
  };
  auto* app = convert.add_subcommand("split", "two models and an adapter to one split checkpoint");
  auto o = std::make_shared<options>();
  app->add_option("CONFIG.json", o->config, "a split model's configuration, with path8b and path70b")->required();
  app->add_option("DIR", o->target, "directory to write; must not exist or be empty")->required();
  app->add_option("--dtype", o->dtype_name, "float32 | bfloat16; default: every tensor keeps its source's");
  add_seed(*app, o->seed, "of adapter_init = \"normal\" and of a new value head");
  app->add_option("--fit-text", o->fit.text, "with adapter_init = \"fit\": the text to fit the adapter to, UTF-8");
  app->add_option("--fit-tokens", o->fit.tokens, "at most so many tokens of it")->capture_default_str()->check(CLI::Range(1, 1 << 30));
  app->add_option("--fit-length", o->fit.sequence_length, "tokens of one sequence")->capture_default_str()->check(CLI::Range(2, 1 << 20));
  app->add_option("--fit-ridge", o->fit.ridge, "relative to the mean second moment of the inputs")
      ->capture_default_str()
      ->check(CLI::NonNegativeNumber);
  app->add_option("--threads", o->threads, "threads of the fit; 0: one a core")->check(CLI::Range(0, 4096));
  app->callback([&chosen, o] {
    chosen = [o] {
      std::optional<dtype> type;
      if (!o->dtype_name.empty())
        type = dtype_from_option(o->dtype_name);
      std::optional<new_adapter> fitted;
      if (!o->fit.text.empty()) {
        compute where(o->threads);
        fitted = fit_to_text(o->config, o->fit, where);
      }
      const auto done = convert_split(o->config, o->target, type, o->seed, fitted ? &*fitted : nullptr);
      print_conversion(done, o->target, o->dtype_name.empty() ? "in their sources' types" : o->dtype_name);
      return 0;
    };
  });
}

void add_shard(CLI::App& convert, action& chosen) {
  struct options {
    std::string source, target;
    std::int64_t tp = 1, pp = 1;
  };
  auto* app = convert.add_subcommand(
      "shard", "a model's directory, CONFIG.json of a split model or another layout's ranks to one directory a rank of a parallel layout");
  auto o = std::make_shared<options>();
  app->add_option("SRC", o->source, "model directory, CONFIG.json, or what `shard` wrote")->required();
  app->add_option("DIR", o->target, "directory to write; must not exist or be empty")->required();
  app->add_option("--tp", o->tp, "tensor-parallel ranks")->capture_default_str()->check(CLI::Range(1, 1024));
  app->add_option("--pp", o->pp, "pipeline stages")->capture_default_str()->check(CLI::Range(1, 1024));
  app->callback([&chosen, o] {
    chosen = [o] {
      print_conversion(convert_shard(o->source, o->target, o->tp, o->pp), o->target,
                       std::to_string(o->tp * o->pp) + " ranks (tensor " + std::to_string(o->tp) + " x pipeline " + std::to_string(o->pp) +
                           ")");
      return 0;
    };
  });
}

void add_join(CLI::App& convert, action& chosen) {
  struct options {
    std::string source, target;
  };
  auto* app = convert.add_subcommand("join", "the directories that `shard` wrote to one model's directory");
  auto o = std::make_shared<options>();
  app->add_option("SRC", o->source, "what `shard` wrote")->required();
  app->add_option("DIR", o->target, "directory to write; must not exist or be empty")->required();
  app->callback([&chosen, o] {
    chosen = [o] {
      print_conversion(convert_join(o->source, o->target), o->target, "as sharded");
      return 0;
    };
  });
}

} // namespace

void add_convert(CLI::App& root, action& chosen) {
  auto* convert = root.add_subcommand("convert", "between model formats");
  convert->require_subcommand(1);
  add_conversion(*convert, chosen, "gguf", "SRC.gguf", "a GGUF file of the Llama family to a Hugging Face directory", convert_gguf);
  add_conversion(*convert, chosen, "hf", "RUN_OR_CHECKPOINT", "a trained checkpoint to a Hugging Face directory", convert_whole);
  add_split(*convert, chosen);
  add_join(*convert, chosen);
  add_shard(*convert, chosen);
}

} // namespace troupe
