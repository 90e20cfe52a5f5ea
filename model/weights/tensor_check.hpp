#pragma once
#include "model/config.hpp"
#include "model/layout.hpp"
#include "model/weights/safetensors.hpp"

namespace troupe {

/// Compares the headers of a model's files with its layout: every tensor is accounted for.
/// Throws errc::bad_input naming the tensor that is missing, superfluous or of another shape or type.
void check_tensors(const safetensors_reader& files, const model_config& cfg);

/// One tensor of files against its spec; `name` is its name there. Throws as above; null: it is optional and absent.
const tensor_info* check_tensor(const safetensors_reader& files, const std::string& name, const tensor_spec& expected);

/// A tied head that is also in the files must be the embedding, byte for byte; after check_tensors. Throws errc::bad_input.
void check_tied_head(const safetensors_reader& files, const model_config& cfg);

/// Tensors that files may hold and no model reads; a tied head's copy among them.
bool is_ignored(const std::string& name, const model_config& cfg);

/// Throws errc::bad_input naming tensor and element unless all of its elements are finite.
void check_finite(const safetensors_reader& files, const tensor_info& tensor);

/// "[2, 3]".
std::string spelled(const std::vector<std::int64_t>& shape);

} // namespace troupe
