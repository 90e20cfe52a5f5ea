#include "actors/run.hpp"
#include "cli/command.hpp"
#include "cli/run_server.hpp"
#include "core/error.hpp"
#include <charconv>
#include <cstdlib>
#include <string_view>

namespace troupe {
namespace {

std::string variable(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

} // namespace

void add_worker(CLI::App& root, action& chosen) {
  struct parsed {
    worker_options options;
    std::string device, isa_name;
  };
  auto p = std::make_shared<parsed>();
  auto* app = root.add_subcommand("worker", "take part in a run that is under way");
  app->add_option("--join", p->options.join, "HOST:PORT of the run, as its log.txt says")->required();
  app->add_option("--device", p->device, device_help);
  app->add_option("--threads", p->options.threads, "threads of the CPU kernels; 0: one a core")->check(CLI::Range(0, 4096));
  app->add_option("--isa", p->isa_name, "scalar | avx2 | avx512 | amx; default: the best there is; the bits are the same");
  // Set by the `train` that starts a worker: its secret is on no command line.
  p->options.serve = make_run_server(variable("TROUPE_API_KEY"));
  p->options.secret = variable("TROUPE_SECRET");
  const std::string parent = variable("TROUPE_PARENT");
  std::from_chars(parent.data(), parent.data() + parent.size(), p->options.parent);
  app->callback([p, &chosen] {
    chosen = [p] {
      p->options.gpu = gpu_of(p->device);
      p->options.which = p->isa_name.empty() ? best_isa() : isa_from_name(p->isa_name);
      return run_worker(p->options);
    };
  });
}

} // namespace troupe
