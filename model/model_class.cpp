#include "model/model_class.hpp"
#include "core/error.hpp"
#include <algorithm>

namespace troupe {

namespace {

// cfg with the class's head.
model_config configured(const model_class& which, model_config cfg) {
  if (which.split != cfg.split.has_value())
    throw error{errc::bad_config, which.name + " is a " + (which.split ? "split model" : "plain Llama") + ", and config.json describes a " +
                                      (cfg.split ? "split model" : "plain Llama") + " (" + cfg.architecture + ")"};
  cfg.head = which.head;
  if (cfg.head != head_kind::lm)
    cfg.tie_word_embeddings = false;
  return cfg;
}

} // namespace

const std::vector<model_class>& model_classes() {
  using enum head_kind;
  using enum input_form;
  static const std::vector<model_class> all = {
      {"LlamaModel", false, false, none, padded, false},
      {"LlamaForCausalLM", false, false, lm, padded, false},
      {"LlamaForTokenClassification", false, false, value, padded, false},
      {"LlamaForSequenceClassification", false, false, reward, padded, false},
      {"ParallelLlamaModel", false, false, none, padded, false},
      {"ParallelLlamaForCausalLM", false, false, lm, padded, false},
      {"ParallelLlamaModelRmPad", false, false, none, packed, false},
      {"ParallelLlamaForCausalLMRmPad", false, false, lm, packed, false},
      {"ParallelLlamaForValueRmPad", false, false, value, packed, false},
      {"ParallelLlamaForCausalLMRmPadPP", false, false, lm, packed, true},
      {"ParallelLlamaForValueRmPadPP", false, false, value, packed, true},
      {"CustomSplitLLamaModel", true, false, none, padded, false},
      {"CustomSplitLLamaForCausalLM", true, false, lm, padded, false},
      {"CustomSplitLLamaForTokenClassification", true, false, value, padded, false},
      {"CustomSplitLLamaForSequenceClassification", true, false, reward, padded, false},
      {"ParallelCustomSplitLLamaModel", true, false, none, padded, false},
      {"ParallelCustomSplitLLamaForCausalLM", true, false, lm, padded, false},
      {"ParallelCustomSplitLLamaModelRmPad", true, false, none, packed, false},
      {"ParallelCustomSplitLLamaForCausalLMRmPad", true, false, lm, packed, false},
      {"ParallelCustomSplitLLamaForValueRmPad", true, false, value, packed, false},
      {"ParallelCustomSplitLLamaForCausalLMRmPadPP", true, false, lm, packed, true},
      {"ParallelCustomSplitLLamaForValueRmPadPP", true, false, value, packed, true},
      {"ParallelAdapter", true, true, none, padded, false},
      {"ParallelAdapterRmPad", true, true, none, packed, false},
  };
  return all;
}

const model_class& find_model_class(const std::string& name) {
  std::string known;
  for (const auto& one : model_classes()) {
    if (one.name == name)
      return one;
    known += (known.empty() ? "" : ", ") + one.name;
  }
  throw error{errc::unsupported, "model class " + name + ": this version has " + known};
}

std::vector<block_spec> blocks_of(const model_class& which, const model_config& cfg) {
  auto blocks = layout_of(configured(which, cfg));
  if (which.adapter)
    std::erase_if(blocks, [](const block_spec& b) { return b.kind != block_kind::adapter; });
  return blocks;
}

std::shared_ptr<causal_lm> make_model(const model_class& which, model_config cfg, const model_options& options, compute& where) {
  if (which.adapter)
    throw error{errc::unsupported, which.name + " is an adapter alone, no model; make an adapter_block of its one block"};
  return make_model(configured(which, std::move(cfg)), options, where);
}

} // namespace troupe
