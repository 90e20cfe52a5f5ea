#pragma once
#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>

namespace troupe {

/// Why something was refused or failed; decides the exit code.
enum class errc : std::uint8_t {
  bad_usage = 1, // command line                              -> exit 2
  bad_config,    // configuration file or --set               -> exit 2
  bad_input,     // a file, a line, a tensor, a peer's data   -> exit 2
  unsupported,   // known, but this version cannot do it      -> exit 2
  bad_shape,     // shapes handed to a library disagree       -> exit 2
  io,            // disk, network                             -> exit 1
  timeout,       // a deadline passed                         -> exit 1
  peer_lost,     // a process that was needed is gone         -> exit 1
  failed,        // the work itself failed                    -> exit 1
  cancelled,     // the user stopped it                       -> exit 1
};

/// The one exception type libraries throw. `what()` is one line: what was asked, what was found and where, what to do.
class error : public std::runtime_error {
public:
  error(errc code, const std::string& text) : std::runtime_error(text), code_(code) {}
  errc code() const noexcept { return code_; }

private:
  errc code_;
};

/// 2 for wrong usage, configuration or input; 1 for work that failed.
constexpr int exit_code(errc code) noexcept { return code <= errc::bad_shape ? 2 : 1; }

} // namespace troupe
