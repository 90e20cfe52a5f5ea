#pragma once

namespace troupe {

/// python/modeling_custom_split_llama.py, which the build puts into the program.
extern const char* const modeling_file_text;

} // namespace troupe
