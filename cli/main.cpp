#include "cli/command.hpp"
#include "core/error.hpp"
#include <CLI/CLI.hpp>
#include <cstdio>
#include <exception>

namespace {

int run(int argc, char** argv) {
  CLI::App app{"troupe: reinforcement learning for language models as one program", "troupe"};
  app.set_version_flag("--version", "troupe 0.1.0");
  app.require_subcommand(1);
  app.failure_message([](const CLI::App*, const CLI::Error& e) { return "troupe: " + std::string(e.what()) + " (see --help)\n"; });
  troupe::action chosen;
  troupe::add_train(app, chosen);
  troupe::add_check(app, chosen);
  troupe::add_worker(app, chosen);
  troupe::add_eval(app, chosen);
  troupe::add_generate(app, chosen);
  troupe::add_score(app, chosen);
  troupe::add_tokenize(app, chosen);
  troupe::add_convert(app, chosen);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& e) {
    return app.exit(e) == 0 ? 0 : 2;
  }
  return chosen();
}

} // namespace

int main(int argc, char** argv) {
  try {
    return run(argc, argv);
  } catch (const troupe::error& e) {
    std::fprintf(stderr, "troupe: %s\n", e.what());
    return troupe::exit_code(e.code());
  } catch (const std::exception& e) {
    std::fprintf(stderr, "troupe: %s\n", e.what());
    return 1;
  }
}
