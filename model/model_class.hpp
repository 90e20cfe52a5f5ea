#pragma once
#include "model/layout.hpp"
#include "model/registry.hpp"
#include <string>
#include <vector>

namespace troupe {

/// How a class takes its tokens: padded rows and a mask (`padded_model`), or packed without padding.
enum class input_form : std::uint8_t { padded, packed };

/// A class of the systems that this model comes from, as a composition of blocks: which family, which part of its chain, its last
/// block, its input, and whether pipeline stages may share it. The value model differs from the policy in its last block alone.
struct model_class {
  std::string name;     // spelled as there
  bool split = false;   // of a split model; else of a plain Llama
  bool adapter = false; // the adapter alone
  head_kind head = head_kind::lm;
  input_form form = input_form::packed;
  bool pipeline = false;
};

/// All of them.
const std::vector<model_class>& model_classes();
/// Throws errc::unsupported listing the known names.
const model_class& find_model_class(const std::string& name);

/// The blocks of a class for the model that `cfg` describes, whose head it replaces. Throws errc::bad_config for a model of the other
/// family.
std::vector<block_spec> blocks_of(const model_class& which, const model_config& cfg);

/// The model itself, weights zero: `blocks_of` as a chain. Not for the adapter alone, which is an adapter_block.
std::shared_ptr<causal_lm> make_model(const model_class& which, model_config cfg, const model_options& options, compute& where);

} // namespace troupe
