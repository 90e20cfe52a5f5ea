#include "cli/program.hpp"
#include "cli/command.hpp"
#include "core/allocator.hpp"
#include "core/config_fields.hpp"
#include "core/error.hpp"
#include <CLI/CLI.hpp>
#include <algorithm>
#include <csignal>
#include <cstdio>
#include <exception>

namespace troupe {
namespace {

/// No command, or one that there is not: says which there are. `at`: where in argv it should be.
void check_command(const CLI::App& app, int argc, char** argv, int at = 1) {
  std::vector<std::string> names;
  std::string list;
  for (const auto* command : app.get_subcommands({})) {
    names.push_back(command->get_name());
    list += (list.empty() ? "" : ", ") + names.back();
  }
  if (names.empty())
    return;
  const std::string help = "; see troupe " + (at == 1 ? "" : app.get_name() + ' ') + "--help";
  if (argc <= at)
    throw error(errc::bad_usage, (at == 1 ? "no command" : app.get_name() + ": of what?") + "; it is one of " + list + help);
  const std::string given = argv[at];
  if (given.starts_with("-"))
    return;
  if (std::find(names.begin(), names.end(), given) != names.end())
    return check_command(*app.get_subcommand(given), argc, argv, at + 1);
  if (given == "plan")
    throw error(errc::unsupported, given + ": this version cannot do it; it has " + list);
  const std::vector<std::string_view> words(names.begin(), names.end());
  throw error(errc::bad_usage, (at == 1 ? "unknown command \"" : app.get_name() + " \"") + given +
                                   "\"; nearest: " + std::string(nearest_word(given, words)) + "; it is one of " + list + help);
}

int run(int argc, char** argv) {
  CLI::App app{"troupe: reinforcement learning for language models as one program", "troupe"};
  app.set_version_flag("--version", "troupe 0.1.0");
  app.require_subcommand(1);
  action chosen;
  add_train(app, chosen);
  add_check(app, chosen);
  add_worker(app, chosen);
  add_eval(app, chosen);
  add_generate(app, chosen);
  add_score(app, chosen);
  add_tokenize(app, chosen);
  add_serve(app, chosen);
  add_convert(app, chosen);
  check_command(app, argc, argv);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& e) {
    if (e.get_exit_code() == 0) // --help, --version
      return app.exit(e);
    throw error(errc::bad_usage, std::string(e.what()) + "; see troupe --help");
  }
  return chosen();
}

/// One line, whatever an argument or a file's name holds.
int report(std::string line, int code) {
  std::replace_if(
      line.begin(), line.end(), [](char c) { return c == '\n' || c == '\r'; }, ' ');
  std::fprintf(stderr, "troupe: %s\n", line.c_str());
  return code;
}

} // namespace

int run_program(int argc, char** argv) {
  keep_freed_pages();
  std::signal(SIGXFSZ, SIG_IGN); // a write past the limit says EFBIG instead
  try {
    return run(argc, argv);
  } catch (const error& e) {
    return report(e.what(), exit_code(e.code()));
  } catch (const std::exception& e) {
    return report(e.what(), 1);
  }
}

} // namespace troupe
