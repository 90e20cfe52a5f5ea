#pragma once
#include "model/config.hpp"
#include "model/weights/safetensors.hpp"
#include <cstdint>
#include <string>
#include <vector>

namespace troupe {

/// A tensor that a model's files must hold.
struct expected_tensor {
  std::string name;
  std::vector<std::int64_t> shape;
  bool linear = false; // multiplied by the GEMM, which keeps copies of it in its own layout
  std::uint64_t numel() const;
};

/// The tensors of a Llama-family model, in the model's order. A tied head is not among them.
std::vector<expected_tensor> expected_tensors(const model_config& cfg);

/// Compares headers alone. Throws errc::bad_input naming the tensor that is missing, superfluous or of another shape or type.
void check_tensors(const safetensors_reader& files, const model_config& cfg);

} // namespace troupe
