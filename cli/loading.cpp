#include "cli/loading.hpp"
#include <unistd.h>

namespace troupe {

std::FILE* loading_line::terminal() { return isatty(STDERR_FILENO) != 0 ? stderr : nullptr; }

loading_line::loading_line(std::FILE* out, clock::duration after) : out_(out), from_(clock::now() + after) {}

void loading_line::show(std::uint64_t read, std::uint64_t all) {
  if (read >= all)
    return erase();
  if (out_ == nullptr || clock::now() < from_)
    return;
  std::fprintf(out_, "\r\033[Kloading %.1f of %.1f GB", double(read) * 1e-9, double(all) * 1e-9);
  std::fflush(out_);
  shown_ = true;
}

void loading_line::erase() {
  if (!shown_)
    return;
  std::fprintf(out_, "\r\033[K");
  std::fflush(out_);
  shown_ = false;
}

} // namespace troupe
