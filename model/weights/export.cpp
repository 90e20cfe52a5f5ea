#include "model/weights/export.hpp"
#include "core/files.hpp"
#include <system_error>

namespace troupe {

namespace fs = std::filesystem;

void copy_tokenizer_files(const fs::path& source, const fs::path& target) {
  for (const auto* name : {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja",
                           "generation_config.json", "vocab.json", "merges.txt", "tokenizer.model"}) {
    std::error_code ignored;
    if (fs::exists(source / name, ignored))
      write_file(target / name, read_file(source / name));
  }
}

} // namespace troupe
