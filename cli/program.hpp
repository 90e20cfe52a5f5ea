#pragma once

namespace troupe {

/// The whole program: parses, does what was asked, reports an error in one line on stderr. Returns the exit code. Once a process.
int run_program(int argc, char** argv);

} // namespace troupe
