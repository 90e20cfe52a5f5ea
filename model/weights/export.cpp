#include "model/weights/export.hpp"
#include "core/files.hpp"
#include "model/weights/modeling_file.hpp"

namespace troupe {

namespace fs = std::filesystem;

void copy_tokenizer_files(const fs::path& source, const fs::path& target) {
  for (const auto* name : {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja",
                           "generation_config.json", "vocab.json", "merges.txt", "tokenizer.model"}) {
    if (is_there(source / name))
      write_file(target / name, read_model_file(source / name));
  }
}

void write_modeling_file(const fs::path& dir, const model_config& cfg) {
  if (cfg.split)
    write_file(dir / "modeling_custom_split_llama.py", modeling_file_text);
}

void write_model_config(const fs::path& dir, const model_config& cfg, dtype declared) {
  write_file(dir / "config.json", to_config_json(cfg, declared));
  write_modeling_file(dir, cfg);
}

} // namespace troupe
