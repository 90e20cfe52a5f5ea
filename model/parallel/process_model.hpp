#pragma once
#include "model/parallel/process_ranks.hpp"
#include "model/registry.hpp"
#include <memory>
#include <string>

namespace troupe {

/// One rank's part of a model that processes share, made by all of them alike. On the first rank it works as the whole model,
/// `parameters` excepted, which are the rank's parts: the others do their share of every call as they `serve`. Data-parallel
/// ranks share batches as in make_local_ranks, with the same bits. name: of the model among those of the ranks.
/// options.parallel must be null. `ranks` and `where` must outlive it. own: set to this rank's part, which takes no other rank along.
/// Throws as make_model.
std::shared_ptr<causal_lm> make_process_model(const std::string& name, const model_config& cfg, const model_options& options,
                                              bool sequence_parallel, process_ranks& ranks, compute& where,
                                              std::shared_ptr<causal_lm>* own = nullptr);

} // namespace troupe
