#include "cli/command.hpp"
#include "core/allocator.hpp"
#include "core/error.hpp"
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <exception>

namespace {

int run(int argc, char** argv) {
  CLI::App app{"troupe: reinforcement learning for language models as one program", "troupe"};
  app.set_version_flag("--version", "troupe 0.1.0");
  app.require_subcommand(1);
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
    if (e.get_exit_code() == 0) // --help, --version
      return app.exit(e);
    std::string line = e.what();
    std::replace(line.begin(), line.end(), '\n', ' ');
    throw troupe::error(troupe::errc::bad_usage, line + "; see troupe --help");
  }
  return chosen();
}

} // namespace

int main(int argc, char** argv) {
  troupe::keep_freed_pages();
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
