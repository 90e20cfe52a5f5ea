#include "cli/layer_map.hpp"

namespace troupe {
namespace {

std::string name_without_dot(const block_spec& block) { return block.prefix.substr(0, block.prefix.size() - 1); }

// "model.layers_70b." of "model.layers_70b.3."
std::string family(const block_spec& block) { return block.prefix.substr(0, block.prefix.rfind('.', block.prefix.size() - 2) + 1); }

std::string source_of(const model_config& cfg, const block_spec& first, const block_spec& last) {
  const bool front = first.prefix.starts_with("model.layers_8b.");
  const auto& path = front ? cfg.split->path_8 : cfg.split->path_70;
  return ", layers " + std::to_string(first.source_layer) + " to " + std::to_string(last.source_layer) + " of the " +
         std::to_string(front ? cfg.split->whole_8 : cfg.split->whole_70) + " of " +
         (path.empty() ? front ? "the first model" : "the second model" : path);
}

std::string describe(const model_config& cfg, const block_spec& first, const block_spec& last) {
  switch (first.kind) {
  case block_kind::embedding:
    return name_without_dot(first) + ": " + std::to_string(cfg.vocab_size) + " x " + std::to_string(first.out);
  case block_kind::decoder:
    return name_without_dot(first) + (first.prefix == last.prefix ? "" : " to " + name_without_dot(last)) + ": width " +
           std::to_string(first.layer.hidden) + (cfg.split ? source_of(cfg, first, last) : "");
  case block_kind::adapter:
    return name_without_dot(first) + ": " + std::to_string(first.in) + " to " + std::to_string(first.out) + (first.relu ? ", ReLU" : "");
  default:
    return std::string(name_of(first.kind)) + ": " + std::to_string(first.in) + " to " + std::to_string(first.out) +
           (first.tied ? ", tied" : "");
  }
}

} // namespace

std::vector<std::string> layer_map(const model_config& cfg, const std::vector<block_spec>& blocks, std::size_t first, std::size_t last) {
  std::vector<std::string> lines;
  for (std::size_t begin = first, end; begin < last; begin = end) {
    for (end = begin + 1; end < last && blocks[begin].kind == block_kind::decoder && blocks[end].kind == block_kind::decoder &&
                          family(blocks[begin]) == family(blocks[end]);)
      ++end;
    lines.push_back(describe(cfg, blocks[begin], blocks[end - 1]));
  }
  return lines;
}

} // namespace troupe
