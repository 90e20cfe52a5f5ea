#pragma once
#include "rollout/generator.hpp"
#include <functional>
#include <vector>

namespace troupe {

/// Runs requests to their end and hands over each sample, in the order of `requests`, then of samples, as soon as it and all
/// before it have ended. Ids are set here. Only as many requests as can run are given to `g` at a time.
/// `stop`, asked before every pass, ends it early: what is unfinished, or comes after it, is not handed over. False: that happened.
/// Throws what generator::add and step throw; check requests first where all or nothing is wanted.
bool generate_all(generator& g, std::vector<generation_request> requests, const std::function<void(generation_output&&)>& done,
                  const std::function<bool()>& stop = {});

} // namespace troupe
